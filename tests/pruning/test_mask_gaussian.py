"""MaskGaussian: presets, schedule of the loss, and who is pruned."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pruning.mask_gaussian
from gs.data.camera import Camera
from gs.densification.adaptive import GRADIENTS, VIEWS, DensifyConfig, add_statistics
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig
from gs.model.renderer import RenderOutput, render
from gs.training.optimizer import build_optimizer
from gs.training.strategy import Population, StepContext
from kernels import sample_masks
from pruning.mask_gaussian import MaskGaussian, MaskGaussianConfig


def make(
    n: int, config: MaskGaussianConfig | None = None, *, logit: float | None = None, seed: int = 0
) -> tuple[MaskGaussian, Gaussians]:
    """A set-up strategy and its model; `logit` replaces keep - drop."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(n, 3, generator=generator)
    model = Gaussians.from_points(points, points, sh_degree=0)
    strategy = (config or MaskGaussianConfig()).build(densify_until=15_000)
    strategy.setup(model, extent=1.0, iterations=30_000, seed=seed)
    if logit is not None:
        model.params["mask_logits"].data = torch.tensor([logit, 0.0]).repeat(n, 1)
    return strategy, model


def output(masks: Tensor) -> RenderOutput:
    return RenderOutput(torch.zeros(1, 1, 3), torch.zeros(1, 1, 1), {"masks": masks})


def context(model: Gaussians) -> StepContext:
    out: Any = output(torch.ones(len(model)))
    camera: Any = None
    optimizer = build_optimizer(model, OptimConfig(), extent=1.0)
    return StepContext(model, optimizer, out, camera, 1.0, 30_000)


@pytest.mark.parametrize(
    ("preset", "lambda_mask", "first", "last"),
    [("alpha", 0.1, 19_000, 20_000), ("beta", 0.0005, 0, 30_000), ("gamma", 0.001, 0, 30_000)],
)
def test_presets(preset: str, lambda_mask: float, first: int, last: int) -> None:
    config = MaskGaussianConfig.preset(preset)
    assert config.lambda_mask == lambda_mask
    assert (config.mask_from_iter, config.mask_until_iter) == (first, last)
    assert next(iter(MaskGaussianConfig.PRESETS)) == "beta"


def test_setup_adds_logits_once() -> None:
    strategy, model = make(4)
    assert model.params["mask_logits"].tolist() == [[10.0, 1.0]] * 4
    model.params["mask_logits"].data.fill_(3.0)
    state = {"params": model.to_tensors(), "rows": model.rows, "active_sh_degree": 0}
    again = Gaussians.from_state(state, "cpu")  # as on the way through a checkpoint
    strategy.setup(again, extent=1.0, iterations=30_000, seed=0)
    assert again.params["mask_logits"].tolist() == [[3.0, 3.0]] * 4


def test_shorter_runs_move_the_logits_faster() -> None:
    assert MaskGaussianConfig().scaled(0.008).mask_lr == pytest.approx(0.25)
    assert MaskGaussianConfig().scaled(2.0).mask_lr == MaskGaussianConfig().mask_lr == 0.01
    _, model = make(2, MaskGaussianConfig(mask_lr=0.3))
    assert model.specs["mask_logits"].rate(OptimConfig(), 1.0) == 0.3


def test_the_histogram_is_of_probabilities() -> None:
    strategy, model = make(3)
    model.params["mask_logits"].data = torch.tensor([[10.0, 1.0], [3.0, 3.1], [0.0, 9.0]])
    found = strategy.histograms(model)["masks"]
    assert [i for i, n in enumerate(found["counts"]) if n] == [0, 23, 49]


def test_before_render_names_rows_and_changes_seed() -> None:
    strategy, model = make(4)
    seeds = {strategy.device_inputs(step)["mask_seed"] for step in range(1, 200)}
    assert len(seeds) == 199
    inputs = strategy.before_render(5, model)
    assert inputs["mask_logits"] is model.params["mask_logits"]
    assert inputs["mask_ids"] is model.rows["ids"]
    other, model = make(4, seed=1)
    assert other.device_inputs(5) != strategy.device_inputs(5)


