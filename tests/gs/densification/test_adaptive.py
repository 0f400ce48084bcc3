import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.densification.adaptive import (
    GRADIENTS,
    VIEWS,
    DefaultDensifier,
    DensifyConfig,
    add_statistics,
    split,
)
from gs.model.gaussians import Gaussians
from gs.model.morton import morton_order
from gs.model.rates import OptimConfig
from gs.model.rows import gather_rows, keep_rows
from gs.model.specs import ParameterSpec
from gs.training.optimizer import build_optimizer, optimizer_state
from gs.training.strategy import StepContext, Strategy, rows_to_prune

MASK_LOGITS = ParameterSpec("mask_logits", (2,), lr=0.01, order=35)

EXTENT = 10.0  # clone up to a scale of 0.1, too large from 1.0
WIDTH, HEIGHT = 40, 30


class Case:
    """A model with its optimizer after one step, and a densifier."""

    def __init__(
        self,
        scales: list[float],
        *,
        config: DensifyConfig | None = None,
        opacity: float = 0.5,
        strategies: tuple[Strategy, ...] = (),
        seed: int = 0,
    ) -> None:
        n = len(scales)
        generator = torch.Generator().manual_seed(7)
        points = torch.randn(n, 3, generator=generator)
        self.gaussians = Gaussians.from_points(points, torch.rand(n, 3), sh_degree=1)
        with torch.no_grad():
            self.gaussians.params["scales"].copy_(torch.tensor(scales).log()[:, None].repeat(1, 3))
            self.gaussians.params["quats"].copy_(torch.randn(n, 4, generator=generator))
            self.gaussians.params["opacities"].fill_(math.log(opacity / (1 - opacity)))
        self.gaussians.add_parameter(MASK_LOGITS, torch.randn(n, 2, generator=generator))
        self.densifier = DefaultDensifier(config or DensifyConfig())
        self.densifier.setup(self.gaussians, extent=EXTENT, iterations=30_000, seed=seed)
        self.optimizer = build_optimizer(self.gaussians, OptimConfig(), extent=EXTENT)
        for parameter in self.gaussians.params.values():
            parameter.grad = torch.ones_like(parameter) * 1e-3
        self.optimizer.step()
        self.strategies = (self.densifier, *strategies)

    def run(
        self, step: int, ndc: list[float], *, seen: list[bool] | None = None, white: bool = False
    ) -> None:
        """One call of after_backward with these NDC gradient norms."""
        pixel = torch.tensor(ndc) / torch.tensor(WIDTH / 2.0)
        gradients = torch.stack([pixel, torch.zeros_like(pixel)], -1)[None]
        visible = torch.tensor(seen if seen is not None else [True] * len(ndc))
        out = rendering(gradients, visible[None])
        self.densifier.after_backward(step, self.context(out, white))

    def context(self, out: Any, white: bool = False) -> StepContext:
        no_camera: Any = None  # densifiers do not ask for it
        return StepContext(
            gaussians=self.gaussians,
            optimizer=self.optimizer,
            out=out,
            camera=no_camera,
            extent=EXTENT,
            iterations=30_000,
            white_background=white,
            strategies=self.strategies,
        )

    def copy(self) -> dict[str, Tensor]:
        return {name: x.clone() for name, x in self.gaussians.to_tensors().items()}


class Out:
    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info


def rendering(gradients: Tensor, visible: Tensor) -> Any:  # [C, N, 2], [C, N]
    means2d = torch.zeros_like(gradients, requires_grad=True)
    means2d.grad = gradients
    radii = torch.where(visible[..., None], 3, 0).expand(-1, -1, 2).int()
    return Out({"means2d": means2d, "radii": radii, "width": WIDTH, "height": HEIGHT})


