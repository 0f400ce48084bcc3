"""Shifted coordinates, near planes and undistorted images from training to rendering."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch

import gs.evaluation.render
import train
from gs.data.demo import write_demo_scene
from gs.errors import SplatrimError
from gs.model.ply import load_ply, read_offset, save_ply

UTM = np.array([465_123.0, 5_248_456.0, 350.0])


@pytest.fixture(autouse=True)
def quick(one_thread: None) -> None:
    """Images are tiny."""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, pycolmap.Sim3d], Path]:
    """Write the built-in scene, moved."""

    def write(name: str, move: pycolmap.Sim3d) -> Path:
        folder = tmp_path / name
        write_demo_scene(folder, views=9, width=48, height=36)
        model = pycolmap.Reconstruction(str(folder / "sparse/0"))
        model.transform(move)
        model.write(str(folder / "sparse/0"))
        return folder

    return write


def moved_by(scale: float, shift: np.ndarray) -> pycolmap.Sim3d:
    return pycolmap.Sim3d(scale, pycolmap.Rotation3d(), shift)


def trained(scene: Path, out: Path, *flags: str) -> Path:
    """The .ply after four more iterations."""
    train.main(["-s", str(scene), "-m", str(out), "--eval", "--quiet", "--method", "3dgs", *flags])
    return max((out / "point_cloud").glob("*/point_cloud.ply"), key=lambda p: p.stat().st_mtime)


def psnr_of(out: Path) -> float:
    gs.evaluation.render.main(["-m", str(out), "--skip_train", "--quiet"])
    stats = json.loads((out / "render_stats.json").read_text())
    return next(iter(stats.values()))["test"]["psnr"]


def test_a_scene_far_from_the_origin_trains_as_one_at_it(
    tmp_path: Path, write: Callable[[str, pycolmap.Sim3d], Path]
) -> None:
    near, far = write("near", moved_by(1, 0 * UTM)), write("far", moved_by(1, UTM))
    four = ("--iterations", "4", "--checkpoint_iterations", "2")
    plain = trained(near, tmp_path / "a", *four)
    shifted = trained(far, tmp_path / "b", *four)
    offset = read_offset(shifted)
    assert read_offset(plain) == (0, 0, 0) and np.abs(np.array(offset) - UTM).max() < 10
    settings = json.loads((tmp_path / "b" / "config.json").read_text())
    assert settings["world_offset"] == list(offset) and settings["near_plane"] == 0.2
    assert read_offset(tmp_path / "b" / "input.ply") == offset
    assert psnr_of(tmp_path / "b") == pytest.approx(psnr_of(tmp_path / "a"), abs=0.05)
    # its coordinates are the plain model's, moved
    want = load_ply(plain)["means"].double() + torch.tensor(UTM)
    got = load_ply(shifted)["means"].double() + torch.tensor(offset, dtype=torch.float64)
    assert (got - want).abs().median() < 1e-3

    resumed = trained(
        far,
        tmp_path / "c",
        "--iterations",
        "4",
        "--start_checkpoint",
        str(tmp_path / "b" / "chkpnt2.pth"),
    )
    assert resumed.read_bytes() == shifted.read_bytes()

    # a model in another frame of the same world, and one that says nothing of its frame
    more = ("--iterations", "30001", "--start_ply")
    model = load_ply(shifted)
    for other in ((465_000.0, 5_248_000.0, 300.0), (0.0, 0.0, 0.0)):
        place = torch.tensor(offset, dtype=torch.float64) - torch.tensor(other)
        means = (model["means"].double() + place).float()
        save_ply(tmp_path / "other.ply", model | {"means": means}, world_offset=other)
        out = tmp_path / f"post {other[0]}"
        after = trained(far, out, *more, str(tmp_path / "other.ply"))
        assert read_offset(after) == (other if any(other) else offset)
        # float32 has steps of half a metre there, which the second model cannot help
        limit = 0.05 if any(other) else 20
        assert psnr_of(out) == pytest.approx(psnr_of(tmp_path / "b"), abs=limit)


def test_a_small_scene_trains_as_a_large_one(
    tmp_path: Path, write: Callable[[str, pycolmap.Sim3d], Path], caplog: pytest.LogCaptureFixture
) -> None:
    large, small = write("large", moved_by(1, 0 * UTM)), write("small", moved_by(0.01, 0 * UTM))
    trained(large, tmp_path / "a", "--iterations", "4")
    trained(small, tmp_path / "b", "--iterations", "4")
    assert "the near plane is 0.0" in caplog.text
    settings = json.loads((tmp_path / "b" / "config.json").read_text())
    assert 0 < settings["near_plane"] < 0.05
    cameras = json.loads((tmp_path / "b" / "cameras.json").read_text())
    assert {camera["near"] for camera in cameras} == {settings["near_plane"]}
    assert psnr_of(tmp_path / "b") == pytest.approx(psnr_of(tmp_path / "a"), abs=0.3)
    # of the run and not of the scene
    (tmp_path / "b" / "config.json").write_text(json.dumps(settings | {"near_plane": 9.0}))
    assert psnr_of(tmp_path / "b") < psnr_of(tmp_path / "a") - 1
    (tmp_path / "b" / "config.json").write_text(json.dumps(settings | {"near_plane": "x"}))
    with pytest.raises(SplatrimError, match="near_plane is damaged"):
        psnr_of(tmp_path / "b")


def test_nothing_to_see_is_told_before_training(
    tmp_path: Path, write: Callable[[str, pycolmap.Sim3d], Path]
) -> None:
    scene = write("scene", moved_by(1, 0 * UTM))
    model = pycolmap.Reconstruction(str(scene / "sparse/0"))
    ids = sorted(model.points3D)
    for point_id in ids[1:]:
        model.delete_point3D(point_id)
    model.write(str(scene / "sparse/0"))
    with pytest.raises(SplatrimError, match=r"too few starting points \(1\)"):
        trained(scene, tmp_path / "out")
    for i in range(9):
        model.add_point3D(np.array([0.0, 500.0 + i, 0]), pycolmap.Track(), np.zeros(3, np.uint8))
    model.delete_point3D(ids[0])
    model.write(str(scene / "sparse/0"))
    with pytest.raises(SplatrimError, match="no training camera sees any of the 9 starting"):
        trained(scene, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_distorted_images_are_kept_beside_the_run(
    tmp_path: Path, write: Callable[[str, pycolmap.Sim3d], Path]
) -> None:
    scene = write("scene", moved_by(1, 0 * UTM))
    model = pycolmap.Reconstruction(str(scene / "sparse/0"))
    for camera in model.cameras.values():
        camera.model, params = pycolmap.CameraModelId.SIMPLE_RADIAL, camera.params
        camera.params = [params[0], 24.0, 18.0, -0.05]
    model.write(str(scene / "sparse/0"))
    trained(scene, tmp_path / "out", "--iterations", "2")
    kept = sorted((tmp_path / "out" / "undistorted").iterdir())
    assert kept, "those that were trained on"
    times = [path.stat().st_mtime_ns for path in kept]
    gs.evaluation.render.main(["-m", str(tmp_path / "out"), "--quiet"])
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert len(list((tmp_path / "out" / "undistorted").iterdir())) == 9
