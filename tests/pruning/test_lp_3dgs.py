"""LP-3DGS: mask, schedule, optimizer and decision in closed form."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import pruning.lp_3dgs
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig
from gs.model.renderer import RenderOutput
from gs.model.rows import keep_rows
from gs.training.optimizer import build_optimizer
from gs.training.strategy import StepContext
from kernels.reference.masks import uniform
from pruning import METHODS
from pruning.lp_3dgs import LP3DGS, SCORES, LP3DGSConfig

PUBLISHED = LP3DGSConfig()


def make(n: int, config: LP3DGSConfig = PUBLISHED, *, seed: int = 0) -> tuple[LP3DGS, Gaussians]:
    """A set-up strategy and its model."""
    points = torch.rand(n, 3, generator=torch.Generator().manual_seed(1))
    model = Gaussians.from_points(points, points, sh_degree=0)
    strategy = config.build(densify_until=15_000)
    strategy.setup(model, extent=1.0, iterations=30_000, seed=seed)
    return strategy, model


def context(model: Gaussians, optimizer: torch.optim.Optimizer | None = None) -> StepContext:
    out: Any = RenderOutput(torch.zeros(1, 1, 3), torch.zeros(1, 1, 1), {})
    camera: Any = None
    optimizer = optimizer or build_optimizer(model, OptimConfig(), extent=1.0)
    return StepContext(model, optimizer, out, camera, 1.0, 30_000)


@pytest.fixture
def scored_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Scores are all 1/2; the kinds that are asked for."""
    kinds: list[str] = []

    def half(gaussians: Gaussians, cameras: Any, kind: str) -> Tensor:
        kinds.append(kind)
        return torch.full((len(gaussians),), 0.5)

    monkeypatch.setattr(pruning.lp_3dgs, "accumulate_scores", half)
    return kinds


def test_presets() -> None:
    assert METHODS["lp-3dgs"] is LP3DGSConfig
    assert next(iter(LP3DGSConfig.PRESETS)) == "radsplat"
    assert LP3DGSConfig.preset("radsplat") == PUBLISHED
    unscaled = replace(PUBLISHED, score="mini-splatting")
    assert LP3DGSConfig.preset("mini-splatting-unscaled") == unscaled
    assert LP3DGSConfig.preset("mini-splatting") == replace(unscaled, score_scale="mean")
    assert LP3DGSConfig.preset("straight-through").relaxation == "straight-through"
    assert (PUBLISHED.decision, PUBLISHED.score_source) == ("threshold", "unmasked")


@pytest.mark.parametrize(
    "bad",
    [
        {"mask_until_iter": 19_500},
        {"score_interval": 0},
        {"score_interval": 501},
        {"gumbel_temp": 0.0},
        {"mask_threshold": 1.0},
    ],
)
def test_settings_that_cannot_be(bad: dict[str, Any]) -> None:
    with pytest.raises(SplatrimError, match=f"--{next(iter(bad))}"):
        LP3DGSConfig(**bad)


def test_a_run_that_ends_too_early() -> None:
    _, model = make(2)
    with pytest.raises(SplatrimError, match="prunes at iteration 20000 and the run ends at 7000"):
        PUBLISHED.build(densify_until=0).setup(model, extent=1.0, iterations=7000, seed=0)


def test_a_run_that_begins_too_late() -> None:
    strategy, model = make(2)
    with pytest.raises(SplatrimError, match="at iteration 20000 and the run begins at 20001"):
        strategy.before_render(20_001, model)
    state = {"params": model.to_tensors(), "rows": model.rows, "active_sh_degree": 0}
    again = Gaussians.from_state(state, "cpu")
    strategy.setup(again, extent=1.0, iterations=30_000, seed=0)  # resumed: it has pruned
    assert strategy.before_render(20_001, again) == {}


def test_scaled() -> None:
    assert PUBLISHED.scaled(1.0) == PUBLISHED
    double = PUBLISHED.scaled(2.0)
    window = (double.mask_from_iter, double.mask_until_iter, double.score_interval)
    assert window == (39_000, 40_000, 40)
    short = PUBLISHED.scaled(0.1)
    window = (short.mask_from_iter, short.mask_until_iter, short.score_interval)
    assert window == (1950, 2050, 20)
    assert short == replace(PUBLISHED, mask_from_iter=1950, mask_until_iter=2050)
    assert PUBLISHED.scaled(0.01).logit_lr == pytest.approx(0.05 * 100 / 52)
    for iterations in [*range(1, 60), 300, 500, 1000]:
        config = PUBLISHED.scaled(iterations / 30_000)
        assert 0 <= config.mask_from_iter < config.mask_until_iter <= iterations