def test_statistics_are_ndc_norms_over_visible_views() -> None:
    case = Case([0.05] * 3)
    gradients = torch.tensor([[[3e-3, 4e-3], [1.0, 0.0], [0.0, 0.0]]])
    visible = torch.tensor([[True, False, True]])
    add_statistics(case.gaussians, rendering(gradients, visible).info)
    add_statistics(case.gaussians, rendering(gradients, visible).info)
    # Width 40, height 30: (3e-3 * 20, 4e-3 * 15) has the norm sqrt(0.06^2 + 0.06^2).
    want = 2 * math.hypot(0.06, 0.06)
    assert case.gaussians.rows[GRADIENTS].tolist() == pytest.approx([want, 0.0, 0.0])
    # Seen without a gradient (not sampled) counts as a view; unseen does not.
    assert case.gaussians.rows[VIEWS].tolist() == [2.0, 0.0, 2.0]


def test_statistics_add_up_cameras_and_need_both_radii() -> None:
    case = Case([0.05] * 2)
    gradients = torch.tensor([[[1e-3, 0.0], [2e-3, 0.0]], [[3e-3, 0.0], [5e-3, 0.0]]])
    out = rendering(gradients, torch.ones(2, 2, dtype=torch.bool))
    radii = out.info["radii"].clone()
    radii[1, 1, 1] = 0
    out.info["radii"] = radii
    add_statistics(case.gaussians, out.info)
    assert case.gaussians.rows[GRADIENTS].tolist() == pytest.approx([0.08, 0.04])
    assert case.gaussians.rows[VIEWS].tolist() == [2.0, 1.0]


def test_statistics_without_backward_are_refused() -> None:
    case = Case([0.05])
    info = rendering(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool)).info
    info["means2d"].grad = None
    with pytest.raises(ValueError, match="backward"):
        add_statistics(case.gaussians, info)


def test_clone_and_split_by_gradient_and_size() -> None:
    #        still small, moving small, still large, moving large, at the limits
    case = Case([0.05, 0.05, 0.5, 0.5, 0.0999])
    before = case.copy()
    case.run(600, [1e-4, 3e-4, 1e-4, 3e-4, 2.001e-4])
    gaussians = case.gaussians
    # Survivors in their order, then the clones of 1 and 4, then both children of 3.
    assert gaussians.rows["ids"].tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    for name, values in before.items():
        new = gaussians.params[name]
        assert torch.equal(new[:4], values[[0, 1, 2, 4]]), name
        assert torch.equal(new[4:6], values[[1, 4]]), name
        if name not in ("means", "scales"):
            assert torch.equal(new[6:], values[[3, 3]]), name
    torch.testing.assert_close(gaussians.get_scales()[6:], before["scales"][[3, 3]].exp() / 1.6)
    assert not torch.equal(gaussians.params["means"][6], gaussians.params["means"][7])
    assert case.densifier.scalars(600) == {"n_cloned": 2.0, "n_split": 1.0, "n_pruned": 0.0}


def test_new_rows_have_no_moments_and_statistics_start_afresh() -> None:
    case = Case([0.05, 0.5])
    case.run(600, [3e-4, 3e-4])
    state = optimizer_state(case.optimizer)
    for name in case.gaussians.params:
        for key in ("exp_avg", "exp_avg_sq"):
            assert state[name][key][0].abs().max() > 0, name
            assert state[name][key][1:].abs().max() == 0, name
    assert case.gaussians.rows[GRADIENTS].tolist() == [0.0] * 4
    assert case.gaussians.rows[VIEWS].tolist() == [0.0] * 4


def test_the_mean_counts_and_not_the_sum() -> None:
    case = Case([0.05, 0.05, 0.05])
    for step in range(590, 600):
        case.run(step, [1.5e-4, 3e-4, 0.0], seen=[True, step % 2 == 0, True])
    assert len(case.gaussians) == 3  # nothing happens between the multiples of 100
    case.run(600, [1.5e-4, 9.0, 9.0], seen=[True, False, False])
    assert case.gaussians.rows["ids"].tolist() == [0, 1, 2, 3]  # one clone, of row 1
    assert torch.equal(case.gaussians.params["means"][3], case.gaussians.params["means"][1])


