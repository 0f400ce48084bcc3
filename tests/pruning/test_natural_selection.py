"""Natural selection: its gradients in closed form, how it is steered, who is left, whole runs."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig
from gs.training.checkpoint import load_checkpoint
from gs.training.optimizer import build_optimizer
from gs.training.strategy import StepContext
from gs.training.trainer import Trainer
from pruning.natural_selection import (
    NaturalSelection,
    NaturalSelectionConfig,
    decay_gradient,
    pressure_gradient,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def cloud(logits: Tensor) -> Gaussians:
    points = torch.rand(len(logits), 3, generator=torch.Generator().manual_seed(1))
    gaussians = Gaussians.from_points(points, points, sh_degree=0)
    gaussians.params["opacities"].data.copy_(logits)
    return gaussians


class Case:
    """A model under selection, and its optimizer."""

    def __init__(self, logits: Tensor, **settings: Any) -> None:
        self.gaussians = cloud(logits)
        self.strategy = NaturalSelectionConfig(**settings).build(densify_until=0)
        self.strategy.setup(self.gaussians, extent=1.0, iterations=30_000, seed=3)
        self.optimizer = build_optimizer(self.gaussians, OptimConfig(), extent=1.0)

    def run(self, step: int, gradient: float = 0.0) -> Tensor:
        """A step without photometric gradient but of opacities; the gradient that Adam sees."""
        nothing: Any = None
        gaussians = self.gaussians
        ctx = StepContext(gaussians, self.optimizer, nothing, nothing, 1.0, 30_000)
        for parameter in gaussians.params.values():
            parameter.grad = torch.zeros_like(parameter)
        opacities = gaussians.params["opacities"]
        assert opacities.grad is not None
        opacities.grad.fill_(gradient)
        self.strategy.after_backward(step, ctx)
        seen = opacities.grad.clone()
        self.optimizer.step()
        self.strategy.after_step(step, ctx)
        return seen


def test_the_pressure_is_one_number_for_all() -> None:
    v = torch.tensor([0.0, -2.0], requires_grad=True)
    loss = 3 * 2e-4 * (v.mean() + 20).square()
    (want,) = torch.autograd.grad(loss, v)
    assert loss.item() == pytest.approx(0.2166)
    got = pressure_gradient(v.detach(), 2e-4)
    torch.testing.assert_close(got.expand(2), want)
    assert got.item() == pytest.approx(0.0114)


def test_at_first_opacities_fall_by_the_same_share() -> None:
    v = torch.tensor([-3.0, 0.0, 2.0])
    o = v.sigmoid()
    got = decay_gradient(v, 2e-4)
    # moving logits along it changes opacities by o (1 - o) times as much: in proportion to them
    shares = o * (1 - o) * got / o
    torch.testing.assert_close(shares, shares[:1].expand(3))
    x = (v + 20) / (1 - o)
    torch.testing.assert_close(got, 2e-4 * 2 * x.mean() / (3 * (1 - o)))
    # what is nearly opaque is not pushed beyond all measure
    high = decay_gradient(torch.tensor([9.0, 9.0]), 1.0)
    assert high[0].item() == pytest.approx(29 / 0.05 / 0.05, rel=1e-3)


def test_every_fiftieth_step_of_the_window_pushes() -> None:
    case = Case(torch.linspace(-1, 1, 20), survivors="10")
    pushed = {}
    for step in (14_950, 15_001, 15_049, 15_050, 15_100, 15_999, 16_050, 23_050):
        pushed[step] = float(case.run(step).abs().max()) > 0
    assert [step for step, is_pushed in pushed.items() if is_pushed] == [15_050, 15_100, 16_050]
    first = case.run(15_100)
    late = case.run(16_100)
    assert first.unique().numel() > 1 and late.unique().numel() == 1


def test_steps_of_opacities_are_four_times_as_long_while_selecting() -> None:
    moves = {}
    for step in (14_999, 15_001, 22_999, 23_999, 24_001):
        case = Case(torch.zeros(4), survivors="2")
        before = case.gaussians.params["opacities"].detach().clone()
        case.run(step, gradient=1e-3)
        after = case.gaussians.params["opacities"].detach()
        moves[step] = float((after - before).abs().mean())
    # the first step of Adam is as long as the learning rate, 0.05
    want = [0.05, 0.2, 0.2, 0.2, 0.05]
    assert list(moves.values()) == pytest.approx(want, rel=1e-4)


def test_a_skipped_step_moves_nothing() -> None:
    case = Case(torch.zeros(4), survivors="2")
    nothing: Any = None
    ctx = StepContext(case.gaussians, case.optimizer, nothing, nothing, 1.0, 30_000)
    before = case.gaussians.params["opacities"].detach().clone()
    case.strategy.after_backward(15_001, ctx)
    case.strategy.after_step(15_001, ctx)  # as if Adam had been told to skip
    assert torch.equal(case.gaussians.params["opacities"], before)


def test_the_weight_follows_the_goal() -> None:
    strategy = NaturalSelectionConfig(survivors="2").build(densify_until=0)
    opacities = torch.tensor([0.9, 0.5, 0.1, 0.05])
    strategy.steer(15_000, opacities, 2)  # the second largest, 0.5, is where the goal begins
    assert strategy.first_quantile == pytest.approx(0.5)
    assert strategy.goal(15_000) == pytest.approx(0.4)
    assert strategy.goal(18_500) == pytest.approx(0.2) and strategy.goal(22_000) == 0
    weight = strategy.weight
    strategy.steer(15_100, torch.tensor([0.9, 0.35, 0.1]), 2)  # below 0.9 of 0.394
    assert strategy.weight == pytest.approx(0.8 * weight)
    strategy.steer(15_200, torch.tensor([0.9, 0.389, 0.1]), 2)
    assert strategy.weight == pytest.approx(0.8 * weight)
    strategy.steer(15_200, torch.tensor([0.9, 0.6, 0.1]), 2)
    assert strategy.weight == pytest.approx(0.8 * 1.2 * weight)


def test_the_faint_go_and_selection_ends_with_the_wanted_number() -> None:
    logits = torch.full((100,), 1.0)
    logits[:30] = -9.0  # below 0.001
    case = Case(logits, survivors="60")
    case.run(15_050)
    assert len(case.gaussians) == 100  # not before the first thousand iterations
    case.run(16_050)
    assert len(case.gaussians) == 70 and case.strategy.ended is None
    case.gaussians.params["opacities"].data[:8] = -9.0
    case.run(16_100)  # 62 are fewer than 1.05 times 60
    assert len(case.gaussians) == 60 and case.strategy.ended == 16_100
    assert not case.run(16_150).any()
    assert case.strategy.phase(16_150) == case.strategy.phase(17_099) == "boosted"
    assert case.strategy.phase(17_101) == "resting"


def test_the_last_cut_is_drawn_by_opacity() -> None:
    logits = torch.where(torch.arange(1000) % 2 == 0, 3.0, -5.0)  # 142 to 1
    case = Case(logits, survivors="300")
    case.run(23_000)
    assert len(case.gaussians) == 300 and case.strategy.ended == 23_000
    even = (case.gaussians.rows["ids"] % 2 == 0).float().mean().item()
    assert even > 0.95
    again = Case(logits, survivors="300")
    again.run(23_000)
    assert torch.equal(case.gaussians.rows["ids"], again.gaussians.rows["ids"])


def test_few_are_left_alone() -> None:
    case = Case(torch.zeros(5), survivors="9")
    assert not case.run(15_050).any() and case.strategy.ended == 15_050
    assert len(case.gaussians) == 5


def test_the_schedule_scales() -> None:
    config = NaturalSelectionConfig().scaled(14 / 30)
    assert (config.select_from_iter, config.select_until_iter) == (7000, 10_733)
    assert config.select_interval == 50
    demo = NaturalSelectionConfig().scaled(500 / 30_000)
    assert (demo.select_from_iter, demo.select_until_iter, demo.select_interval) == (250, 383, 2)
    post = NaturalSelectionConfig.preset("post").post_training(30_000, 35_000)
    assert (post.select_from_iter, post.select_until_iter) == (30_000, 33_000)
    with pytest.raises(SplatrimError, match="--survivors"):
        NaturalSelectionConfig(survivors="2x")
    with pytest.raises(SplatrimError, match="--select_until_iter"):
        NaturalSelectionConfig(select_from_iter=5, select_until_iter=5)


def test_phases() -> None:
    strategy = NaturalSelectionConfig(survivors="10").build(densify_until=0)
    assert strategy.phase(15_050) is None and strategy.phase(23_000) is None
    assert strategy.phase(15_000) == "resting" and strategy.phase(15_051) == "boosted"
    assert strategy.phase(24_001) == "resting"


def trainer(scene: Scene, out: Path, start: Any = None, **settings: Any) -> Trainer:
    config = NaturalSelectionConfig(
        survivors="50", select_from_iter=5, select_until_iter=29, select_interval=3
    )
    train = TrainConfig(
        out, iterations=36, quiet=True, device="cpu", deterministic=True, **settings
    )
    strategies = [config.build(densify_until=0)]
    return Trainer(train, scene, strategies=strategies, start=start)


def test_a_run_leaves_the_wanted_number_and_resumes(scene: Scene, tmp_path: Path) -> None:
    whole = trainer(scene, tmp_path / "whole", checkpoint_iterations=(17,))
    whole.fit()
    assert len(whole.gaussians) == 50
    start = load_checkpoint(tmp_path / "whole" / "chkpnt17.pth")
    resumed = trainer(scene, tmp_path / "resumed", start)
    resumed.fit()
    for name, x in whole.gaussians.params.items():
        assert torch.equal(resumed.gaussians.params[name], x), name


def test_anchors_are_refused() -> None:
    gaussians = cloud(torch.zeros(3))
    gaussians.parts = 2
    strategy = NaturalSelection(replace(NaturalSelectionConfig(), survivors="2"))
    with pytest.raises(SplatrimError, match="--representation explicit"):
        strategy.setup(gaussians, extent=1.0, iterations=10, seed=0)
    assert math.isclose(strategy.weight, 2e-4)