def test_loss_and_its_gradient() -> None:
    config = MaskGaussianConfig(lambda_mask=0.3)
    strategy, model = make(5, config)
    masks = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], requires_grad=True)
    loss = strategy.loss(1, model, output(masks))
    assert loss is not None and loss.item() == pytest.approx(0.3 * 0.6**2)
    loss.backward()
    assert masks.grad is not None
    torch.testing.assert_close(masks.grad, torch.full((5,), 2 * 0.3 * 0.6 / 5))
    assert float(strategy.scalars(1)["num_used_gs"]) == 3.0


@pytest.mark.parametrize("parts", [[5], [2, 3], [0, 4, 1]])
def test_parts_of_a_scene_have_the_loss_of_the_whole(parts: list[int]) -> None:
    """Each pushes its rows by 2 lambda m / N, however the scene is cut."""
    strategy, model = make(5, MaskGaussianConfig(lambda_mask=0.3))
    drawn = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    for masks in drawn.split(parts):
        masks = masks.clone().requires_grad_()
        out = output(masks)
        out.info["population"] = Population(5, drawn.sum() - masks.detach().sum())
        loss = strategy.loss(1, model, out)
        assert loss is not None and loss.item() == pytest.approx(0.3 * 0.6**2)
        loss.backward()
        assert masks.grad is not None
        torch.testing.assert_close(masks.grad, torch.full_like(masks, 2 * 0.3 * 0.6 / 5))
        assert float(strategy.scalars(1)["num_used_gs"]) == 3.0


def one_certain() -> Gaussians:
    """Three Gaussians of which the first is always drawn and the others never."""
    _, model = make(3, logit=-60.0)
    model.params["mask_logits"].data[0] = torch.tensor([60.0, 0.0])
    return model


@pytest.mark.parametrize("preset", ["post", "published-post"])
def test_published_post_training(preset: str) -> None:
    config = MaskGaussianConfig.preset(preset).post_training(30_000, 35_000)
    assert MaskGaussianConfig.POST_PRESET == "post"
    strategy, model = make(4, config)
    for step in (30_001, 32_500, 35_000):
        loss = strategy.loss(step, model, output(torch.tensor([1.0, 1.0, 0.0, 1.0])))
        # 0.2 (1 - SSIM + 0.1 mean(M)^2): the bracket's share weighs the mask loss too
        assert loss is not None and loss.item() == pytest.approx(0.2 * 0.1 * 0.75**2)
    pruned_at = []
    for step in range(30_001, 35_001):
        if step % 100 == 0:
            model = one_certain()
            strategy.after_backward(step, context(model))
            pruned_at += [step] if len(model) == 1 else []
    assert pruned_at == ([] if preset == "published-post" else list(range(30_500, 35_001, 500)))


def test_pruning_while_post_training_leaves_the_loss_as_it_was() -> None:
    config = MaskGaussianConfig.preset("post").post_training(30_000, 35_000)
    strategy, model = make(8, config)
    whole = torch.tensor([1.0, 0.0] * 4, requires_grad=True)
    left = torch.ones(4, requires_grad=True)
    losses = [strategy.loss(30_001, model, output(masks)) for masks in (whole, left)]
    for loss in losses:
        assert loss is not None and loss.item() == pytest.approx(0.02 * 0.5**2)
        loss.backward()
    assert whole.grad is not None and left.grad is not None
    torch.testing.assert_close(left.grad, whole.grad[::2])
    resumed, fewer = make(4, config)
    resumed.load_state_dict(strategy.state_dict())
    loss = resumed.loss(30_002, fewer, output(torch.ones(4)))
    assert loss is not None and loss.item() == pytest.approx(0.02 * 0.5**2)


def test_post_training_of_other_lengths() -> None:
    short = MaskGaussianConfig.preset("post").post_training(600, 700)
    assert (short.mask_from_iter, short.mask_until_iter, short.mask_prune_iter) == (600, 700, 10)
    alpha = MaskGaussianConfig.preset("alpha").post_training(30_000, 35_000)
    assert (alpha.lambda_mask, alpha.lambda_mask_factor) == (0.1, 1.0)
    assert (alpha.mask_from_iter, alpha.mask_until_iter) == (30_000, 35_000)