def test_unseen_gaussians_stay() -> None:
    case = Case([0.05, 0.5])
    case.run(600, [1.0, 1.0], seen=[False, False])
    assert case.gaussians.rows["ids"].tolist() == [0, 1]


@pytest.mark.parametrize("step", [100, 500, 550, 15_000, 15_100])
def test_no_densification_outside_the_schedule(step: int) -> None:
    case = Case([0.05, 0.5], opacity=0.001)
    case.run(step, [1.0, 1.0])
    assert case.gaussians.rows["ids"].tolist() == [0, 1]


def test_faint_gaussians_and_faint_clones_go() -> None:
    case = Case([0.05] * 3)
    with torch.no_grad():
        case.gaussians.params["opacities"][1] = math.log(0.004 / 0.996)
        case.gaussians.params["opacities"][2] = math.log(0.006 / 0.994)
    case.run(600, [0.0, 1.0, 0.0])
    assert case.gaussians.rows["ids"].tolist() == [0, 2]
    assert case.densifier.scalars(600)["n_pruned"] == 2.0


def test_large_gaussians_go_after_the_first_opacity_reset() -> None:
    scales = [0.05, 0.99, 1.01]
    case = Case(scales)
    case.run(3000, [0.0] * 3)
    assert case.gaussians.rows["ids"].tolist() == [0, 1, 2]
    case = Case(scales)
    case.run(3100, [0.0] * 3)
    assert case.gaussians.rows["ids"].tolist() == [0, 1]
    # A parent of scale 1.01 splits first, and its children are small enough to stay.
    case = Case(scales)
    case.run(3100, [0.0, 0.0, 1.0])
    assert case.gaussians.rows["ids"].tolist() == [0, 1, 3, 4]


def test_other_strategies_name_rows_after_growth() -> None:
    class EveryOther(Strategy):
        def prune_rows(self, step: int, gaussians: Gaussians) -> Tensor:
            assert step == 600
            return gaussians.rows["ids"] % 2 == 1

    case = Case([0.05, 0.05, 0.5], strategies=(Strategy(), EveryOther()))
    case.run(600, [1.0, 0.0, 1.0])  # ids 0 1, clone 3, children 4 5 of 2
    assert case.gaussians.rows["ids"].tolist() == [0, 4]


def test_opacity_reset() -> None:
    case = Case([0.05] * 3)
    with torch.no_grad():
        case.gaussians.params["opacities"].copy_(torch.tensor([3.0, -2.0, -5.0]))
    case.run(3000, [0.0] * 3)
    got = case.gaussians.get_opacities()
    assert got.tolist() == pytest.approx([0.01, 0.01, 1 / (1 + math.exp(5.0))], rel=1e-5)
    state = optimizer_state(case.optimizer)
    assert state["opacities"]["exp_avg"].abs().max() == 0
    assert state["opacities"]["exp_avg_sq"].abs().max() == 0
    assert state["means"]["exp_avg"].abs().min() > 0


@pytest.mark.parametrize("white", [False, True])
def test_opacity_reset_at_the_start_of_densification_on_white(white: bool) -> None:
    case = Case([0.05])
    before = case.gaussians.get_opacities().item()
    case.run(500, [0.0], white=white)
    after = case.gaussians.get_opacities().item()
    assert after == (pytest.approx(0.01, rel=1e-5) if white else before)


def test_no_opacity_reset_after_densification() -> None:
    case = Case([0.05])
    opacity = case.gaussians.get_opacities().item()
    case.run(15_000, [0.0])
    assert case.gaussians.get_opacities().item() == opacity


def test_children_follow_their_parents_density() -> None:
    n = 20_000
    case = Case([1.0])
    with torch.no_grad():
        case.gaussians.params["scales"][0] = torch.tensor([0.5, 2.0, 1.0]).log()
        case.gaussians.params["quats"][0] = torch.tensor([2.0, 0.0, 0.0, 2.0])  # 90 deg about z
    noise = torch.randn(2, n, 3, generator=torch.Generator().manual_seed(0))
    children = split(case.gaussians, torch.zeros(n, dtype=torch.int64), noise)
    offsets = children["means"] - case.gaussians.params["means"].detach()
    assert offsets.shape == (2 * n, 3)
    # About z, the axis of 0.5 turns to y and that of 2 to x.
    want = torch.diag(torch.tensor([4.0, 0.25, 1.0]))
    torch.testing.assert_close(torch.cov(offsets.T), want, rtol=0.03, atol=0.03)
    assert offsets.mean(0).abs().max() < 0.04


