"""Captured steps with refined poses and known depths are the same steps, also where some repeat."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.data.tracks import Tracks
from gs.model.renderer import RenderOutput
from gs.training import step
from gs.training.depth_supervision import DepthConfig, DepthSupervision
from gs.training.pose_refinement import PoseConfig, PoseRefinement
from gs.training.trainer import Trainer
from tests.gs.graph_like import Watched, graph_like

POSES = PoseConfig(pose_refinement=True, pose_from_iter=4, test_poses="given")

__all__ = ["graph_like"]

pytestmark = pytest.mark.usefixtures("one_thread")


def make(scene: Scene, out: Path, batch: int) -> Trainer[Any]:
    rows = {camera.image_name: torch.arange(80) for camera in scene.train}
    tracked = dataclasses.replace(scene, tracks=Tracks(1.1 * scene.points.double(), rows))
    config = TrainConfig(out, iterations=20, batch=batch, quiet=True, device="cpu")
    depths = DepthSupervision(DepthConfig(depth_loss=True, depth_weight=0.3), tracked)
    return Trainer(config, tracked, strategies=[PoseRefinement(POSES, tracked), depths])


@pytest.mark.usefixtures("graph_like")
@pytest.mark.parametrize(("slack", "batch"), [(1.4, 1), (0.2, 1), (1.4, 2)])
def test_captured_steps_are_the_same_steps(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slack: float, batch: int
) -> None:
    def crowded(*args: Any, **options: Any) -> RenderOutput:
        out = render_within(*args, **options)
        if options.get("capacity") is not None and slack < 1:
            # capacities are never below 1024
            out.info["counts"][1] = 2000 * out.info["counts"][0]
        return out

    render_within = step.render
    monkeypatch.setattr(step, "render", crowded)
    plain = make(scene, tmp_path / "plain", batch)
    plain.fit()
    captured = make(scene, tmp_path / "captured", batch)
    captured.stepper.graphs = graphs = Watched()
    captured.fit()
    assert graphs.replays > 4
    assert (graphs.misfits > 0) == (slack < 1)
    tables = captured.gaussians.poses, plain.gaussians.poses
    for name in ("deltas", "exp_avg", "steps"):
        found, expected = (getattr(table, name) for table in tables)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)
    assert float(tables[0].steps.sum()) == 20 - 4 - batch  # neither before nor in the last step
    for name, x in plain.gaussians.params.items():
        torch.testing.assert_close(captured.gaussians.params[name], x, rtol=1e-4, atol=1e-5)
