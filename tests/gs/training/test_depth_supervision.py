"""Depths of reconstructed points as a loss: they are pulled to and decay; with all else that
photographs need they resume exactly, and every pruning method takes them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.data.tracks import Tracks, depths_of
from gs.densification.adaptive import DensifyConfig
from gs.errors import SplatrimError
from gs.model.light import light_of
from gs.model.model import Model
from gs.model.renderer import render
from gs.run_record import checkpoint_file
from gs.training.checkpoint import load_checkpoint
from gs.training.depth_supervision import DepthConfig
from gs.training.exposure import Exposure
from gs.training.pose_refinement import PoseConfig, PoseRefinement
from gs.training.strategy import Strategy
from gs.training.trainer import Trainer
from pruning import METHODS
from tests.gs.training.test_masked_steps import repainted

DEPTHS = DepthConfig(depth_loss=True)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tracked(scene: Scene) -> Scene:
    """The scene, whose images have seen the points a unit further away than they are."""
    points = scene.points.double()
    rows = {camera.image_name: torch.arange(k, 80, 2) for k, camera in enumerate(scene.train)}
    return dataclasses.replace(scene, tracks=Tracks(1.25 * points, rows))


@pytest.fixture(scope="module")
def masked(tracked: Scene, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The same with a part of each image that does not count."""
    return repainted(tracked, tmp_path_factory.mktemp("masked") / "images", 240)


def make(
    scene: Scene,
    out: Path,
    *strategies: Strategy[Any],
    depths: DepthConfig | None = DEPTHS,
    start: dict[str, Any] | None = None,
    method: str = "3dgs",
    **settings: Any,
) -> Trainer[Any]:
    known: dict[str, Any] = {"iterations": 12, "quiet": True, "device": "cpu"}
    known |= {"test_iterations": (), "save_iterations": (), **settings}
    config = TrainConfig(out, **known)
    own = None if depths is None else depths.build(scene)
    made = [*strategies, *([] if own is None else [own])]
    return Trainer(config, scene, strategies=made, start=start, method=method)


@torch.no_grad()
def mean_error(trainer: Trainer[Any]) -> float:
    """Of rendered disparities at the known pixels of all training images."""
    found, tracks = [], trainer.scene.tracks
    assert tracks is not None
    for camera in trainer.scene.train:
        pixels, depths = depths_of(tracks, camera)
        out = render(trainer.exported(), camera, render_mode="ED")
        shown = out.colors.flatten()[pixels.long()]
        seen = shown > 0
        found.append((1.0 / shown[seen] - 1.0 / depths[seen]).abs().mean())
    return float(torch.stack(found).mean())


def test_rendered_depths_come_nearer_to_the_known_ones(tracked: Scene, tmp_path: Path) -> None:
    strong = dataclasses.replace(DEPTHS, depth_weight=100.0)
    errors = {}
    for name, depths in (("with", strong), ("without", None)):
        trainer = make(tracked, tmp_path / name, depths=depths, iterations=60)
        trainer.fit()
        errors[name] = mean_error(trainer)
    assert errors["with"] < 0.8 * errors["without"]


def test_the_weight_falls_to_a_hundredth(tracked: Scene) -> None:
    own = dataclasses.replace(DEPTHS, depth_weight=0.2).build(tracked)
    assert own is not None
    own._end = 100
    weights = [own.device_numbers(step)["depth_weight"] / tracked.extent for step in (0, 50, 100)]
    assert weights == pytest.approx([0.2, 0.02, 0.002])


def test_a_batch_has_the_losses_of_its_images(tracked: Scene, tmp_path: Path) -> None:
    trainer = make(tracked, tmp_path, batch=3)
    n = len(trainer.scene.train)
    with torch.enable_grad():
        losses = []
        for indices in ([0], [3], [n - 1], [0, 3, n - 1]):
            context = trainer.stepper.forward_backward(3, indices)
            loss = trainer.strategies[-1].image_loss(3, context)
            assert loss is not None
            losses.append(loss.item())
            trainer.optimizer.zero_grad(set_to_none=True)
    assert losses[3] == pytest.approx(sum(losses[:3]), rel=1e-5)


def with_all(scene: Scene) -> tuple[list[Strategy[Any]], dict[str, Any]]:
    """Strategies and settings of everything that photographs may need, beside depths and masks."""
    poses = PoseConfig(pose_refinement=True, pose_from_iter=2, test_poses="given")
    strategies = [Exposure("ppisp", scene.train), PoseRefinement(poses, scene)]
    return strategies, {"antialiased": True, "random_background": True}


def learnt(model: Model) -> dict[str, torch.Tensor]:
    """Of rows, and what all share."""
    return {**model.params, **model.shared.state_dict()}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_resumed_run_of_all_together_is_exact(masked: Scene, tmp_path: Path, batch: int) -> None:
    runs, settings = [], {"checkpoint_iterations": (4,), "batch": batch, "iterations": 8}
    for out, start in (("whole", None), ("rest", checkpoint_file(tmp_path / "whole", 4))):
        strategies, more = with_all(masked)
        state = None if start is None else load_checkpoint(start)
        runs.append(make(masked, tmp_path / out, *strategies, start=state, **settings, **more))
        runs[-1].fit()
    whole, rest = (run.gaussians for run in runs)
    for name, x in learnt(whole).items():
        assert torch.equal(x, learnt(rest)[name]), name
    assert bool((whole.poses.deltas[:-1] != torch.eye(3, 4)).any())


@pytest.mark.parametrize("method", [name for name in METHODS if name != "3dgs"])
def test_every_pruning_method_takes_all(masked: Scene, tmp_path: Path, method: str) -> None:
    pruner = METHODS[method].preset(next(iter(METHODS[method].PRESETS))).scaled(12 / 30_000)
    densify = DensifyConfig().scaled(12 / 30_000)
    strategies, more = with_all(masked)
    strategies += [densify.build(), pruner.build(densify_until=densify.densify_until_iter)]
    trainer = make(masked, tmp_path, *strategies, method=method, **more)
    trainer.fit()
    assert all(bool(x.isfinite().all()) for x in learnt(trainer.gaussians).values())
    light = light_of(trainer.gaussians)
    assert light is not None and bool((light.rows != 0.0).any(1).all())


def test_scenes_without_tracks_get_a_sentence(scene: Scene, tracked: Scene) -> None:
    with pytest.raises(SplatrimError, match="has no reconstructed points"):
        DEPTHS.build(scene)
    nothing = dataclasses.replace(tracked, tracks=Tracks(torch.zeros(0, 3).double(), {}))
    with pytest.raises(SplatrimError, match="shows a point that is well reconstructed"):
        DEPTHS.build(nothing)
    assert DepthConfig().build(scene) is None


@pytest.mark.gpu
def test_captured_steps_take_depths_alike(tracked: Scene, tmp_path: Path) -> None:
    found = []
    for graphs in (True, False):
        settings = {"device": "cuda", "cuda_graphs": graphs, "deterministic": True}
        trainer = make(tracked, tmp_path / str(graphs), iterations=60, **settings)
        trainer.fit()
        found.append({name: x.detach().cpu() for name, x in trainer.gaussians.params.items()})
    for name, x in found[0].items():
        torch.testing.assert_close(x, found[1][name], rtol=1e-3, atol=1e-4)