def test_splits_repeat_with_the_seed_and_differ_by_step() -> None:
    def children(seed: int, step: int) -> Tensor:
        case = Case([0.5, 0.5], seed=seed)
        case.run(step, [1.0, 1.0])
        return case.gaussians.params["means"].detach().clone()

    assert torch.equal(children(3, 600), children(3, 600))
    assert not torch.equal(children(3, 600), children(4, 600))
    assert not torch.equal(children(3, 600), children(3, 700))


def test_the_noise_of_a_child_is_its_parent_s() -> None:
    densifier = DefaultDensifier(DensifyConfig())
    ids = torch.arange(20_000, dtype=torch.int32)
    noise = densifier._noise(600, ids)
    assert torch.equal(densifier._noise(600, ids[[7, 3]]), noise[:, [7, 3]])
    assert noise.shape == (2, 20_000, 3) and noise.dtype == torch.float32
    samples = noise.permute(0, 2, 1).flatten(0, 1)  # by child and axis
    # deviations of 20,000 samples' moments: 0.007, 0.005, and 0.007 of products
    assert samples.mean(1).abs().max() < 0.03 and (samples.std(1) - 1).abs().max() < 0.02
    assert (samples @ samples.T / 20_000 - torch.eye(6)).abs().max() < 0.04


class Seventh(Strategy):
    """Looks at everything that a grown model has, and drops what it sees fit."""

    def prune_rows(self, step: int, gaussians: Gaussians) -> Tensor:
        n = len(gaussians)
        assert all(len(x) == n for x in (*gaussians.params.values(), *gaussians.rows.values()))
        mixed = gaussians.params["means"][:, 0] + gaussians.rows["sums"]
        return (gaussians.rows["ids"] % 7 == 0) | (mixed > 1.5)


def append(case: Case, sources: Tensor, values: dict[str, Tensor] | None = None) -> None:
    """Add copies of some rows, with fresh ids and with `values` in place of theirs."""
    gaussians, n = case.gaussians, len(case.gaussians)
    first, gaussians.next_id = gaussians.next_id, gaussians.next_id + len(sources)
    new_ids = torch.arange(first, gaussians.next_id, dtype=torch.int32)
    rows = torch.cat([torch.arange(n), sources])
    gather_rows(gaussians, case.optimizer, rows, n_kept=n, new_ids=new_ids, last=values)


def in_steps(case: Case, step: int) -> None:
    """Clone, then split, then prune: every edit made where the published loop makes it."""
    gaussians, optimizer, config = case.gaussians, case.optimizer, case.densifier.config
    means = (gaussians.rows[GRADIENTS] / gaussians.rows[VIEWS]).nan_to_num(nan=0.0)
    moving = means >= config.densify_grad_threshold
    small = gaussians.get_scales().amax(-1) <= config.percent_dense * EXTENT
    parents = (moving & ~small).nonzero()[:, 0]
    append(case, (moving & small).nonzero()[:, 0])
    noise = case.densifier._noise(step, gaussians.rows["ids"][parents])
    append(case, parents.repeat(2), split(gaussians, parents, noise))
    keep = torch.ones(len(gaussians), dtype=torch.bool)
    keep[parents] = False
    keep_rows(gaussians, optimizer, keep)
    drop = gaussians.get_opacities() < config.min_opacity
    if step > config.opacity_reset_interval:
        drop |= gaussians.get_scales().amax(-1) > 0.1 * EXTENT
    others = rows_to_prune(step, gaussians, case.strategies)
    assert others is not None and others.any()
    keep_rows(gaussians, optimizer, ~(drop | others))
    for name in (GRADIENTS, VIEWS):
        gaussians.rows[name] = torch.zeros_like(gaussians.rows[name])