def test_post_training_begins_at_once_and_leaves_two_thirds() -> None:
    config = PUBLISHED.post_training(30_000, 35_000)
    window = (config.mask_from_iter, config.mask_until_iter, config.score_interval)
    assert window == (30_000, 30_500, 20)
    config = replace(PUBLISHED, score="mini-splatting").post_training(0, 300)
    assert (config.mask_from_iter, config.mask_until_iter, config.score_interval) == (0, 100, 20)
    assert config.score == "mini-splatting"
    assert PUBLISHED.post_training(5, 35).mask_until_iter == 15
    with pytest.raises(SplatrimError, match="give --iterations 35 or more"):
        PUBLISHED.post_training(5, 34)


def test_setup_adds_logits_once() -> None:
    strategy, model = make(4)
    assert model.params["mask_logits"].tolist() == [1.0] * 4
    model.params["mask_logits"].data.fill_(3.0)
    state = {"params": model.to_tensors(), "rows": model.rows, "active_sh_degree": 0}
    again = Gaussians.from_state(state, "cpu")  # as on the way through a checkpoint
    strategy.setup(again, extent=1.0, iterations=30_000, seed=0)
    assert again.params["mask_logits"].tolist() == [3.0] * 4


def test_the_decision_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, model = make(4, LP3DGSConfig(decision="sample"))
    model.rows[SCORES] = torch.ones(4)
    decided: list[int] = []
    rendered: set[int] = set()

    def no_noise(seed: int, ids: Tensor, *_: Any) -> Tensor:
        decided.append(seed)
        return torch.zeros(len(ids))

    def no_mask(x: Tensor, temperature: float, seed: int, ids: Tensor) -> Tensor:
        rendered.add(seed)
        return x

    monkeypatch.setattr(pruning.lp_3dgs, "logistic_noise", no_noise)
    monkeypatch.setattr(pruning.lp_3dgs, "gumbel_sigmoid", no_mask)
    strategy.decide(model)
    for step in range(19_500, 20_001):
        strategy.before_render(step, model)
    assert len(decided) == 1 and len(rendered) == 501 and decided[0] not in rendered


def test_masked_opacities_and_their_gradients() -> None:
    strategy, model = make(50)
    g = torch.Generator().manual_seed(0)
    m, raw, scores = (torch.randn(50, generator=g) for _ in range(3))
    model.params["mask_logits"].data, model.params["opacities"].data = m, raw
    model.rows[SCORES] = scores.abs()
    opacities = strategy.before_render(19_777, model)["opacities"]
    v = torch.randn(50, generator=g)
    (opacities * v).sum().backward()

    # the noise is what the formula lacks: it must be one and the same for value and gradients
    m, raw, s, v = m.double(), raw.double(), model.rows[SCORES].double(), v.double()
    y = opacities.detach().double() / torch.sigmoid(raw)
    noise = 0.5 * torch.logit(y) - m * s
    assert noise.abs().max() < 16.7 and noise.std() > 1.0
    want = {
        "mask_logits": v * torch.sigmoid(raw) * y * (1 - y) / 0.5 * s,
        "opacities": v * y * torch.sigmoid(raw) * (1 - torch.sigmoid(raw)),
    }
    for name, gradient in want.items():
        got = model.params[name].grad
        assert got is not None, name
        torch.testing.assert_close(got.double(), gradient, rtol=1e-4, atol=1e-6, msg=name)
    other = strategy.before_render(19_778, model)["opacities"]
    assert (other - opacities).abs().max() > 0.1


