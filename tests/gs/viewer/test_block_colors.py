"""Blocks in colours, from above, and what is said where there are none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gs.blocks.look import main as look
from gs.blocks.seams import save_owners
from gs.config import TrainConfig
from gs.data.scene import load_scene
from gs.errors import SplatrimError
from gs.model.renderer import render
from gs.training.trainer import Trainer
from gs.viewer.__main__ import PageConfig, write_run_page
from gs.viewer.block_colors import block_colors, from_above, tinted
from gs.viewer.run_model import in_block_colors, load_shown

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_view_from_above_shows_the_halves_in_their_colours(city: Path, tmp_path: Path) -> None:
    scene = load_scene(city)
    settings = {"source_path": str(city), "eval": False}
    config = TrainConfig(tmp_path, iterations=1, quiet=True, device="cpu", sh_degree=1)
    run = Trainer(config, scene, settings=settings)
    run.gaussians.params["opacities"].data.fill_(4.0)
    run.fit()
    model = tmp_path / "point_cloud/iteration_1/point_cloud.ply"
    with pytest.raises(SplatrimError, match="not trained in blocks"):
        write_run_page(PageConfig(tmp_path, blocks=True))
    x = load_shown(tmp_path).tensors["means"][:, 0]
    save_owners(model, (x > x.median()).long())
    shown = in_block_colors(load_shown(tmp_path))
    camera = shown.cameras[0]
    assert camera.image_name == "from above" and camera.near == scene.train[0].near
    splats = run.gaussians.from_tensors(shown.tensors)
    image = render(splats, camera).colors
    palette = block_colors(torch.arange(2))
    nearest = (image / image.norm(dim=-1, keepdim=True).clamp_min(0.1))[..., None, :] @ (
        palette / palette.norm(dim=-1, keepdim=True)
    ).T[None, None]
    lit = image.sum(-1) > 0.2
    owner = nearest[..., 0, :].argmax(-1)
    shares = [float((lit & (owner == k)).float().mean()) for k in range(2)]
    assert min(shares) > 0.15, shares
    # all but the outermost lie within the picture
    points = shown.tensors["means"] @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
    places = points @ camera.K.T
    places = places[:, :2] / places[:, 2:]
    inside = (places > 0).all(-1) & (places < torch.tensor([800.0, 600.0])).all(-1)
    assert inside.float().mean() > 0.97 and places.std(0).max() > 100
    page = write_run_page(PageConfig(tmp_path, blocks=True))
    assert "from above" in page.read_text()
    save_owners(model, torch.zeros(3).long())
    with pytest.raises(SplatrimError, match="neural"):
        write_run_page(PageConfig(tmp_path, blocks=True))


def test_colours_keep_brightness_and_differ_by_block() -> None:
    n = 9
    tensors = {"sh0": torch.linspace(-3, 3, n).view(n, 1, 1).repeat(1, 1, 3)}
    tensors["shN"] = torch.ones(n, 15, 3)
    out = tinted(tensors, torch.arange(n))
    assert out["shN"].shape == (n, 0, 3)
    alike = tinted(tensors, torch.zeros(n))["sh0"].sum((1, 2))
    assert (alike.diff() >= 0).all() and alike[-1] > alike[0] + 1
    colors = block_colors(torch.arange(n)).numpy()
    assert len(np.unique(colors, axis=0)) == 8 and (colors[0] == colors[8]).all()
    with pytest.raises(ValueError, match="expected 9, got 2"):
        tinted(tensors, torch.zeros(2))


def test_a_plan_is_a_page_and_no_model(city: Path, tmp_path: Path) -> None:
    look(["-s", str(city), "-m", str(tmp_path), "--blocks", "2", "--quiet"])
    assert "from above" in (tmp_path / "partition.html").read_text()
    with pytest.raises(SplatrimError, match="no model yet: open .*partition.html"):
        write_run_page(PageConfig(tmp_path))


def test_a_scene_is_seen_whatever_its_up(city: Path) -> None:
    scene = load_scene(city)
    camera = from_above(scene.points, scene.train)
    down = camera.viewmat[2, :3]
    assert down @ torch.tensor([0.0, 0.0, -1.0]) > 0.99  # the city's up is z
