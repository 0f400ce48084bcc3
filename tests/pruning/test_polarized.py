"""Polarized opacities: the terms in closed form, neighbours, schedules, and whole runs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig
from gs.training.checkpoint import load_checkpoint
from gs.training.optimizer import build_optimizer
from gs.training.strategy import StepContext
from gs.training.trainer import Trainer
from pruning.polarized import (
    NEXT,
    PolarizedConfig,
    next_on_curve,
    opacity_sum,
    smoothness,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def cloud(n: int = 30) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    points, colors = torch.rand(2, n, 3, generator=g)
    gaussians = Gaussians.from_points(points, colors, sh_degree=0)
    gaussians.params["opacities"].data.copy_(torch.randn(n, generator=g))
    return gaussians


def test_the_published_sum() -> None:
    assert 1e-3 * opacity_sum(torch.tensor([0.5, 0.5])).item() == pytest.approx(4.15e-7)


def test_the_loss_is_the_sum_of_its_terms() -> None:
    gaussians, out = cloud(), None
    o = gaussians.get_opacities()
    config = PolarizedConfig(lambda_sum=2.0, lambda_polar=3.0)
    strategy = config.build(densify_until=0)
    strategy.setup(gaussians, extent=1.0, iterations=30_000, seed=0)
    nothing: Any = out
    assert strategy.loss(15_000, gaussians, nothing) is None
    want = 2 * (4e-4 * o + 3e-5 * o**2).sum() + 3 * (o * (1 - o)).mean()
    got = strategy.loss(15_001, gaussians, nothing)
    assert got is not None
    torch.testing.assert_close(got, want)


def test_next_on_the_curve() -> None:
    x = torch.tensor([0.0, 0.3, 0.1, 0.2, 9.0, 9.1])
    means = torch.stack([x, 0 * x, 0 * x], -1)
    # along the line, but for the way from 0.3 to 9, and for the last
    assert next_on_curve(means).tolist() == [2, 1, 3, 1, 5, 5]
    assert next_on_curve(means[:1]).tolist() == [0]


def test_smoothness_and_its_gradient() -> None:
    gaussians = cloud()
    rows = next_on_curve(gaussians.params["means"].detach())
    gaussians.rows[NEXT] = rows
    x, z = gaussians.params["means"].detach(), gaussians.params["sh0"].detach()[:, 0]
    want = ((z - z[rows]).abs().sum(-1) * (x - x[rows]).norm(dim=-1)).mean()
    loss = smoothness(gaussians)
    torch.testing.assert_close(loss.detach(), want, rtol=1e-4, atol=1e-7)
    loss.backward()
    for name in ("means", "sh0"):
        gradient = gaussians.params[name].grad
        assert gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())


class Case:
    def __init__(self, **settings: Any) -> None:
        self.gaussians = cloud()
        self.strategy = PolarizedConfig(**settings).build(densify_until=0)
        self.strategy.setup(self.gaussians, extent=1.0, iterations=30_000, seed=0)
        self.optimizer = build_optimizer(self.gaussians, OptimConfig(), extent=1.0)

    def run(self, step: int, gradient: float = 1.0) -> Tensor | None:
        """The term of a step's loss, and what follows backward."""
        nothing: Any = None
        term = self.strategy.loss(step, self.gaussians, nothing)
        for parameter in self.gaussians.params.values():
            parameter.grad = torch.full_like(parameter, gradient)
        ctx = StepContext(self.gaussians, self.optimizer, nothing, nothing, 1.0, 30_000)
        self.strategy.after_backward(step, ctx)
        return term


def test_smoothness_weighs_its_share_of_the_gradient() -> None:
    case = Case(lambda_sum=0.0, smooth_share=0.1)
    assert case.run(15_001) == 0  # there are no neighbours yet
    term = case.run(15_002)
    assert term is not None
    (own,) = torch.autograd.grad(term, case.gaussians.params["means"])
    # ones everywhere have the norm sqrt(90)
    assert own.norm().item() == pytest.approx(0.1 * math.sqrt(90), rel=1e-4)
    weight = case.strategy.state_dict()["weight"]
    case.run(15_500, gradient=2.0)
    assert case.strategy.state_dict()["weight"] == weight
    case.run(16_000, gradient=2.0)
    assert case.strategy.state_dict()["weight"] == pytest.approx(2 * weight)


def test_the_faint_go_and_neighbours_are_found_anew() -> None:
    case = Case(smooth_share=0.1)
    case.run(15_001)
    case.gaussians.params["opacities"].data[5:9] = -6.0  # 0.0025
    case.run(15_050)
    assert len(case.gaussians) == 30
    case.run(15_100)
    assert len(case.gaussians) == 26 and not {5, 6, 7, 8} & {*case.gaussians.rows["ids"].tolist()}
    means = case.gaussians.params["means"]
    assert torch.equal(case.gaussians.rows[NEXT], next_on_curve(means.detach()))
    case.run(15_200)
    assert case.gaussians.params["means"] is means  # captured steps go on


def test_schedule_and_phases() -> None:
    config = PolarizedConfig(smooth_share=0.1)
    assert config.scaled(14 / 30).polarize_from_iter == 7000
    assert (config.scaled(0.1).prune_interval, config.scaled(0.1).renew_interval) == (50, 100)
    post = config.post_training(30_000, 35_000)
    assert (post.polarize_from_iter, post.prune_interval) == (30_000, 100)
    assert config.post_training(30_000, 30_040).prune_interval == 20
    phases = {step: Case().strategy.phase(step) for step in (15_000, 15_001, 15_100)}
    assert phases == {15_000: "waiting", 15_001: "pushing", 15_100: None}
    strategy = config.build(densify_until=0)
    assert strategy.phase(15_001) is strategy.phase(16_000) is None


def make(scene: Scene, out: Path, start: Any = None, **settings: Any) -> Trainer:
    config = PolarizedConfig(
        polarize_from_iter=5,
        lambda_sum=300.0,
        lambda_polar=0.1,
        smooth_share=0.2,
        faint_opacity=0.05,
        prune_interval=8,
        renew_interval=10,
    )
    train = TrainConfig(out, iterations=34, quiet=True, device="cpu", **settings)
    return Trainer(train, scene, strategies=[config.build(densify_until=0)], start=start)


def test_a_run_thins_out_and_resumes(scene: Scene, tmp_path: Path) -> None:
    whole = make(scene, tmp_path / "whole", checkpoint_iterations=(18,))
    whole.fit()
    assert 0 < len(whole.gaussians) < 80
    start = load_checkpoint(tmp_path / "whole" / "chkpnt18.pth")
    resumed = make(scene, tmp_path / "resumed", start)
    resumed.fit()
    for name, x in whole.gaussians.params.items():
        assert torch.equal(resumed.gaussians.params[name], x), name