def test_noise_is_of_the_seed_and_the_ids() -> None:
    strategy, model = make(40)
    model.rows[SCORES] = torch.full((40,), 0.3)
    model.params["mask_logits"].data = torch.linspace(-2, 2, 40)
    before = strategy.before_render(19_700, model)["opacities"]
    other, again = make(40, seed=1)
    again.rows[SCORES] = model.rows[SCORES]
    assert not torch.equal(other.before_render(19_700, again)["opacities"], before)

    some = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:17]
    keep = torch.zeros(40, dtype=torch.bool)
    keep[some] = True
    keep_rows(model, None, keep)  # fewer rows
    torch.testing.assert_close(
        strategy.before_render(19_700, model)["opacities"], before[keep], rtol=0, atol=0
    )
    model.rows = {name: rows.flip(0) for name, rows in model.rows.items()}  # another order
    for parameter in model.params.values():
        parameter.data = parameter.data.flip(0)
    flipped = strategy.before_render(19_700, model)["opacities"]
    torch.testing.assert_close(flipped, before[keep].flip(0), rtol=0, atol=0)


def test_straight_through_masks_are_zero_or_one() -> None:
    strategy, model = make(3, LP3DGSConfig.preset("straight-through"))
    model.params["mask_logits"].data = torch.tensor([1.0, -9.2, -9.2])
    model.rows[SCORES] = torch.tensor([0.9, 0.49, 0.51])  # sigmoid(-4.6) is 0.00995
    opacities = strategy.before_render(19_700, model)["opacities"]
    torch.testing.assert_close(opacities, torch.tensor([0.1, 0.1, 0.0]))
    opacities.sum().backward()
    assert (model.params["mask_logits"].grad > 0).all()  # also for what is masked out


@pytest.mark.parametrize("n_behind", [1000, 3_000_000])
def test_the_mask_loss_alone(n_behind: int) -> None:
    # AdamW from m = 1; the gradient of one Gaussian among three million is 5e-4 / 3e6, above eps
    config = replace(PUBLISHED, lambda_mask=5e-4 * 4 / n_behind)
    strategy, model = make(4, config)
    ctx = context(model)
    path = {}
    for step in range(19_495, 20_005):
        strategy.before_render(step, model)
        loss = strategy.loss(step, model, ctx.out)
        if loss is not None:
            loss.backward()
        if step != 20_000:
            strategy.after_backward(step, ctx)
        ctx.optimizer.step()
        ctx.optimizer.zero_grad(set_to_none=True)
        path[step - 19_500] = model.params["mask_logits"][0].item()
    want = {0: 1.0, 1: 0.9495, 19: 0.0304, 20: -0.0214, 100: -2.851, 200: -3.902, 499: -5.035}
    for count, logit in want.items():
        assert path[count] == pytest.approx(logit, abs=1e-3), count
    assert path[-5] == 1.0 and path[504] == path[499]


def test_adamw_is_that_of_torch() -> None:
    config = replace(PUBLISHED, logit_lr=0.2, logit_decay=0.3)
    strategy, model = make(6, config)
    ctx = context(model)
    twin = torch.nn.Parameter(torch.ones(6))
    adamw = torch.optim.AdamW([twin], lr=0.2, betas=(0.9, 0.999), eps=1e-15, weight_decay=0.3)
    g = torch.Generator().manual_seed(0)
    for step in range(19_501, 19_520):
        gradient = torch.randn(6, generator=g)
        model.params["mask_logits"].grad, twin.grad = gradient.clone(), gradient.clone()
        strategy.after_backward(step, ctx)
        ctx.optimizer.step()
        adamw.step()
    torch.testing.assert_close(model.params["mask_logits"], twin, rtol=1e-5, atol=1e-6)


def run_hooks(
    strategy: LP3DGS, model: Gaussians, steps: range, scored_at: list[str]
) -> dict[str, list[int]]:
    """Call the hooks as the trainer does; at which steps what happened."""
    ctx = context(model)
    seen: dict[str, list[int]] = {"masked": [], "loss": [], "scored": [], "pruned": []}
    for step in steps:
        n = len(model)
        if "opacities" in strategy.before_render(step, model):
            seen["masked"].append(step)
        if strategy.loss(step, model, ctx.out) is not None:
            seen["loss"].append(step)
        strategy.after_backward(step, ctx)
        if len(model) < n:
            seen["pruned"].append(step)
        strategy.after_step(step, ctx)
        if scored_at:
            seen["scored"].append(step + 1)  # the iteration that renders with them
            scored_at.clear()
    return seen


def test_published_schedule(scored_at: list[str]) -> None:
    strategy, model = make(3)
    model.params["mask_logits"].data = torch.tensor([0.5, -0.5, 0.0])
    seen = run_hooks(strategy, model, range(19_480, 20_030), scored_at)
    assert seen["scored"] == list(range(19_520, 20_000, 20)) and len(seen["scored"]) == 24
    assert seen["loss"] == list(range(19_501, 20_000))
    assert seen["masked"] == list(range(19_520, 20_001))
    assert seen["pruned"] == [20_000]
    assert len(model) == 2 and model.rows["ids"].tolist() == [0, 2]
    assert SCORES not in model.rows


