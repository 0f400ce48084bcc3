"""Growing and pruning of anchors: sizes, thresholds, draws, de-duplication, statistics."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.data.scene import Scene
from gs.densification.growth import (
    GRADIENTS,
    MAX_LOG_SCALE,
    OPACITIES,
    VIEWS,
    VISITS,
    AnchorGrowth,
    GrowthConfig,
    add_statistics,
    cells_of,
    grow,
    mean_volume,
    new_cells,
)
from gs.model.rates import OptimConfig
from gs.model.renderer import render
from gs.model.specs import ParameterSpec
from gs.model.view import view_of
from gs.neural.anchors import Anchors
from gs.neural.config import NeuralConfig
from gs.training.optimizer import build_optimizer
from gs.training.strategy import StepContext, Strategy

K = 4
CONFIG = NeuralConfig(feature_dim=8, offsets=K, voxel_size=0.01)
MOMENTUM = GrowthConfig(
    densify_from_iter=300,
    statistics_from_iter=500,
    densify_until_iter=30_000,
    densification_interval=25,
    update_init_factor=128.0,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def setup(config: GrowthConfig, points: Tensor) -> tuple[AnchorGrowth, Anchors]:
    model = Anchors.from_points(points, CONFIG)
    strategy = config.build()
    strategy.setup(model, extent=1.0, iterations=30_000, seed=0)
    return strategy, model


def context(model: Anchors, *strategies: Strategy[Any]) -> StepContext[Anchors]:
    out: Any = None
    optimizer = build_optimizer(model, OptimConfig(), extent=1.0)
    return StepContext(model, optimizer, out, out, 1.0, 30_000, strategies=strategies)


POINTS = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 1.0]])


def test_sizes_of_cells_are_the_published_ones() -> None:
    assert MOMENTUM.cell_sizes(1e-4) == pytest.approx([0.0128, 0.0032, 0.0008])
    assert GrowthConfig().cell_sizes(0.001) == pytest.approx([0.016, 0.004, 0.001])


@pytest.mark.parametrize(
    ("config", "first", "second", "last"),
    [(MOMENTUM, 525, 550, 29_975), (GrowthConfig(), 1600, 1700, 14_900)],
)
def test_when_anchors_grow(config: GrowthConfig, first: int, second: int, last: int) -> None:
    steps = [step for step in range(1, 31_000) if config.densifies_at(step)]
    assert (steps[0], steps[1], steps[-1]) == (first, second, last)
    strategy = config.build()
    assert strategy.phase(first) is None
    assert [strategy.phase(s) for s in (500, 501, last + 1)] == ["resting", *["gathering"] * 2]
    assert strategy.phase(config.densify_until_iter) == "resting"
    assert not config.gathers_at(500) and config.gathers_at(501)


def test_cells_are_those_of_comparing_all_with_all() -> None:
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randint(-3, 4, (200, 3), generator=generator)
    taken = torch.randint(-3, 4, (60, 3), generator=generator)
    own, cells = new_cells(candidates, taken)
    there = {tuple(x) for x in taken.tolist()}
    free = {tuple(x) for x in candidates.tolist()} - there
    assert {tuple(x) for x in cells.tolist()} == free and len(cells) == len(free)
    for x, k in zip(candidates.tolist(), own.tolist(), strict=True):
        assert (k < 0) == (tuple(x) in there)
        assert k < 0 or cells[k].tolist() == x
    far = cells_of(torch.tensor([[1e30, -1e30, 0.0]]), 1e-3)
    assert new_cells(far, far)[0].tolist() == [-1]


def test_a_cell_gets_one_anchor_with_the_largest_features() -> None:
    _, model = setup(MOMENTUM, POINTS)
    order = {tuple(x): k for k, x in enumerate(model.params["anchors"].tolist())}
    a, b, c = order[0, 0, 0], order[1, 0, 0], order[0, 1, 0]
    model.add_parameter(ParameterSpec("mask_logits", (K, 2), 0.1), torch.rand(5, K, 2))
    optimizer = build_optimizer(model, OptimConfig(), extent=1.0)
    for parameter in model.params.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    p = model.params
    with torch.no_grad():
        p["features"][[a, b, c]] = torch.arange(24.0).view(3, 8) % 7
        p["scales"].zero_()  # offsets are in scene units
        p["offsets"].zero_()
        p["offsets"][a, 1] = torch.tensor([0.31, 0.02, 0.0])
        p["offsets"][b, 2] = torch.tensor([-0.68, -0.01, 0.0])  # to the same cell
        p["offsets"][c, 0] = torch.tensor([0.5, 0.0, 0.0])
    before = {name: x.detach().clone() for name, x in p.items()}
    chosen = torch.zeros(5, K, dtype=torch.bool)
    chosen[a, 1] = chosen[b, 2] = chosen[c, 0] = chosen[c, 3] = True  # (c, 3) lies in c's own cell
    assert grow(model, optimizer, chosen, 0.1, 5) == 2
    assert len(model) == 7 and model.rows["ids"].tolist() == [*range(7)] and model.next_id == 7
    new = model.params["anchors"][5:].detach()
    found = {tuple(round(v, 3) for v in x) for x in new.tolist()}
    assert found == {(0.3, 0.0, 0.0), (0.5, 1.0, 0.0)}
    at = int((new[:, 0] < 0.4).nonzero()) + 5
    want = torch.maximum(before["features"][a], before["features"][b])
    assert torch.equal(model.params["features"][at].detach(), want)
    assert torch.allclose(model.params["scales"][5:].detach(), torch.tensor(math.log(0.1)))
    assert float(model.params["offsets"][5:].detach().abs().max()) == 0.0
    first = (a, 1) if a < b else (b, 2)
    logits = before["mask_logits"][first][None].expand(K, 2)
    assert torch.equal(model.params["mask_logits"][at].detach(), logits)
    moments = optimizer.state[model.params["features"]]["exp_avg"]
    assert float(moments[5:].abs().max()) == 0.0 and float(moments[:5].abs().min()) > 0.0
    assert grow(model, optimizer, torch.zeros(5, K, dtype=torch.bool), 0.1, 5) == 0


@pytest.mark.parametrize(("level", "share"), [(0, 0.5), (1, 0.75), (2, 0.875)])
def test_candidates_are_kept_with_the_published_probabilities(level: int, share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    strategy, model = setup(MOMENTUM, torch.rand(4000, 3, generator=generator))
    n = len(model)
    kept = strategy._kept(525, level, model, n)
    deviation = math.sqrt(share * (1 - share) / kept.numel())
    assert abs(float(kept.float().mean()) - share) < 4 * deviation
    # by name, whatever the order of rows
    model.rows["ids"] = model.rows["ids"].flip(0)
    assert torch.equal(strategy._kept(525, level, model, n).flip(0), kept)


def test_what_is_judged_begins_anew_and_faint_anchors_go() -> None:
    strategy, model = setup(MOMENTUM, POINTS)
    rows = model.rows
    rows[VIEWS][0] = 10.0  # not more than half of 25 * 0.8
    rows[VIEWS][1] = 11.0
    rows[GRADIENTS][:2] = 1e-4  # below the threshold as a mean
    rows[VISITS].copy_(torch.tensor([20.0, 21.0, 21.0, 100.0, 0.0]))
    rows[OPACITIES].copy_(torch.tensor([0.0, 0.104, 0.106, 0.0, 0.0]))
    with torch.no_grad():
        model.params["scales"][:, 3:] = 1.0
    strategy.densify(525, context(model, strategy))
    assert model.rows["ids"].tolist() == [0, 2, 4]
    assert model.rows[VIEWS][0].tolist() == [10.0] * K
    assert model.rows[VISITS].tolist() == [20.0, 0.0, 0.0]
    assert model.rows[OPACITIES].tolist() == [0.0, 0.0, 0.0]
    assert float(model.params["scales"][:, 3:].max()) == pytest.approx(MAX_LOG_SCALE)
    assert strategy.scalars(525) == {"n_grown": 0.0, "n_pruned": 2.0}


def test_growing_goes_on_to_finer_levels_only_while_it_adds() -> None:
    config = GrowthConfig(update_init_factor=16.0, densify_grad_threshold=1e-3)
    strategy, model = setup(config, POINTS)
    with torch.no_grad():
        model.params["scales"].zero_()
        # half of what is chosen is drawn: the first level has 20 candidates
        model.params["offsets"].copy_(
            0.5 * torch.randn(5, K, 3, generator=torch.Generator().manual_seed(0))
        )
    model.rows[VIEWS].fill_(50.0)
    model.rows[GRADIENTS].fill_(50 * 1e-3)  # reaches the first level's threshold alone
    strategy.densify(1600, context(model, strategy))
    n = len(model)
    assert 10 < n < 25
    assert torch.allclose(model.params["scales"][5:].detach(), torch.tensor(math.log(0.16)))
    assert float(model.rows[VIEWS].abs().max()) == 0.0
    # at a larger gradient the coarse cells are taken, and so no finer one is looked at
    with torch.no_grad():
        model.params["offsets"].zero_()
    model.rows[VIEWS].fill_(50.0)
    model.rows[GRADIENTS].fill_(1.0)
    strategy.densify(1700, context(model, strategy))
    assert len(model) == n


class Drops(Strategy[Anchors]):
    """Names offsets to be removed."""

    def prune_rows(self, step: int, gaussians: Anchors) -> Tensor:
        names = torch.zeros(len(gaussians), K, dtype=torch.bool)
        names[0], names[1, 1] = True, True
        return names.flatten()


def test_offsets_that_others_name_go() -> None:
    strategy, model = setup(GrowthConfig(), POINTS)
    strategy.densify(1600, context(model, strategy, Drops()))
    assert model.rows["ids"].tolist() == [1, 2, 3, 4]
    assert model.rows["off"].nonzero().tolist() == [[0, 1]]


def test_statistics_are_of_the_offsets_that_are_seen(scene: Scene) -> None:
    strategy, model = setup(GrowthConfig(), scene.points)
    with torch.no_grad():
        model.params["features"].normal_(generator=torch.Generator().manual_seed(1))
        model.rows["off"][3, 1] = True
    out = render(model, scene.train[0])
    out.colors.square().sum().backward()
    for skip in (torch.ones(1, dtype=torch.int32), None, torch.zeros(1, dtype=torch.int32)):
        add_statistics(model, out, skip=skip)
    splats = out.splats
    assert splats is not None and splats.rows is not None
    radii = splats.scatter(out.info["radii"][0], len(model)).view(-1, K, 2)
    assert torch.equal(model.rows[VIEWS], 2.0 * (radii > 0).all(-1))
    assert float(model.rows[VIEWS][3, 1]) == 0.0 and float(model.rows[GRADIENTS].max()) > 0
    opacities = splats.scatter(splats.opacities.detach(), len(model)).view(-1, K)
    torch.testing.assert_close(model.rows[OPACITIES], 2.0 * opacities.clamp_min(0).sum(1))
    seen = splats.rows[splats.rows >= 0].long()
    visits = torch.zeros(len(model))
    visits[seen] = 2.0
    assert torch.equal(model.rows[VISITS], visits)
    gradients = splats.scatter(out.info["means2d"].grad[0], len(model)).view(-1, K, 2)
    norms = (gradients * torch.tensor([20.0, 15.0])).norm(dim=-1)
    torch.testing.assert_close(model.rows[GRADIENTS], 2.0 * norms, rtol=1e-5, atol=1e-9)


def test_the_volume_is_a_mean_over_what_is_drawn() -> None:
    scales = torch.tensor([[1.0, 2, 3], [1, 1, 2], [9, 9, 9]], requires_grad=True)
    opacities = torch.tensor([0.5, 0.1, -0.1])
    volume = mean_volume(scales, opacities)
    assert float(volume) == pytest.approx(4.0)
    volume.backward()
    assert scales.grad is not None and scales.grad[0].tolist() == [3.0, 1.5, 1.0]
    assert float(mean_volume(scales, -opacities.abs())) == 0.0


def test_nothing_of_a_captured_step_waits(scene: Scene, waits: Callable[..., list[str]]) -> None:
    model = Anchors.from_points(scene.points, CONFIG)
    AnchorGrowth(GrowthConfig()).setup(model, extent=1.0, iterations=100, seed=0)
    out = render(model, scene.train[0])
    out.colors.square().sum().backward()
    view = view_of(scene.train[0], torch.device("cpu"))

    def act() -> None:
        splats = model.splats_within(view)
        mean_volume(splats.scales, splats.opacities).backward()
        add_statistics(model, out, skip=torch.zeros(1, dtype=torch.int32))

    assert waits(act) == []
