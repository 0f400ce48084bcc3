"""Markov chain Monte Carlo: equation 9 in closed form and rendered, draws, budgets, steps."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.data.camera import Camera
from gs.densification.mcmc import MCMCConfig, MCMCDensifier, draw_sources, share, shares
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig
from gs.model.renderer import render
from gs.model.rows import keep_rows
from gs.model.specs import ParameterSpec
from gs.training.optimizer import build_optimizer, optimizer_state
from gs.training.strategy import StepContext, Strategy

MASK_LOGITS = ParameterSpec("mask_logits", (2,), lr=0.01, order=35)

STEP = 1000


def logit(x: Any) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64).logit().float()


def model(n: int, *, seed: int = 0) -> Gaussians:
    """n living Gaussians with masks."""
    g = torch.Generator().manual_seed(seed)
    gaussians = Gaussians.from_points(torch.randn(n, 3, generator=g), torch.rand(n, 3, generator=g))
    gaussians.params["opacities"].data = logit(0.05 + 0.9 * torch.rand(n, generator=g))
    gaussians.params["scales"].data = torch.randn(n, 3, generator=g) - 2
    gaussians.add_parameter(MASK_LOGITS, torch.randn(n, 2, generator=g))
    return gaussians


class Case:
    """A model after one step of its optimizer, and its densifier."""

    def __init__(self, gaussians: Gaussians, *others: Strategy, seed: int = 0, **settings: Any):
        self.gaussians = gaussians
        self.densifier = MCMCConfig(**{"budget": "2x", **settings}).build()
        self.densifier.setup(gaussians, extent=1.0, iterations=30_000, seed=seed)
        self.optimizer = build_optimizer(gaussians, OptimConfig(), extent=1.0)
        out: Any = SimpleNamespace(info={})
        camera: Any = None
        strategies = (self.densifier, *others)
        self.context = StepContext(
            gaussians, self.optimizer, out, camera, 1.0, 30_000, strategies=strategies, step_seed=5
        )
        for parameter in gaussians.params.values():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()

    def run(self, step: int = STEP) -> None:
        self.densifier.after_backward(step, self.context)

    @property
    def counts(self) -> dict[str, float | Tensor]:
        return self.densifier.scalars(STEP)


class Names(Strategy):
    """Names the first k rows for pruning."""

    def __init__(self, k: int) -> None:
        self.k = k

    def prune_rows(self, step: int, gaussians: Gaussians) -> Tensor:
        return torch.arange(len(gaussians)) < self.k


def equation_9(o: float, N: int) -> tuple[float, float]:
    """Opacity and factor of scales by the double sum."""
    new = 1 - (1 - o) ** (1 / N)
    total = sum(
        math.comb(i - 1, k) * (-1) ** k * new ** (k + 1) / math.sqrt(k + 1)
        for i in range(1, N + 1)
        for k in range(i)
    )
    return new, o / total


def test_shares_are_the_papers_sum() -> None:
    cases = [(o, N) for o in (0.006, 0.1, 0.5, 0.9, 0.999) for N in (1, 2, 3, 7, 20)]
    opacities = torch.tensor([o for o, _ in cases], dtype=torch.float64)
    counts = torch.tensor([N for _, N in cases])
    logits, factors = shares(opacities.logit(), counts)
    want = torch.tensor([equation_9(o, N) for o, N in cases], dtype=torch.float64)
    torch.testing.assert_close(logits.sigmoid(), want[:, 0], rtol=1e-9, atol=0.0)
    # the sum itself is good to about 1e-9 only: its terms cancel
    torch.testing.assert_close(factors, want[:, 1], rtol=1e-8, atol=0.0)
    assert factors[[N == 1 for _, N in cases]].sub(1).abs().max() < 1e-9


def test_shares_are_finite_everywhere() -> None:
    logits = torch.tensor([-30.0, -5.0, 0.0, 20.0, 90.0]).repeat_interleave(3)
    counts = torch.tensor([2, 51, 5000]).repeat(5)
    new, factors = shares(logits, counts)
    assert new.isfinite().all() and factors.isfinite().all()
    assert ((factors > 0) & (factors <= 1 + 1e-6)).all()
    # N faint ones are the one with its opacity shared
    torch.testing.assert_close(new[:3], logits[:3] - counts[:3].log(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("opacity", "n"), [(0.5, 1), (0.8, 2), (0.95, 5)])
def test_a_shared_gaussian_renders_as_before(opacity: float, n: int) -> None:
    gaussians = Gaussians.from_points(torch.zeros(1, 3), torch.full((1, 3), 0.7), sh_degree=0)
    gaussians.params["scales"].data.fill_(math.log(0.5))
    gaussians.params["opacities"].data.fill_(float(logit(opacity)))
    viewmat, size = torch.eye(4), 41
    viewmat[2, 3] = 4.0
    K = torch.tensor([[40.0, 0, size / 2], [0, 40.0, size / 2], [0, 0, 1]])
    camera = Camera("a.png", Path("none"), size, size, viewmat, K, size, size)
    with torch.no_grad():
        before = render(gaussians, camera, background=torch.zeros(3)).alphas.squeeze()
        share(gaussians, None, torch.zeros(n, dtype=torch.int64), min_opacity=0.005)
        stack = {k: x.repeat_interleave(n + 1, 0) for k, x in gaussians.to_tensors().items()}
        stacked = Gaussians.from_tensors(stack)
        after = render(stacked, camera, background=torch.zeros(3)).alphas.squeeze()
    middle = size // 2
    assert before[middle, middle] == pytest.approx(opacity, abs=1e-5)
    assert after[middle, middle] == pytest.approx(opacity, abs=1e-5)
    # along the line through the centre; eps2d and what is fainter than 1/255 make the difference
    assert after[middle].sum() == pytest.approx(float(before[middle].sum()), rel=0.02)
    narrow = stack["scales"][0, 0] - math.log(0.5)
    assert narrow < -0.04  # the scales had to shrink for it


def test_draws_are_by_weight_seed_and_id() -> None:
    weights = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.0]).repeat(100)
    ids = torch.randperm(600, generator=torch.Generator().manual_seed(2)).int()
    rows = draw_sources(weights, ids, 20_000, seed=3)
    counts = torch.bincount(rows, minlength=600).view(100, 6)
    assert counts[:, [0, 5]].sum() == 0
    # five sigma of a binomial of 20000
    for k in range(1, 5):
        assert counts[:, k].sum().item() / 20_000 == pytest.approx(0.1 * k, abs=5 * 0.5 / 141)
    assert counts[:, 4].max() < 80 + 5 * 9  # and no row of its own is preferred
    assert not torch.equal(rows, draw_sources(weights, ids, 20_000, seed=4))
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    assert torch.equal(order[draw_sources(weights[order], ids[order], 20_000, seed=3)], rows)


def test_the_dead_move_in_place() -> None:
    gaussians = model(200)
    dead = torch.arange(0, 200, 8)
    gaussians.params["opacities"].data[dead] = -6.0
    case = Case(gaussians, budget="200")
    gaussians.rows["extra"] = torch.ones(200)
    before = {name: x.clone() for name, x in gaussians.to_tensors().items()}
    tensors = [*gaussians.params.values(), *gaussians.rows.values()]
    ids = gaussians.rows["ids"].clone()
    case.run()

    assert case.counts == {"n_relocated": 25.0, "n_added": 0.0, "n_pruned": 0.0}
    after = [*gaussians.params.values(), *gaussians.rows.values()]
    assert all(a is b for a, b in zip(tensors, after, strict=True))
    assert all(parameter.grad is None for parameter in gaussians.params.values())
    assert gaussians.rows["ids"][dead].tolist() == list(range(200, 225))
    assert gaussians.next_id == 225 and not gaussians.rows["extra"][dead].any()
    alive = torch.ones(200, dtype=torch.bool)
    alive[dead] = False
    assert torch.equal(gaussians.rows["ids"][alive], ids[alive])
    # each lies on a living one, with its masks; opacity and scales are equation 9's
    distances = torch.cdist(before["means"][dead], before["means"])
    assert distances.shape == (25, 200)
    hits: dict[int, list[int]] = {}
    for row in dead.tolist():
        same = (before["means"] == gaussians.params["means"][row]).all(-1) & alive
        assert int(same.sum()) == 1
        hits.setdefault(int(same.nonzero()), []).append(row)
    now = gaussians.to_tensors()
    for source, rows in hits.items():
        o, factor = equation_9(float(before["opacities"][source].sigmoid()), len(rows) + 1)
        scales = before["scales"][source] + math.log(factor)
        for row in (source, *rows):
            assert now["opacities"][row].sigmoid().item() == pytest.approx(max(o, 0.005), rel=1e-5)
            torch.testing.assert_close(now["scales"][row], scales)
            assert torch.equal(now["mask_logits"][row], before["mask_logits"][source])
            assert torch.equal(now["sh0"][row], before["sh0"][source])
    # moments are new where something changed, and only there
    changed = torch.tensor([*dead.tolist(), *hits])
    untouched = torch.ones(200, dtype=torch.bool)
    untouched[changed] = False
    for name, moments in optimizer_state(case.optimizer).items():
        if name != "lrs":
            for key in ("exp_avg", "exp_avg_sq"):
                assert not moments[key][changed].any() and (moments[key][untouched] != 0).all()
            assert torch.equal(now[name][untouched], before[name][untouched])


def test_the_dead_are_not_drawn_from() -> None:
    gaussians = model(200)
    dead = torch.arange(200) % 2 == 0
    gaussians.params["opacities"].data[:] = torch.where(dead, -1.4, 0.0)
    means = gaussians.params["means"].detach()
    case = Case(gaussians, budget="200", min_opacity=0.25)
    alive = means[~dead].clone()
    case.run()
    assert case.counts["n_relocated"] == 100.0
    assert all((alive == row).all(-1).any() for row in gaussians.params["means"][dead])


def test_growth_ends_exactly_at_the_budget() -> None:
    case = Case(model(100), budget="131")
    sizes = []
    for step in range(600, 1400, 100):
        case.gaussians.params["opacities"].data[:4] = -7.0
        case.run(step)
        sizes.append(len(case.gaussians))
    assert sizes == [105, 110, 115, 120, 126, 131, 131, 131]
    ids = case.gaussians.rows["ids"]
    assert len(ids.unique()) == 131 and case.gaussians.next_id == 100 + 31 + 8 * 4
    assert (case.gaussians.get_opacities() > 0.004).all()


def test_what_others_name_goes_and_is_not_moved() -> None:
    gaussians = model(100)
    gaussians.params["opacities"].data[5:15] = -7.0  # the first five of them are named
    case = Case(gaussians, Names(10), budget="1x", growth=0.05)
    ids = gaussians.rows["ids"].clone()
    case.run()
    assert case.counts == {"n_relocated": 5.0, "n_added": 4.0, "n_pruned": 10.0}
    assert len(gaussians) == 94
    assert not torch.isin(gaussians.rows["ids"], ids[:15]).any()
    assert gaussians.rows["ids"].tolist() == [*range(100, 105), *range(15, 100), *range(105, 109)]
    case.run(1100)  # named again, but 5 % more are allowed in their place
    assert len(gaussians) == 88


def test_what_others_remove_lowers_the_budget() -> None:
    case = Case(model(100), budget="1.5x")
    case.run(600)
    assert len(case.gaussians) == 105
    keep_rows(case.gaussians, case.optimizer, torch.arange(105) < 60)
    other = MCMCConfig(budget="1.5x").build()
    other.setup(case.gaussians, extent=1.0, iterations=30_000, seed=1)
    other.load_state_dict(case.densifier.state_dict())
    assert (other.seed, other.n_start, other.limit()) == (0, 100, 150)
    for densifier in (case.densifier, other):
        densifier.densify(700, case.context)
        assert len(case.gaussians) == 60 == densifier.limit()
        assert densifier.state_dict()["ceiling"] == 60


def test_nothing_alive_moves_nothing() -> None:
    gaussians = model(20)
    case = Case(gaussians)
    gaussians.params["opacities"].data.fill_(-8.0)
    before = gaussians.params["means"].clone()
    case.run()
    assert torch.equal(gaussians.params["means"], before) and len(gaussians) == 20
    assert gaussians.params["means"].grad is not None


def test_the_order_of_rows_does_not_matter() -> None:
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    results = []
    for shuffle in (torch.arange(80), order):
        gaussians = model(80)
        for parameter in gaussians.params.values():
            parameter.data = parameter.data[shuffle].contiguous()
        gaussians.rows["ids"] = gaussians.rows["ids"][shuffle]
        case = Case(gaussians, budget="1.05x")
        case.run()
        case.densifier.after_step(STEP, case.context)
        n_old = int((gaussians.rows["ids"] < 80).sum())
        assert (n_old, len(gaussians)) == (80, 84)
        back = gaussians.rows["ids"].argsort()
        results.append({name: x[back] for name, x in gaussians.to_tensors().items()})
    for name, x in results[0].items():
        torch.testing.assert_close(x, results[1][name], rtol=1e-6, atol=1e-7)


def test_regularizers_and_noise_of_a_step() -> None:
    gaussians = model(50)
    gaussians.params["opacities"].data[:25] = -6.0
    gaussians.params["opacities"].data[25:] = 2.0
    case = Case(gaussians, lambda_opacity=0.3, lambda_scale=0.2)
    before = {k: torch.ones_like(p) for k, p in gaussians.params.items()}
    want = 0.3 * gaussians.get_opacities().mean() + 0.2 * gaussians.get_scales().mean()
    gradients = torch.autograd.grad(want, [gaussians.params[k] for k in ("opacities", "scales")])
    case.run(STEP + 1)
    for name, gradient in zip(("opacities", "scales"), gradients, strict=True):
        got = gaussians.params[name].grad
        assert got is not None
        torch.testing.assert_close(got, before[name] + gradient)
    assert gaussians.params["means"].grad is not None
    assert torch.equal(gaussians.params["means"].grad, before["means"])

    means = gaussians.params["means"].detach().clone()
    for step, moves in ((30_000, False), (STEP, True)):  # the last step is no step
        case.densifier.after_step(step, case.context)
        moved = (gaussians.params["means"] - means).abs().amax(-1)
        assert bool((moved[:25] > 0).all()) == moves
        assert moved[25:].max() == 0 if not moves else moved[25:].max() < 1e-6
    case.context.skip = torch.ones(1, dtype=torch.int32)
    means = gaussians.params["means"].detach().clone()
    case.densifier.after_step(STEP, case.context)
    assert torch.equal(gaussians.params["means"], means)


def test_only_a_new_model_gets_its_first_opacity() -> None:
    points = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    new, trained = Gaussians.from_points(points, points.sigmoid()), model(9)
    before = trained.params["opacities"].clone()
    for gaussians in (new, trained):
        densifier = MCMCConfig(initial_opacity=0.4).build()
        densifier.setup(gaussians, extent=1.0, iterations=9, seed=0)
    assert new.get_opacities().tolist() == pytest.approx([0.4] * 9)
    assert torch.equal(trained.params["opacities"], before)


def test_phases() -> None:
    densifier = MCMCDensifier(MCMCConfig())
    assert densifier.phase(600) is None and densifier.phase(24_900) is None
    later = {densifier.phase(step) for step in (1, 500, 601, 25_000, 29_999)}
    assert len(later) == 1 and None not in later


def test_settings() -> None:
    short = MCMCConfig(budget="3x").scaled(0.1)
    assert isinstance(short, MCMCConfig) and short.budget == "3x"
    want = (50, 2500, 50)
    assert dataclasses.astuple(short)[:3] == want
    assert 1 + short.growth == pytest.approx(1.05**5)  # 50 iterations stand for 500
    half = MCMCConfig().scaled(0.5)
    assert (half.densification_interval, half.growth) == (50, pytest.approx(0.05))
    with pytest.raises(SplatrimError, match="--budget 10 is less than the 11 Gaussians"):
        Case(model(11), budget="10")
    wrong: dict[str, Any] = {"budget": "many", "growth": -1, "min_opacity": 0, "noise_lr": -1}
    wrong |= {"lambda_scale": math.nan, "initial_opacity": 1}
    for name, value in wrong.items():
        with pytest.raises(SplatrimError, match=f"--{name}"):
            MCMCConfig(**{name: value})
