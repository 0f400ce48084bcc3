"""A run with refined poses: its files agree, its settings follow, results say what they are."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gs.errors import SplatrimError
from gs.evaluation.poses_file import SAID, read_poses
from gs.evaluation.render import render_views
from gs.evaluation.video import _cameras
from gs.model.poses import PoseTable
from gs.program import build_trainer, check_for_ranks, train
from gs.report.sections import write_report
from gs.run_record import model_file
from gs.run_settings import read_settings
from pruning import METHODS
from splatrim.train import parse

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Blender scene of five training views and two test views of noise."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for split, n in (("train", 5), ("test", 2)):
        (folder / split).mkdir()
        frames = []
        for k in range(n):
            a = 0.7 * k + (0.3 if split == "test" else 0.0)
            c, s = math.cos(a), math.sin(a)
            pose = [[c, 0, s, 3 * s], [0, 1, 0, 0], [-s, 0, c, 3 * c], [0, 0, 0, 1]]
            pixels = rng.integers(0, 255, (6, 8, 3), np.uint8).repeat(3, 0).repeat(3, 1)
            Image.fromarray(pixels).save(folder / split / f"r_{k}.png")
            frames.append({"file_path": f"./{split}/r_{k}", "transform_matrix": pose})
        text = json.dumps({"camera_angle_x": 0.8, "frames": frames})
        (folder / f"transforms_{split}.json").write_text(text)
    return folder


def test_a_run_its_renderings_and_its_report_agree(source: Path, tmp_path: Path) -> None:
    settings = {"iterations": 12, "eval": True, "init_points": 60, "quiet": True, "device": "cpu"}
    settings |= {"pose_refinement": True, "pose_from_iter": 2, "test_iterations": (12,)}
    trainer = train(source, tmp_path, methods=METHODS, method="3dgs", **settings)
    assert isinstance(trainer.gaussians.poses, PoseTable)
    found = read_poses(model_file(tmp_path, 12))
    assert found is not None and found["test_poses"] == "fitted"
    assert all(entry["degrees"] > 0.0 for entry in found["cameras"])
    stats = render_views(tmp_path, quiet=True, device="cpu")
    assert stats["test_poses"] == "fitted"
    history = json.loads((tmp_path / "history.json").read_text())
    # poses go through float32 in text and a file's model through float32 in .ply
    assert stats["test"]["psnr"] == pytest.approx(history["test"][-1]["psnr"], abs=1e-3)
    # a flight along the cameras begins at the first one's refined place
    model = model_file(tmp_path, 12)
    flight = _cameras("interpolate", 3, read_settings(tmp_path), tmp_path, None, model)
    first = min(found["cameras"], key=lambda entry: entry["name"])
    torch.testing.assert_close(flight[0].viewmat, torch.tensor(first["viewmat"]))
    assert SAID["fitted"] in write_report(tmp_path).read_text()
    assert read_settings(tmp_path)["poses"]["pose_refinement"] is True


def test_settings_follow_the_schedule_and_the_start(tmp_path: Path) -> None:
    words = ["-s", "scene", "-m", str(tmp_path)]
    plain = parse(words)
    assert not plain.poses.pose_refinement and plain.poses.pose_from_iter == 1000
    assert not plain.depths.depth_loss
    short = parse([*words, "--iterations", "3000", "--pose_refinement", "--depth_loss"])
    assert short.poses.pose_refinement and short.poses.pose_from_iter == 100
    assert short.depths.depth_loss
    after = parse([*words, "--start_ply", "model.ply", "--method", "mask-gaussian"])
    assert after.poses.pose_from_iter == 30_000


def test_scenes_without_tracks_are_told_before_anything_is_written(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["-s", str(source), "-m", str(out), "--init_points", "60", "--device", "cpu"]
    with pytest.raises(SplatrimError, match="leave --depth_loss out"):
        build_trainer(parse([*words, "--depth_loss"]), METHODS)
    assert not out.exists()


@pytest.mark.parametrize("flag", ["pose_refinement", "depth_loss"])
def test_several_gpus_are_refused(tmp_path: Path, flag: str) -> None:
    config = parse(["-s", "scene", "-m", str(tmp_path), "--method", "3dgs", f"--{flag}"])
    with pytest.raises(SplatrimError, match=f"--{flag} does not run on several GPUs yet"):
        check_for_ranks(config, METHODS)