def test_window_of_the_loss_is_inclusive() -> None:
    strategy, model = make(2, MaskGaussianConfig.preset("alpha"))
    active = [
        step
        for step in (1, 18_999, 19_000, 19_500, 20_000, 20_001, 30_000)
        if strategy.loss(step, model, output(torch.ones(2))) is not None
    ]
    assert active == [19_000, 19_500, 20_000]


def test_pruning_after_densification() -> None:
    strategy, _ = make(1)
    pruned_at = []
    for step in [*range(100, 30_001, 100), 14_999, 15_001, 29_999]:
        model = one_certain()
        strategy.after_backward(step, context(model))
        if len(model) == 1:
            pruned_at.append(step)
    assert pruned_at == list(range(15_000, 30_001, 1000))


def test_prune_rows_follow_ten_draws() -> None:
    # p = 0.067 is dropped with probability 0.933^10 = 0.5
    n, logit = 20_000, -2.6339
    strategy, model = make(n, logit=logit)
    keep = 1.0 / (1.0 + torch.tensor(-logit).exp().item())
    want = (1.0 - keep) ** 10
    share = strategy.prune_rows(600, model).float().mean().item()
    assert share == pytest.approx(want, abs=5 * (want * (1 - want) / n) ** 0.5)


def test_prune_rows_spare_the_certain() -> None:
    strategy, model = make(500)  # p = 0.99988
    assert not strategy.prune_rows(600, model).any()


def test_pruning_draws_are_their_own() -> None:
    strategy, model = make(2000, logit=0.0)
    rendered = sample_masks(
        model.params["mask_logits"], strategy.device_inputs(600)["mask_seed"], model.rows["ids"]
    )
    strategy, low = make(2000, logit=-3.0)
    dropped = strategy.prune_rows(600, low)
    # independent: among those that rendering drew, as many are dropped as among the others
    share = dropped[rendered > 0.5].float().mean() - dropped[rendered < 0.5].float().mean()
    assert abs(share.item()) < 0.12
    assert not torch.equal(dropped, strategy.prune_rows(700, low))


