"""Refined poses: they return, resume exactly, change nothing where they stay, are written down."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.colmap_files import read_cameras, read_images, read_points
from gs.data.scene import Scene
from gs.densification.adaptive import DensifyConfig
from gs.errors import SplatrimError
from gs.evaluation.poses_file import read_poses, with_refined_poses
from gs.model.poses import compose, motion, with_pose
from gs.model.rates import OptimConfig
from gs.run_record import checkpoint_file, model_file
from gs.training.checkpoint import load_checkpoint
from gs.training.pose_refinement import PoseConfig, check_poses
from gs.training.start import without_added
from gs.training.strategy import Strategy
from gs.training.trainer import Trainer
from kernels.reference.poses import rigid_exponential
from pruning import METHODS

# fitting test views takes longer than these trainings: FITTED where it matters
POSES = PoseConfig(pose_refinement=True, pose_from_iter=0, test_poses="aligned")
FITTED = dataclasses.replace(POSES, pose_lr=3e-3, test_poses="fitted")
STILL = OptimConfig(
    position_lr_init=1e-30,
    position_lr_final=1e-30,
    feature_lr=0.0,
    opacity_lr=0.0,
    scaling_lr=0.0,
    rotation_lr=0.0,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sharp(
    write_scene: Callable[..., Scene], turned_view: Callable[[float], Tensor]
) -> tuple[Scene, Scene]:
    """Views of 60 Gaussians that training starts with; the same with wrong training poses."""
    g = torch.Generator().manual_seed(0)
    points, colors = torch.rand(60, 3, generator=g) * 2 - 1, torch.rand(60, 3, generator=g)
    views = [turned_view(0.3 * i - 1) for i in range(8)]
    scene = write_scene(points, colors, views, 6, (40, 30), 45)
    xi = torch.randn(6, 6, generator=g).double()
    xi[:, :3] *= 0.015 * scene.extent / xi[:, :3].norm(dim=1, keepdim=True)
    xi[:, 3:] *= math.radians(0.7) / xi[:, 3:].norm(dim=1, keepdim=True)
    wrong = [
        with_pose(camera, compose(delta, camera.viewmat.double()))
        for camera, delta in zip(scene.train, rigid_exponential(xi), strict=True)
    ]
    return scene, dataclasses.replace(scene, train=wrong)


def make(
    scene: Scene,
    out: Path,
    *strategies: Strategy[Any],
    poses: PoseConfig | None = POSES,
    optim: OptimConfig | None = None,
    start: dict[str, Any] | None = None,
    method: str = "3dgs",
    **settings: Any,
) -> Trainer[Any]:
    known: dict[str, Any] = {"iterations": 16, "quiet": True, "device": "cpu"}
    known |= {"test_iterations": (), "save_iterations": (), **settings}
    config = TrainConfig(out, **known)
    own = None if poses is None else poses.build(scene)
    made = [*strategies, *([] if own is None else [own])]
    return Trainer(config, scene, strategies=made, optim=optim, start=start, method=method)


def sharpened(trainer: Trainer[Any]) -> Trainer[Any]:
    """The trainer with the opacities that the images were made with."""
    trainer.gaussians.params["opacities"].data.fill_(3.0)
    return trainer


def apart(scene: Scene, trainer: Trainer[Any]) -> tuple[float, float]:
    """Mean degrees and distance of the trainer's poses from those of the scene."""
    table = trainer.gaussians.poses
    assert table is not None
    found = [
        motion(a.viewmat, b.viewmat)
        for a, b in zip(scene.train, table.moved_cameras(trainer.scene.train), strict=True)
    ]
    degrees, distances = zip(*found, strict=True)
    return sum(degrees) / len(found), sum(distances) / len(found)


