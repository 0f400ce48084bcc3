"""Statistics of every iteration, and a whole densification, by number of Gaussians.

pytest bench/bench_densification.py

A densification clones 5 %, splits 5 % and prunes what is faint; it changes its model, so each round
gets a copy, which is not timed.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.densification.adaptive import GRADIENTS, VIEWS, DensifyConfig
from gs.model.gaussians import Gaussians
from gs.model.morton import reorder
from gs.model.rates import OptimConfig
from gs.training.optimizer import build_optimizer
from gs.training.strategy import StepContext
from kernels import add_gradient_norms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIZES = (100_000, 1_000_000, 5_500_000)
EXTENT = 1.0
ROUNDS, WARMUP_ROUNDS = 5, 2


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("n", SIZES)
def test_add_gradient_norms(timed: Callable[..., Any], n: int, backend: str) -> None:
    g = torch.Generator(device="cuda").manual_seed(0)
    v = torch.randn(1, n, 2, device="cuda", generator=g)
    radii = torch.randint(-1, 9, v.shape, device="cuda", generator=g, dtype=torch.int32)
    sums, views = torch.zeros(n, device="cuda"), torch.zeros(n, device="cuda")

    def add() -> None:
        add_gradient_norms(v, radii, sums, views, width=1296, height=840, backend=backend)

    timed(add, n=n)


def model(n: int) -> StepContext:
    """Gaussians of which a tenth is moving, with their optimizer after one step."""
    g = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, device="cuda", generator=g)

    gaussians = Gaussians.from_tensors(
        {
            "means": normal(3),
            "quats": normal(4),
            "scales": normal(3) - 5.3,
            "opacities": 2.0 * normal(),
            "sh0": normal(1, 3),
            "shN": normal(15, 3),
        }
    )
    gaussians.rows[GRADIENTS] = (normal() > 1.28).float()
    gaussians.rows[VIEWS] = torch.ones(n, device="cuda")
    optimizer = build_optimizer(gaussians, OptimConfig(), extent=EXTENT)
    for parameter in gaussians.params.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    nothing: Any = None
    return StepContext(gaussians, optimizer, nothing, nothing, EXTENT, 30_000)


@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_densify(benchmark: Any, n: int, reordered: bool) -> None:
    densifier = DensifyConfig().build()

    def prepared() -> tuple[tuple[StepContext], dict[str, Any]]:
        context = model(n)
        torch.cuda.synchronize()
        return (context,), {}

    def densify(context: StepContext) -> StepContext:
        densifier.densify(600, context)
        if reordered:
            reorder(context.gaussians, context.optimizer)
        torch.cuda.synchronize()
        return context

    context = benchmark.pedantic(
        densify, setup=prepared, rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS
    )
    benchmark.extra_info |= {"n": n, "n_after": len(context.gaussians)}
    assert len(context.gaussians) != n
