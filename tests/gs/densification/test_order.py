"""Densification goes by ids: rows in another order, or on other ranks, give the same Gaussians."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.densification.adaptive import GRADIENTS, VIEWS, DensifyConfig
from gs.densification.error import ABSOLUTE, ErrorConfig
from gs.densification.mcmc import MCMCConfig, draw_sources
from gs.densification.taming import draw
from gs.model.gaussians import Gaussians
from gs.model.model import fresh_ids
from gs.model.rates import OptimConfig
from gs.model.rows import gather_rows
from gs.training.optimizer import build_optimizer
from gs.training.strategy import StepContext

N = 120
KINDS = {
    "default": DensifyConfig(densify_grad_threshold=0.5),
    "mcmc": MCMCConfig(budget="2x", min_opacity=0.2),
    "error": ErrorConfig(budget="2x", densify_grad_threshold=0.5, growth_from="start"),
}


def densified(kind: str, order: Tensor, rounds: int) -> dict[str, Tensor]:
    """Parameters, buffers and moments by id, after densifications of N Gaussians in that order."""
    g = torch.Generator().manual_seed(3)
    points, colors = torch.randn(2, N, 3, generator=g)
    gaussians = Gaussians.from_points(points, colors, sh_degree=1)
    gaussians.params["scales"].data = 0.7 * torch.randn(N, 3, generator=g) - 2.5
    gaussians.params["opacities"].data = 2.0 * torch.randn(N, generator=g)
    strategy = KINDS[kind].build()
    strategy.setup(gaussians, extent=10.0, iterations=30_000, seed=0)
    optimizer = build_optimizer(gaussians, OptimConfig(), extent=10.0)
    for parameter in gaussians.params.values():
        parameter.grad = torch.randn(parameter.shape, generator=g)
    optimizer.step()
    gather_rows(gaussians, optimizer, order, n_kept=N)
    out: Any = SimpleNamespace(info={})
    context = StepContext(gaussians, optimizer, out, out, 10.0, 30_000, strategies=(strategy,))
    for k in range(rounds):
        if kind != "mcmc":
            # statistics of a Gaussian, by its id
            gaussians.rows[VIEWS].fill_(1.0)
            gaussians.rows[ABSOLUTE if kind == "error" else GRADIENTS].copy_(
                (gaussians.rows["ids"] * 7919 + k) % 11 / 10.0
            )
        else:
            gaussians.params["opacities"].data[gaussians.rows["ids"] % 13 == k] = -9.0
        strategy.densify(1000 + 100 * k, context)
    assert gaussians.next_id > N
    by_id = gaussians.rows["ids"].argsort()
    tensors = {**gaussians.to_tensors(), **gaussians.rows}
    for group in optimizer.param_groups:
        tensors[f"{group['name']}.moment"] = optimizer.state[group["params"][0]]["exp_avg"]
    return {name: x[by_id] for name, x in tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_rows_does_not_matter(kind: str) -> None:
    want = densified(kind, torch.arange(N), rounds=3)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    got = densified(kind, order, rounds=3)
    assert got.keys() == want.keys()
    for name, x in want.items():
        assert torch.equal(got[name], x), name


def test_fresh_ids_ascend_with_the_parents() -> None:
    parents = torch.tensor([30, 4, 9, 4], dtype=torch.int32)
    ids, free = fresh_ids(parents, 100)
    assert ids.tolist() == [103, 100, 102, 101] and ids.dtype == torch.int32 and free == 104
    assert fresh_ids(parents[:0], 5)[0].tolist() == []


@pytest.mark.parametrize("k", [0, 5, 60, 110])
def test_a_drawn_set_is_one_of_ids(k: int) -> None:
    """Those without a score, which come last, too."""
    g = torch.Generator().manual_seed(k)
    ids = torch.randperm(500, generator=g)[:N].int()
    scores = torch.rand(N, generator=g) * (torch.rand(N, generator=g) < 0.5)
    candidates = torch.rand(N, generator=g) < 0.95
    order = torch.randperm(N, generator=g)
    want = draw(candidates, scores, k, seed=3, ids=ids)
    got = draw(candidates[order], scores[order], k, seed=3, ids=ids[order])
    assert torch.equal(got, want[order]) and int(want.sum()) == k


def test_sources_are_drawn_alike_from_gathered_weights() -> None:
    g = torch.Generator().manual_seed(0)
    ids, weights = torch.randperm(500, generator=g)[:N].int(), torch.rand(N, generator=g)
    want = ids[draw_sources(weights, ids, 40, seed=9)]
    parts = [torch.arange(N)[ids % 3 == rank] for rank in range(3)]  # as three ranks own them
    gathered = torch.cat(parts)
    assert torch.equal(
        want, ids[gathered][draw_sources(weights[gathered], ids[gathered], 40, seed=9)]
    )