@pytest.mark.parametrize("moving", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("large", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("step", [600, 3100])
def test_one_gather_equals_edit_after_edit(step: int, large: float, moving: float) -> None:
    n, cases = 150, []
    for _ in range(2):
        torch.manual_seed(0)  # of the colours
        g = torch.Generator().manual_seed(11)
        scales = torch.where(torch.rand(n, generator=g) < large, 1.1, 0.05)
        case = Case((scales * (0.5 + torch.rand(n, generator=g))).tolist(), strategies=(Seventh(),))
        case.gaussians.params["opacities"].data = 3 * torch.randn(n, generator=g) - 3
        for parameter in case.gaussians.params.values():
            parameter.grad = torch.randn(parameter.shape, generator=g)
        case.optimizer.step()
        case.gaussians.rows["sums"] = torch.rand(n, generator=g)
        case.gaussians.rows[VIEWS] = torch.randint(0, 3, (n,), generator=g).float()
        hot = torch.rand(n, generator=g) < moving
        case.gaussians.rows[GRADIENTS] = case.gaussians.rows[VIEWS] * hot * 1e-3
        cases.append(case)
    one, other = cases
    context = one.context(Out({}))
    one.densifier.densify(step, context)
    in_steps(other, step)
    assert one.gaussians.next_id == other.gaussians.next_id
    assert one.gaussians.rows.keys() == other.gaussians.rows.keys()
    for name, rows in other.gaussians.rows.items():
        assert torch.equal(one.gaussians.rows[name], rows), name
        assert one.gaussians.rows[name].dtype == rows.dtype
    state, want = optimizer_state(one.optimizer), optimizer_state(other.optimizer)
    for name, values in other.gaussians.params.items():
        assert torch.equal(one.gaussians.params[name], values), name
        assert one.gaussians.params[name].grad is None
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(state[name][key], want[name][key]), (name, key)
    assert 0 < len(one.gaussians) != n


def test_reordering_moves_rows_with_all_that_is_theirs() -> None:
    plain, sorted_ = (
        Case([0.05] * 30 + [0.5] * 10, config=DensifyConfig(reorder=reorder))
        for reorder in (False, True)
    )
    for name, parameter in plain.gaussians.params.items():
        sorted_.gaussians.params[name].data.copy_(parameter)  # its colours were drawn apart
    for case in (plain, sorted_):
        case.gaussians.rows["sums"] = torch.arange(40.0)
        case.run(600, [1.0, 0.0] * 20)
    order = morton_order(plain.gaussians.params["means"].detach())
    assert order.tolist() != list(range(len(order)))
    for name, rows in plain.gaussians.rows.items():
        assert torch.equal(sorted_.gaussians.rows[name], rows[order]), name
    states = [optimizer_state(case.optimizer) for case in (plain, sorted_)]
    for name, parameter in plain.gaussians.params.items():
        assert torch.equal(sorted_.gaussians.params[name], parameter[order]), name
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(states[1][name][key], states[0][name][key][order]), name
    assert plain.gaussians.next_id == sorted_.gaussians.next_id


def test_resumed_densifier_goes_on_alike() -> None:
    first, second = Case([0.5, 0.05], seed=3), Case([0.5, 0.05], seed=99)
    first.run(599, [1.0, 1.0])
    second.gaussians.rows.update({k: x.clone() for k, x in first.gaussians.rows.items()})
    second.densifier.setup(second.gaussians, extent=EXTENT, iterations=30_000, seed=99)
    assert second.gaussians.rows[VIEWS].tolist() == [1.0, 1.0]  # setup leaves them as they are
    second.densifier.load_state_dict(first.densifier.state_dict())
    for case in (first, second):
        case.run(600, [1.0, 0.0])
    assert torch.equal(first.gaussians.params["means"], second.gaussians.params["means"])