def test_schedule_moves_as_one(scored_at: list[str]) -> None:
    config = LP3DGSConfig(mask_from_iter=107, mask_until_iter=150, score_interval=9)
    strategy, model = make(3, config)
    model.params["mask_logits"].data = torch.tensor([0.5, -0.5, 0.0])
    seen = run_hooks(strategy, model, range(90, 160), scored_at)
    assert seen["scored"] == [116, 125, 134, 143]
    assert seen["loss"] == list(range(108, 150))
    assert seen["masked"] == list(range(116, 151))
    assert seen["pruned"] == [150]


@pytest.mark.parametrize("kind", ["radsplat", "mini-splatting"])
def test_score_kinds_and_sources(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Tensor, list[str]]] = []
    views: Any = ["a", "b", "c"]

    def count(gaussians: Gaussians, cameras: list[str], name: str) -> Tensor:
        assert name == kind
        calls.append((gaussians.get_opacities().detach(), list(cameras)))
        return torch.full((len(gaussians),), float(len(calls)))

    monkeypatch.setattr(pruning.lp_3dgs, "accumulate_scores", count)
    for source, per_refresh in (("unmasked", 1), ("masked", 3)):
        calls.clear()
        strategy, model = make(5, LP3DGSConfig(score=kind, score_source=source))  # type: ignore
        ctx = context(model)
        ctx.cameras = views
        strategy.after_step(19_519, ctx)  # no mask yet, whatever the source
        assert [cameras for _, cameras in calls] == [views]
        torch.testing.assert_close(calls[0][0], torch.full((5,), 0.1))
        assert model.rows[SCORES].tolist() == [1.0] * 5
        strategy.after_step(19_539, ctx)
        assert len(calls) == 1 + per_refresh
        if source == "unmasked":
            torch.testing.assert_close(calls[1][0], torch.full((5,), 0.1))
        else:
            assert [cameras for _, cameras in calls[1:]] == [["a"], ["b"], ["c"]]
            factors = torch.stack([opacities for opacities, _ in calls[1:]]) / 0.1
            assert (factors < 1).all() and (factors > 0).all()
            assert len({tuple(row.tolist()) for row in factors}) == 3  # fresh noise for each
            total = 4.0 if kind == "radsplat" else 2.0 + 3.0 + 4.0
            assert model.rows[SCORES].tolist() == [total] * 5


def test_decision_by_threshold() -> None:
    strategy, model = make(5)
    model.params["mask_logits"].data = torch.tensor([1.0, -0.01, 0.0, -3.0, 0.01])
    assert strategy.decide(model).tolist() == [True, False, True, False, True]
    strategy, model = make(3, LP3DGSConfig.preset("straight-through"))
    model.params["mask_logits"].data = torch.tensor([-4.0, -4.59, -4.6])  # logit(0.01) = -4.595
    assert strategy.decide(model).tolist() == [True, True, False]


def test_decision_by_sample() -> None:
    n = 200_000
    strategy, model = make(10, replace(PUBLISHED, decision="sample"))
    model.params["mask_logits"].data = torch.ones(n)
    model.rows["ids"] = torch.arange(n, dtype=torch.int32)
    keep = strategy.decide(model)
    dropped = 1 / (1 + math.e)  # 0.2689
    share = 1 - keep.float().mean().item()
    assert share == pytest.approx(dropped, abs=4 * (dropped * (1 - dropped) / n) ** 0.5)
    assert torch.equal(strategy.decide(model), keep)
    u = uniform(pruning.lp_3dgs.derive_seed(0, "prune"), model.rows["ids"]).double()
    assert torch.equal(keep, 1.0 + torch.logit(u) >= 0)
    model.rows["ids"] = model.rows["ids"].flip(0)
    assert torch.equal(strategy.decide(model), keep.flip(0))


def test_pruning_everything_is_an_error() -> None:
    strategy, model = make(3)
    model.params["mask_logits"].data.fill_(-1.0)
    with pytest.raises(SplatrimError, match="would prune every Gaussian"):
        strategy.after_backward(20_000, context(model))
