"""Seams: who owns a pixel, where borders are, and errors there beside those of one piece."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gs.blocks.seams import REACH, borders, measure_seams, owner_map
from gs.data.loader import ImageLoader
from gs.data.scene import Scene
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.report.blocks import blocks
from gs.report.run import load_run
from gs.report.sections import write_report

pytestmark = pytest.mark.usefixtures("one_thread")


def whole(survey: Scene) -> tuple[Gaussians, Tensor]:
    gaussians = Gaussians.from_points(survey.points, survey.colors, sh_degree=0)
    gaussians.params["opacities"].data.fill_(3.0)
    gaussians.params["scales"].data += 0.5
    return gaussians, (survey.points[:, 0] > 2.0).long()


def test_a_pixel_belongs_to_the_block_that_weighs_most(survey: Scene) -> None:
    gaussians, owners = whole(survey)
    for camera in survey.train[:6]:
        found = owner_map(gaussians, owners, camera)
        x = camera.position[0] + (torch.arange(32) - 15.5) / 30.0 * camera.position[2]
        for block, side in ((0, x < 1.7), (1, x > 2.3)):
            assert ((found[:, side] == block) | (found[:, side] < 0)).float().mean() > 0.95 or not (
                side.any()
            )


def test_borders_reach_as_far_as_they_should() -> None:
    owners = torch.zeros(40, 60, dtype=torch.int64)
    owners[:, 30:] = 1
    found = borders(owners)
    assert torch.equal(found.any(0).nonzero()[:, 0], torch.arange(30 - REACH, 30 + REACH))
    assert torch.equal(borders(owners.T), found.T) and not borders(owners[:, :30]).any()


def test_an_error_at_the_border_is_an_excess(survey: Scene) -> None:
    gaussians, owners = whole(survey)
    cameras = [*survey.train, *survey.test]
    indices = [k for k, c in enumerate(cameras) if abs(float(c.position[0]) - 2.0) < 0.4]
    black = torch.zeros(3)
    with ImageLoader(cameras) as images:
        same = measure_seams(gaussians, owners, cameras, images, black, indices, gaussians)
        broken = Gaussians({k: x.clone() for k, x in gaussians.to_tensors().items()})
        near = (survey.points[:, 0] - 2.0).abs() < 0.25
        broken.params["sh0"].data[near] = -5.0  # a black seam
        worse = measure_seams(broken, owners, cameras, images, black, indices, gaussians)
    assert same and [seam.excess for seam in same] == [1.0] * len(same)
    assert all(0 < seam.border_share < 1 for seam in same)
    assert max(seam.excess or 0.0 for seam in worse) > 1.2


ENTRY = {
    "block": 0,
    "rank": 0,
    "steps": 40,
    "cameras": 12,
    "n_gaussians": 1234,
    "history": {
        "step": [10, 20, 40],
        "loss": [0.3, 0.2, 0.1],
        "psnr": [10.0, 15.0, 20.25],
        "n_gaussians": [1000, 1100, 1234],
    },
}
VIEW = {"name": "a.png", "border_share": 0.25, "ratio": 1.5, "excess": 1.031}


def test_the_report_shows_blocks_and_seams(tmp_path: Path) -> None:
    history = {"settings": {"method": "3dgs"}, "blocks": [ENTRY, {**ENTRY, "block": 1}]}
    (tmp_path / "history.json").write_text(json.dumps(history))
    found = blocks(load_run(tmp_path))
    assert found is not None and found[0] == "Blocks" and "Seams" not in found[1]
    views = [VIEW, {**VIEW, "name": "b.png", "excess": 1.111}]
    (tmp_path / "seams.json").write_text(json.dumps({"views": views}))
    found = blocks(load_run(tmp_path))
    assert found is not None
    for text in ("1,234", "20.25", "block 1", "1.071, worst view 1.111", "b.png"):
        assert text in found[1], text
    assert "Blocks" in write_report(tmp_path).read_text()
    (tmp_path / "seams.json").write_text(json.dumps({"views": [{"name": "a.png"}]}))
    with pytest.raises(SplatrimError, match="border_share"):
        write_report(tmp_path)


def test_one_piece_has_no_section(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(json.dumps({"settings": {}}))
    assert blocks(load_run(tmp_path)) is None
