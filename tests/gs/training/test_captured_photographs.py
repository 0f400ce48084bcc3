"""Captured steps with refined poses and known depths are the same steps, also where some repeat."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.data.tracks import Tracks
from gs.model.model import Model, Splats
from gs.model.renderer import RenderOutput, render
from gs.model.view import View
from gs.training.captured_steps import Body, StepGraphs
from gs.training.depth_supervision import DepthConfig, DepthSupervision
from gs.training.pose_refinement import PoseConfig, PoseRefinement
from gs.training.trainer import Trainer
from kernels import Capacity, Counts, FusedAdam

POSES = PoseConfig(pose_refinement=True, pose_from_iter=4)

pytestmark = pytest.mark.usefixtures("one_thread")


class PlainAdam(FusedAdam):
    """The same in PyTorch: kernels that are interpreted take half a second per step."""

    @torch.no_grad()
    def apply(self, rates: Tensor, *, skip: Tensor | None = None, **options: Any) -> None:
        if skip is not None and int(skip) != 0:
            return
        beta1, beta2 = self.defaults["betas"]
        for p, (step_size, root) in zip(self._params(), rates.tolist(), strict=True):
            if p.grad is not None:
                state = self._state(p)
                state["exp_avg"].lerp_(p.grad, 1.0 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1.0 - beta2)
                denominator = state["exp_avg_sq"].sqrt().div_(root).add_(self.defaults["eps"])
                p.addcdiv_(state["exp_avg"], denominator, value=-step_size)


class Recording:
    """What a body launches; at each replay but the first it is done again."""

    def __init__(self, body: Body) -> None:
        self.body, self.done = body, True
        body()

    def replay(self) -> None:
        if not self.done:
            self.body()
        self.done = False


class Watched(StepGraphs):
    """Counts replays and those that did not fit."""

    def __init__(self) -> None:
        super().__init__(Recording)
        self.replays = self.misfits = 0

    def fits(self, key: Any, n: int, counts: Counts, missing: int = 0) -> bool:
        fits = super().fits(key, n, counts, missing)
        self.replays += 1
        self.misfits += not fits
        return fits


def make(scene: Scene, out: Path, batch: int) -> Trainer[Any]:
    rows = {camera.image_name: torch.arange(80) for camera in scene.train}
    tracked = dataclasses.replace(scene, tracks=Tracks(1.1 * scene.points.double(), rows))
    config = TrainConfig(out, iterations=20, batch=batch, quiet=True, device="cpu")
    depths = DepthSupervision(DepthConfig(depth_loss=True, depth_weight=0.3), tracked)
    return Trainer(config, tracked, strategies=[PoseRefinement(POSES, tracked), depths])


@pytest.mark.parametrize(("slack", "batch"), [(1.4, 1), (0.2, 1), (1.4, 2)])
def test_captured_steps_are_the_same_steps(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slack: float, batch: int
) -> None:
    def render_within(
        model: Model | Splats, camera: View, *, capacity: Capacity | None = None, **options: Any
    ) -> RenderOutput:
        out = render(model, camera, **options)
        if capacity is not None:
            n_rows = (out.info["radii"] > 0).all(-1).sum()
            # capacities are never below 1024
            counts = [n_rows, (out.info["n_isects"] if slack > 1 else 2000 * n_rows).view(())]
            out.info["counts"] = torch.stack(counts).int()
        return out

    monkeypatch.setattr("gs.training.step.render", render_within)
    monkeypatch.setattr("gs.training.optimizer.uses_triton", lambda *_: True)
    monkeypatch.setattr("kernels.FusedAdam", PlainAdam)
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
