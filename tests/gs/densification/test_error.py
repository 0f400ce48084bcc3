"""The densifier by absolute gradients: splits in closed form, exact budgets, recovery."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.adaptive import VIEWS, rotate
from gs.densification.error import ABSOLUTE, ErrorConfig, ErrorDensifier, lowest, split_long_axis
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig
from gs.training.optimizer import build_optimizer
from gs.training.strategy import StepContext, Strategy
from gs.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, HEIGHT = 40, 30


def model(n: int, opacity: float = 0.5) -> Gaussians:
    g = torch.Generator().manual_seed(5)
    points = torch.randn(n, 3, generator=g)
    gaussians = Gaussians.from_points(points, torch.rand(n, 3, generator=g), sh_degree=1)
    gaussians.params["scales"].data = 0.5 * torch.randn(n, 3, generator=g) - 2.0
    gaussians.params["quats"].data = torch.randn(n, 4, generator=g)
    gaussians.params["opacities"].data.fill_(math.log(opacity / (1 - opacity)))
    return gaussians


class Case:
    """A model, its optimizer after one step, and the densifier."""

    def __init__(self, n: int, config: ErrorConfig, *others: Strategy, opacity: float = 0.5):
        self.gaussians = model(n, opacity)
        self.densifier = config.build()
        self.densifier.setup(self.gaussians, extent=10.0, iterations=30_000, seed=0)
        self.optimizer = build_optimizer(self.gaussians, OptimConfig(), extent=10.0)
        for parameter in self.gaussians.params.values():
            parameter.grad = torch.full_like(parameter, 1e-3)
        self.optimizer.step()
        self.strategies = (self.densifier, *others)

    def run(self, step: int, means: list[float] | None = None) -> None:
        """after_backward of a step; `means` are the mean absolute gradients by then."""
        n = len(self.gaussians)
        if means is not None:
            self.gaussians.rows[ABSOLUTE] = 3.0 * torch.tensor(means)
            self.gaussians.rows[VIEWS] = torch.full((n,), 3.0)
        out = rendering(torch.zeros(1, n, 2), torch.zeros(1, n, dtype=torch.bool))
        self.densifier.after_backward(step, self.context(out))

    def context(self, out: Any) -> StepContext:
        parts = self.gaussians, self.optimizer, out, out
        return StepContext(*parts, 10.0, 30_000, strategies=self.strategies)

    @property
    def ids(self) -> list[int]:
        return self.gaussians.rows["ids"].tolist()


def rendering(absolute: Tensor, visible: Tensor) -> Any:  # [C, N, 2], [C, N]
    means2d = torch.zeros_like(absolute)
    means2d.absgrad = absolute  # type: ignore[attr-defined]
    radii = torch.where(visible[..., None], 3, 0).expand(-1, -1, 2).int()
    info = {"means2d": means2d, "radii": radii, "width": WIDTH, "height": HEIGHT}
    return SimpleNamespace(info=info)


def quiet(**settings: Any) -> ErrorConfig:
    """Settings without resets and first cut, in which only densification acts."""
    settings = {"budget": "1000", "opacity_resets": 0, "first_prune_iter": 0} | settings
    return ErrorConfig(**settings)


def test_a_split_along_the_long_axis() -> None:
    params = {
        "means": torch.zeros(1, 3),
        "scales": torch.tensor([[2.0, 1.0, 0.5]]).log(),
        "quats": torch.tensor([[1.0, 0, 0, 0]]),
        "opacities": torch.tensor([math.log(0.8 / 0.2)]),
    }
    children = split_long_axis(params, distance=0.45, opacity_share=0.6)
    assert children["means"].tolist() == [
        pytest.approx([2.7, 0, 0], abs=1e-6),
        pytest.approx([-2.7, 0, 0], abs=1e-6),
    ]
    for k in range(2):
        assert children["scales"][k].exp().tolist() == pytest.approx(
            [1.1, 0.89303, 0.44651], abs=1e-5
        )
        assert children["opacities"][k].item() == pytest.approx(-0.08004, abs=1e-5)


def test_children_end_where_their_parent_ended() -> None:
    params = {name: x.detach() for name, x in model(20).params.items()}
    for d in (0.1, 0.3, 0.5):
        children = split_long_axis(params, distance=d, opacity_share=0.6)
        scales, longest = params["scales"].exp().max(-1)
        axis = rotate(params["quats"], torch.eye(3)[longest])
        for k, sign in ((0, 1.0), (1, -1.0)):
            means = children["means"].view(2, 20, 3)[k]
            reach = ((means - params["means"]) * axis).sum(-1) * sign
            own = children["scales"].view(2, 20, 3)[k].exp().gather(1, longest[:, None])[:, 0]
            torch.testing.assert_close(reach + 3.0 * own, 3.0 * scales)


def test_the_budget_grows_with_the_root_of_time() -> None:
    config = ErrorConfig(budget="1000000")
    assert [config.target(step, 0) for step in (600, 4000, 7500)] == [84515, 500000, 707106]
    assert config.target(14_500, 0) == config.target(14_900, 0) == 1_000_000
    start = ErrorConfig(budget="1000000", growth_from="start")
    assert start.target(4000, 200_000) == 600_000
    half = config.scaled(0.5)
    assert half.target(3750, 0) == pytest.approx(707106, abs=200)
    assert ErrorConfig(budget="2x").target(20_000, 150) == 300


def test_growth_fills_the_budget_and_no_more() -> None:
    config = quiet(budget="14")
    case = Case(10, config)
    before = {name: x.detach().clone() for name, x in case.gaussians.params.items()}
    case.run(14_900, [1e-3] * 6 + [1e-5] * 4)
    assert len(case.gaussians) == 14
    kept = [i for i in case.ids if i < 10]
    assert len(kept) == 6 and set(kept) > {6, 7, 8, 9}
    assert case.ids[6:] == [10, 11, 12, 13, 14, 15, 16, 17]
    for name, values in before.items():
        assert torch.equal(case.gaussians.params[name][:6], values[kept]), name
        moments = case.optimizer.state[case.gaussians.params[name]]["exp_avg"]
        assert moments[:6].any() and not moments[6:].any(), name
    parents = [i for i in range(10) if i not in kept]
    want = split_long_axis(
        {name: x[parents] for name, x in before.items()}, distance=0.45, opacity_share=0.6
    )
    for name, values in want.items():
        assert torch.equal(case.gaussians.params[name][6:], values), name
    assert torch.equal(case.gaussians.params["sh0"][6:], before["sh0"][parents].repeat(2, 1, 1))
    assert case.densifier.scalars(14_900) == {"n_split": 4.0, "n_pruned": 0.0}
    assert not case.gaussians.rows[ABSOLUTE].any() and not case.gaussians.rows[VIEWS].any()

    case.run(14_900, [1e-3] * 14)
    assert len(case.gaussians) == 14


def test_few_candidates_all_split() -> None:
    case = Case(10, quiet())
    case.run(14_900, [1e-3, 2.99e-4] + [3e-4] * 2 + [0.0] * 6)
    assert case.ids == [1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]


class Names(Strategy):
    """Names row 2 for pruning."""

    def prune_rows(self, step: int, gaussians: Gaussians) -> Tensor:
        return gaussians.rows["ids"] == 2


def test_what_goes_makes_room_and_does_not_split() -> None:
    case = Case(10, quiet(budget="10"), Names())
    case.gaussians.params["opacities"].data[[0, 1]] = -8.0
    case.run(14_900, [1e6] * 3 + [1e-3] * 7)
    assert len(case.gaussians) == 10
    assert {0, 1, 2}.isdisjoint(case.ids)
    assert case.densifier.scalars(14_900) == {"n_split": 3.0, "n_pruned": 3.0}


def test_draws_follow_the_gradient() -> None:
    case = Case(400, quiet(budget="450"))
    case.run(14_900, [1e-3, 1e-2] * 200)
    split = sorted(set(range(400)) - set(case.ids))
    assert len(split) == 50
    # 10 to 1, less as the likelier run out: 5 sigma of a binomial of 50 are 0.2
    assert sum(i % 2 for i in split) / 50 > 0.68


def test_opacities_have_a_ceiling_where_asked() -> None:
    case = Case(10, quiet(opacity_ceiling=0.8), opacity=0.95)
    case.run(14_900, [0.0] * 10)
    assert case.gaussians.get_opacities().tolist() == pytest.approx([0.8] * 10)
    free = Case(10, quiet(), opacity=0.95)
    free.run(14_900, [0.0] * 10)
    assert min(free.gaussians.get_opacities().tolist()) > 0.9


def test_resets_and_recovery() -> None:
    config = ErrorConfig(budget="1000", opacity_resets=2)
    case = Case(10, config)
    case.run(300)
    assert len(case.gaussians) == 10
    case.gaussians.params["opacities"].data[3] = math.log(0.019 / 0.981)
    case.run(300)
    assert case.ids == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    case.run(3000)
    assert case.gaussians.get_opacities().tolist() == pytest.approx([0.05] * 9)
    assert not case.optimizer.state[case.gaussians.params["opacities"]]["exp_avg"].any()
    case.gaussians.params["opacities"].data[:] = torch.arange(9.0)
    case.run(3300)  # the lowest fifth: int(1.8)
    assert case.ids == [1, 2, 4, 5, 6, 7, 8, 9]
    opacities = case.gaussians.params["opacities"].detach().clone()
    for step in (9000, 9300, 3100, 3299):
        case.run(step, [0.0] * 8)
    assert torch.equal(case.gaussians.params["opacities"], opacities)


def test_the_lowest_are_an_exact_number_ties_by_id() -> None:
    values = torch.tensor([0.3, 0.1, 0.1, 0.1, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    ids = torch.tensor([0, 3, 1, 2, 4, 5, 6, 7, 8, 9], dtype=torch.int32)
    drop = lowest(values, 2, ids)
    assert ids[drop].tolist() == [1, 2]
    assert not lowest(values, 0, ids).any()


def test_statistics_are_absolute_ndc_norms() -> None:
    case = Case(3, quiet())
    absolute = torch.tensor([[[3e-3, 4e-3], [1.0, 1.0], [0.0, 0.0]]])
    visible = torch.tensor([[True, False, True]])
    ctx = case.context(rendering(absolute, visible))
    for step in (601, 602):
        case.densifier.after_backward(step, ctx)
    want = 2 * math.hypot(3e-3 * WIDTH / 2, 4e-3 * HEIGHT / 2)
    assert case.gaussians.rows[ABSOLUTE].tolist() == pytest.approx([want, 0, 0])
    assert case.gaussians.rows[VIEWS].tolist() == [2, 0, 2]
    ctx.skip = torch.ones(1, dtype=torch.int32)
    case.densifier.after_backward(603, ctx)
    assert case.gaussians.rows[VIEWS].tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match="absgrad"):
        add = rendering(absolute, visible)
        del add.info["means2d"].absgrad
        case.densifier.after_backward(604, case.context(add))


def test_absolute_gradients_are_asked_for_while_they_are_gathered() -> None:
    densifier = ErrorDensifier(ErrorConfig(budget="1000"))
    gaussians = model(3)
    assert densifier.before_render(14_999, gaussians) == {"absgrad": True}
    assert densifier.before_render(15_000, gaussians) == {}
    alike = {step: densifier.phase(step) for step in (1, 299, 301, 601, 2999, 3001, 3301)}
    assert set(alike.values()) == {"gathering"}
    for step in (300, 600, 3000, 3300, 6300, 12_300):
        assert densifier.phase(step) is None, step
    assert densifier.phase(15_000) == densifier.phase(30_000) == "done"


def test_settings_scale_with_the_run() -> None:
    short = ErrorConfig(budget="5000").scaled(14 / 30)
    assert (short.densify_from_iter, short.densify_until_iter) == (233, 7000)
    assert (short.densification_interval, short.first_prune_iter) == (50, 140)
    # every Gaussian has to be seen again
    assert (short.opacity_reset_interval, short.recovery_delay) == (1400, 300)
    assert short.opacity_resets == 4 and ErrorConfig().scaled(0.1).opacity_resets == 0
    fast = short.hastened()
    assert (fast.densification_interval, fast.opacity_resets) == (150, 0)
    with pytest.raises(SplatrimError, match="give a number of Gaussians"):
        ErrorConfig(budget="many")


def test_a_budget_below_the_start_is_refused() -> None:
    densifier = ErrorConfig(budget="10").build()
    with pytest.raises(SplatrimError, match="--budget 10 is less than the 11 Gaussians"):
        densifier.setup(model(11), extent=1.0, iterations=30_000, seed=0)


def test_a_run_never_exceeds_its_budget(scene: Scene, tmp_path: Path) -> None:
    config = ErrorConfig(
        densify_from_iter=3,
        densify_until_iter=30,
        densification_interval=3,
        densify_grad_threshold=1e-6,
        budget="1.5x",
        first_prune_iter=0,
        opacity_resets=0,
    )
    train = TrainConfig(tmp_path, iterations=32, quiet=True, device="cpu")
    trainer = Trainer(train, scene, strategies=[config.build()])
    n_start, counts = len(trainer.gaussians), []
    for step in range(1, 32):
        trainer.train_step(step)
        counts.append(len(trainer.gaussians))
    assert max(counts) == int(1.5 * n_start) == counts[-1]
    assert counts == sorted(counts)