def test_wrong_poses_return_where_the_model_is_right(
    sharp: tuple[Scene, Scene], tmp_path: Path
) -> None:
    scene, wrong = sharp
    trainer = sharpened(make(wrong, tmp_path, poses=FITTED, optim=STILL, iterations=200))
    before = apart(scene, trainer)
    assert before == pytest.approx((0.7, 0.015 * scene.extent), rel=1e-3)
    trainer.fit()
    degrees, distance = apart(scene, trainer)
    # a small turn and a small shift look much alike: that combination takes longest
    assert degrees < 0.5 * before[0] and distance < 0.8 * before[1]
    values = trainer.evaluate(200)
    assert values["train"] > 45.0 and values["test"] > 45.0


def test_test_poses_are_fitted_and_said(sharp: tuple[Scene, Scene], tmp_path: Path) -> None:
    scene, wrong = sharp
    off = [
        with_pose(camera, compose(torch.eye(3, 4).double() + 0.004, camera.viewmat.double()))
        for camera in wrong.test
    ]
    both = dataclasses.replace(wrong, test=off)
    values = {}
    for kind in ("given", "fitted"):
        own = dataclasses.replace(FITTED, test_poses=kind)
        trainer = sharpened(make(both, tmp_path / kind, poses=own, optim=STILL, iterations=100))
        trainer.fit()
        values[kind] = trainer.evaluate(100)["test"]
        found = read_poses(model_file(tmp_path / kind, 100))
        assert found is not None and found["test_poses"] == kind
    assert values["fitted"] > values["given"] + 3.0


def test_saved_poses_are_those_of_the_model(sharp: tuple[Scene, Scene], tmp_path: Path) -> None:
    scene, wrong = sharp
    trainer = sharpened(make(wrong, tmp_path, optim=STILL, iterations=12))
    trainer.fit()
    table, ply = trainer.gaussians.poses, model_file(tmp_path, 12)
    assert table is not None
    now = table.moved_cameras(wrong.train)
    read = with_refined_poses(wrong, ply)
    for a, b, given in zip(read.train, now, wrong.train, strict=True):
        torch.testing.assert_close(a.viewmat, b.viewmat, rtol=0, atol=1e-6)
        assert not torch.equal(a.viewmat, given.viewmat)
    found = read_poses(ply)
    assert found is not None
    assert [entry["split"] for entry in found["cameras"]] == ["train"] * 6 + ["test"] * 2
    assert found["cameras"][0]["degrees"] == pytest.approx(
        motion(wrong.train[0].viewmat, now[0].viewmat)[0]
    )
    entries = json.loads((tmp_path / "cameras.json").read_text())
    shown = {entry["img_name"]: entry for entry in entries}
    for camera in now:
        position = torch.tensor(shown[camera.image_name]["position"])
        torch.testing.assert_close(position, camera.position, rtol=0, atol=1e-5)


def test_poses_can_be_read_as_a_colmap_model(sharp: tuple[Scene, Scene], tmp_path: Path) -> None:
    scene, wrong = sharp
    moved = dataclasses.replace(wrong, world_offset=(100.0, -50.0, 7.0))
    trainer = make(moved, tmp_path, iterations=3)
    trainer.fit()
    read = with_refined_poses(moved, model_file(tmp_path, 3))
    images = {image.name: image for image in read_images(tmp_path / "poses" / "images.txt")}
    lenses = read_cameras(tmp_path / "poses" / "cameras.txt")
    for camera in [*read.train, *read.test]:
        image = images[camera.image_name]
        rotation, translation = (torch.from_numpy(x) for x in (image.rotation, image.translation))
        torch.testing.assert_close(rotation.float(), camera.viewmat[:3, :3], rtol=0, atol=1e-6)
        centre = -rotation.T @ translation - torch.tensor(moved.world_offset)
        # of 4 units, in float32
        torch.testing.assert_close(centre.float(), camera.position, rtol=0, atol=5e-5)
        lens = lenses[image.camera_id]
        assert lens.focal == (45.0, 45.0) and (lens.width, lens.height) == (40, 30)
    points = read_points(tmp_path / "poses" / "points3D.txt")
    assert len(points.xyz) == 60
    torch.testing.assert_close(
        torch.from_numpy(points.xyz) - torch.tensor(moved.world_offset),
        moved.points.double(),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_a_resumed_run_is_exact(sharp: tuple[Scene, Scene], tmp_path: Path, batch: int) -> None:
    _, wrong = sharp
    settings = {"iterations": 16, "checkpoint_iterations": (8,), "batch": batch}
    whole = make(wrong, tmp_path / "whole", **settings)
    whole.fit()
    start = load_checkpoint(checkpoint_file(tmp_path / "whole", 8))
    rest = make(wrong, tmp_path / "rest", start=start, **settings)
    rest.fit()
    for part in ("params", "shared"):
        a, b = (dict(getattr(t.gaussians, part).state_dict()) for t in (whole, rest))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), part
    assert whole.gaussians.poses.steps.sum() > 10


