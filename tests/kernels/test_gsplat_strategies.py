"""gsplat's own strategies drive a training on `rasterization`, as its users' scripts do."""

import math
from typing import Any

import gsplat.strategy.ops
import pytest
import torch
from gsplat.cuda._torch_impl import _quat_scale_to_covar_preci
from gsplat.strategy import DefaultStrategy, MCMCStrategy
from torch import Tensor

from kernels import rasterization

STEPS, WIDTH, HEIGHT = 50, 32, 24
RATES = {"means": 2e-3, "scales": 1e-2, "quats": 5e-3, "opacities": 5e-2, "colors": 1e-2}


@pytest.fixture(autouse=True)
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of gsplat's functions need its CUDA code: here are its own torch form and equation 9."""

    def covariances(quats: Tensor, scales: Tensor, *flags: bool, **named: bool) -> Any:
        return _quat_scale_to_covar_preci(quats, scales, *flags, **named)

    monkeypatch.setattr(gsplat.strategy.ops, "quat_scale_to_covar_preci", covariances)
    monkeypatch.setattr(gsplat.strategy.ops, "compute_relocation", relocated)


def relocated(opacities: Tensor, scales: Tensor, ratios: Tensor, binoms: Tensor) -> Any:
    """Opacity and scales of each of `ratios` copies: 3DGS-MCMC, equation 9."""
    new_opacities, new_scales = torch.empty_like(opacities), torch.empty_like(scales)
    for k, n in enumerate(ratios.clamp(1, len(binoms)).int().tolist()):
        o = opacities[k].item()
        new = 1 - (1 - o) ** (1 / n)
        total = sum(
            math.comb(i - 1, j) * (-1) ** j * new ** (j + 1) / math.sqrt(j + 1)
            for i in range(1, n + 1)
            for j in range(i)
        )
        new_opacities[k], new_scales[k] = new, scales[k] * o / total
    return new_opacities, new_scales


def train(strategy: Any, *, packed: bool = False, absgrad: bool = False) -> tuple[int, int, Any]:
    """Fit two views of a picture; the number of Gaussians before and after, and the state."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    n = 60
    values = {
        "means": torch.rand(n, 3, generator=g) * torch.tensor([4.0, 3, 1])
        - torch.tensor([2, 1.5, -4]),
        "scales": torch.full((n, 3), -2.0),
        "quats": torch.randn(n, 4, generator=g),
        "opacities": torch.cat([torch.full((n - 6,), 1.0), torch.full((6,), -8.0)]),
        "colors": torch.rand(n, 3, generator=g),
    }
    params = torch.nn.ParameterDict({k: torch.nn.Parameter(x) for k, x in values.items()})
    optimizers: dict[str, torch.optim.Optimizer]
    optimizers = {k: torch.optim.Adam([params[k]], lr=RATES[k]) for k in params}
    viewmats = torch.eye(4).repeat(2, 1, 1)
    viewmats[1, 0, 3] = 0.3
    Ks = torch.tensor([[25.0, 0, WIDTH / 2], [0, 25.0, HEIGHT / 2], [0, 0, 1]]).repeat(2, 1, 1)
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    target = torch.stack([x / WIDTH, y / HEIGHT, ((x - 20) ** 2 + (y - 9) ** 2 < 30).float()], -1)
    strategy.check_sanity(params, optimizers)
    by_gradients = isinstance(strategy, DefaultStrategy)
    state = (
        strategy.initialize_state(scene_scale=1.0) if by_gradients else strategy.initialize_state()
    )
    for step in range(STEPS):
        image, _, info = rasterization(
            params["means"],
            params["quats"],
            params["scales"].exp(),
            params["opacities"].sigmoid(),
            params["colors"],
            viewmats,
            Ks,
            WIDTH,
            HEIGHT,
            packed=packed,
            absgrad=absgrad,
        )
        if by_gradients:
            strategy.step_pre_backward(params, optimizers, state, step, info)
        (image - target).abs().mean().backward()
        if by_gradients:
            strategy.step_post_backward(params, optimizers, state, step, info, packed=packed)
        else:
            strategy.step_post_backward(params, optimizers, state, step, info, lr=2e-3)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return n, len(params["means"]), state


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("absgrad", [False, True])
def test_default_strategy(packed: bool, absgrad: bool) -> None:
    refine: dict[str, Any] = {"refine_start_iter": 5, "refine_every": 10, "reset_every": 30}
    strategy = DefaultStrategy(**refine, absgrad=absgrad, refine_scale2d_stop_iter=40)
    before, after, state = train(strategy, packed=packed, absgrad=absgrad)
    assert after > before  # it grew by more than the six faint ones that it pruned
    assert state["count"].shape == state["grad2d"].shape == (after,)
    assert state["grad2d"].any() and state["radii"].max() > 0


def test_packing_changes_no_decision() -> None:
    refine: dict[str, Any] = {"refine_start_iter": 5, "refine_every": 10, "reset_every": 30}
    dense = train(DefaultStrategy(**refine))
    packed = train(DefaultStrategy(**refine), packed=True)
    assert dense[:2] == packed[:2]
    torch.testing.assert_close(dense[2]["grad2d"], packed[2]["grad2d"], rtol=1e-4, atol=1e-6)


def test_monte_carlo_strategy() -> None:
    strategy = MCMCStrategy(cap_max=80, refine_start_iter=5, refine_every=10)
    before, after, _ = train(strategy)
    assert before < after <= 80