def test_pruning_seeds_are_none_of_the_renderings(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, model = make(4)
    asked: list[int] = []

    def keep_all(logits: Tensor, seeds: list[int], ids: Tensor) -> Tensor:
        asked.extend(seeds)
        return torch.ones(len(logits), dtype=torch.bool)

    monkeypatch.setattr(pruning.mask_gaussian, "sampled_in_any", keep_all)
    for step in (600, 700, 15_000):
        strategy.prune_rows(step, model)
    assert len(set(asked)) == len(asked) == 30
    rendered = {strategy.device_inputs(step)["mask_seed"] for step in range(1, 16_000)}
    assert not rendered & set(asked) and strategy.final_seed not in rendered | set(asked)


def test_draws_do_not_depend_on_the_order_of_rows() -> None:
    strategy, model = make(300, logit=-2.0)
    before = strategy.prune_rows(600, model)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    model.rows["ids"] = model.rows["ids"][order]
    assert torch.equal(strategy.prune_rows(600, model), before[order])


def test_final_keep_by_threshold() -> None:
    strategy, model = make(4)
    logits = torch.tensor([[1.4, 0.0], [0.0, 1.0], [2.0, 0.7], [-1.0, -3.0]])  # ln 4 = 1.386
    model.params["mask_logits"].data = logits
    assert strategy.final_keep(model).tolist() == [True, False, False, True]


def test_final_keep_by_another_threshold() -> None:
    _, model = make(3)
    model.params["mask_logits"].data = torch.tensor([[2.3, 0.0], [2.1, 0.0], [-1.0, 0.0]])
    strategy = MaskGaussianConfig(final_threshold=0.9).build(densify_until=10)
    assert strategy.final_keep(model).tolist() == [True, False, False]  # ln 9 = 2.197
    with pytest.raises(SplatrimError, match="--final_threshold must be between 0 and 1, not 1"):
        MaskGaussianConfig(final_threshold=1.0)


def test_final_keep_by_sample() -> None:
    config = MaskGaussianConfig(final_mask="sample")
    strategy, model = make(20_000, config, logit=1.0)
    keep = strategy.final_keep(model)
    assert keep.float().mean().item() == pytest.approx(0.7311, abs=0.016)  # sigmoid(1), 5 sigma
    assert torch.equal(keep, strategy.final_keep(model))
    other, model = make(20_000, config, logit=1.0, seed=1)
    assert not torch.equal(keep, other.final_keep(model))


def test_scaled_schedule() -> None:
    config = MaskGaussianConfig.preset("alpha").scaled(0.1)
    assert (config.mask_from_iter, config.mask_until_iter) == (1900, 2000)
    assert config.mask_prune_iter == 100
    assert config.lambda_mask == 0.1


def test_initial_probability() -> None:
    _, model = make(1)
    p = torch.softmax(model.params["mask_logits"].double(), 1)[0, 0].item()
    assert p == pytest.approx(0.99987661, abs=1e-8)


def test_two_logits_move_as_one_at_twice_the_rate() -> None:
    strategy, model = make(400, logit=1.5)
    optimizer = build_optimizer(model, OptimConfig(), extent=1.0)
    one = torch.nn.Parameter(torch.full((400,), 1.5))
    single = torch.optim.Adam([one], lr=0.02, eps=1e-15)
    upstream = torch.randn(400, generator=torch.Generator().manual_seed(2))
    for step in range(1, 101):
        pair, ids = model.params["mask_logits"], model.rows["ids"]
        seed = strategy.device_inputs(step)["mask_seed"]
        for logits in (pair, one):
            (sample_masks(logits, seed, ids) * upstream).sum().backward()
        for adam in (optimizer, single):
            adam.step()
            adam.zero_grad()
    gap = (model.params["mask_logits"][:, 0] - model.params["mask_logits"][:, 1]).detach()
    assert (gap - 1.5).abs().min() > 0.2
    torch.testing.assert_close(gap, one.detach(), rtol=0, atol=2e-4)
    torch.testing.assert_close(model.params["mask_logits"].sum(1), torch.full((400,), 1.5))


def test_what_is_not_sampled_is_seen_and_moves_only_its_logits() -> None:
    strategy, model = make(60, logit=0.0)
    model.params["means"].data[:, 2] += 3.0
    density = DensifyConfig().build()
    density.setup(model, extent=1.0, iterations=30_000, seed=0)
    K = torch.tensor([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]])
    camera = Camera("a.png", Path("a.png"), 32, 24, torch.eye(4), K, 32, 24)
    out = render(model, camera, **strategy.before_render(1, model), mask_seed=1)
    out.colors.square().sum().backward()
    add_statistics(model, out.info)

    sampled = out.info["masks"].detach() > 0.5
    seen = (out.info["radii"][0] > 0).all(-1)
    assert 10 < int(sampled.sum()) < 50
    assert torch.equal(model.rows[VIEWS], seen.float())
    assert not model.rows[GRADIENTS][~sampled].any()
    assert model.rows[GRADIENTS][sampled & seen].gt(0).float().mean() > 0.5
    for name, parameter in model.params.items():
        assert parameter.grad is not None, name
        moved = parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad[:, None]
        assert (moved[~sampled & seen].abs().sum() > 0) == (name == "mask_logits"), name


def test_pruning_comes_with_every_densification_and_goes_on_after() -> None:
    strategy, _ = make(1)
    pruned_at = []
    spans = (range(400, 1001, 100), range(14_700, 15_301, 100), range(15_900, 16_101, 100))
    for step in [*itertools.chain(*spans), 29_900, 30_000]:
        _, model = make(3, logit=9.0)
        model.params["mask_logits"].data[1] = torch.tensor([-60.0, 0.0])
        density = DensifyConfig(opacity_reset_interval=50_000).build()
        density.setup(model, extent=1.0, iterations=30_000, seed=0)
        ctx = context(model)
        ctx.strategies = (density, strategy)
        means2d = torch.zeros(1, 3, 2, requires_grad=True)
        means2d.grad = torch.zeros(1, 3, 2)
        info = {"means2d": means2d, "radii": means2d.int() + 1, "width": 8, "height": 8}
        ctx.out.info.update(info)
        for one in ctx.strategies:
            one.after_backward(step, ctx)
        if model.rows["ids"].tolist() == [0, 2]:
            pruned_at.append(step)
    assert pruned_at == [600, 700, 800, 900, 1000, 14_700, 14_800, 14_900, 15_000, 16_000, 30_000]