def test_poses_that_stay_change_nothing(sharp: tuple[Scene, Scene], tmp_path: Path) -> None:
    _, wrong = sharp
    late = dataclasses.replace(POSES, pose_from_iter=16)
    with_table, without = (
        make(wrong, tmp_path / name, poses=poses) for name, poses in (("a", late), ("b", None))
    )
    for trainer in (with_table, without):
        trainer.fit()
    for name, x in with_table.gaussians.params.items():
        torch.testing.assert_close(x, without.gaussians.params[name], rtol=0, atol=0)
    assert without.gaussians.poses is None
    assert not without.gaussians.shared.state_dict()


def test_the_rate_falls_to_a_hundredth_and_phases_say_when(sharp: tuple[Scene, Scene]) -> None:
    own = dataclasses.replace(POSES, pose_from_iter=100, pose_lr=0.01).build(sharp[0])
    assert own is not None
    own._end = 300
    rates = [own.device_numbers(step)["pose_lr"] for step in (0, 100, 200, 300)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.0001])
    phases = [own.phase(step) for step in (100, 101, 299, 300)]
    assert phases == ["poses stay", "poses move", "poses move", "poses stay"]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "3dgs"])
def test_every_pruning_method_refines_poses(
    sharp: tuple[Scene, Scene], tmp_path: Path, method: str
) -> None:
    _, wrong = sharp
    pruner = METHODS[method].preset(next(iter(METHODS[method].PRESETS))).scaled(20 / 30_000)
    densify = DensifyConfig().scaled(20 / 30_000)
    strategies = [densify.build(), pruner.build(densify_until=densify.densify_until_iter)]
    trainer = make(wrong, tmp_path, *strategies, iterations=20, method=method)
    trainer.fit()
    moved = trainer.gaussians.poses.deltas[:-1] - torch.eye(3, 4)
    assert bool((moved.abs().amax((1, 2)) > 1e-4).all())
    assert len(trainer.exported()) > 0


def test_a_checkpoint_with_poses_asks_for_them(sharp: tuple[Scene, Scene], tmp_path: Path) -> None:
    trainer = make(sharp[1], tmp_path, iterations=6, checkpoint_iterations=(4,))
    trainer.fit()
    state = load_checkpoint(checkpoint_file(tmp_path, 4))
    with pytest.raises(SplatrimError, match="go on with --pose_refinement"):
        check_poses(state)
    kept, deltas = without_added(state)["shared"], "poses.deltas"
    assert torch.equal(kept[deltas], state["shared"][deltas])
    check_poses({**state, "shared": {}})


@pytest.mark.gpu
def test_captured_steps_move_poses_alike(sharp: tuple[Scene, Scene], tmp_path: Path) -> None:
    _, wrong = sharp
    found = []
    for graphs in (True, False):
        settings = {"device": "cuda", "cuda_graphs": graphs, "deterministic": True}
        trainer = make(wrong, tmp_path / str(graphs), iterations=60, **settings)
        trainer.fit()
        found.append(trainer.gaussians.poses.deltas.cpu())
    assert (found[1][:-1] - torch.eye(3, 4)).abs().amax((1, 2)).min() > 1e-4
    # rates come as float32 either way; Adam magnifies rounding of gradients near 0
    torch.testing.assert_close(*found, rtol=0, atol=2e-5)
