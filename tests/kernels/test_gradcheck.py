"""Every input's gradient against finite differences in float64.

The scenes keep away from discontinuities: no Gaussian is clamped, no ray stops and no alpha lies
within a finite difference of 1/255. The straight-through gradient of the clamp is in
test_masks.py and in the golden records.
"""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from kernels import rasterization

WIDTH, HEIGHT, N = 13, 9, 6
F64 = torch.float64


def named(names: Iterable[str], values: Iterable[Tensor]) -> dict[str, Any]:
    """Keywords of a rendering."""
    return dict(zip(names, values, strict=True))


def scene(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=F64)

    viewmats = torch.eye(4, dtype=F64).repeat(2, 1, 1)
    viewmats[1, 0, 3], viewmats[1, 0, 2], viewmats[1, 2, 0] = 0.1, 0.1, -0.1
    K = torch.tensor([[14.0, 0, 6], [0, 13, 5], [0, 0, 1]], dtype=F64)
    return {
        # A few lie beyond the field of view plus its margin, where the Jacobian is clamped.
        "means": (rand(N, 3) - 0.5) * torch.tensor([2.6, 1.8, 2.0]) + torch.tensor([0.0, 0, 2.5]),
        "quats": rand(N, 4) - 0.5,
        "scales": rand(N, 3) * 0.3 + 0.1,
        "opacities": rand(N) * 0.6 + 0.2,
        "colors": rand(N, 3),
        "viewmats": viewmats,
        "Ks": K.repeat(2, 1, 1),
        "masks": torch.tensor([1.0, 0.0, 1.0, 0.4, 0.0, 1.0], dtype=F64),
        "backgrounds": rand(2, 3),
    }


@pytest.mark.parametrize(
    ("mode", "antialiased", "colors"),
    [
        ("RGB", False, "sh"),
        ("RGB+D", True, "each"),
        ("RGB+ED", False, "shared"),
        ("ED", True, "shared"),
        ("D", False, "shared"),
    ],
)
def test_rasterization(mode: str, antialiased: bool, colors: str) -> None:
    inputs = scene(seed=3)
    g = torch.Generator().manual_seed(1)
    if colors == "sh":
        inputs["colors"] = torch.rand(N, 16, 3, generator=g, dtype=F64) - 0.3
    elif colors == "each":
        inputs["colors"] = torch.rand(2, N, 3, generator=g, dtype=F64)
    if "ED" in mode:
        # A pixel that only unsampled Gaussians cover has alpha 0, where ED jumps.
        inputs["masks"] = inputs["masks"] * 0.8 + 0.2
    weights = torch.rand(2, HEIGHT, WIDTH, 5, generator=g, dtype=F64)

    def loss(*values: Tensor) -> Tensor:
        image, alphas, _ = rasterization(
            **named(inputs, values),
            width=WIDTH,
            height=HEIGHT,
            render_mode=mode,
            rasterize_mode="antialiased" if antialiased else "classic",
            sh_degree=3 if colors == "sh" else None,
            backend="reference",
        )
        return (torch.cat([image, alphas], -1) * weights[..., : image.shape[-1] + 1]).sum()

    values = [v.requires_grad_(name != "Ks") for name, v in inputs.items()]
    assert gradcheck(loss, values, eps=1e-6, atol=1e-6, rtol=1e-6)


def test_precomputed_covariances_and_raw_quats() -> None:
    from kernels import RasterInputs, RenderSettings
    from kernels.reference.rasterization import rasterize

    inputs = scene(seed=3)
    rotations = torch.linalg.qr(torch.randn(N, 3, 3, generator=torch.Generator().manual_seed(0)))[0]
    half = rotations.double() * inputs["scales"][:, None]

    def image(half: Tensor, quats: Tensor, means: Tensor, covariances: bool) -> Tensor:
        values: dict[str, Any] = inputs | {"quats": quats, "means": means}
        if covariances:
            values["covars"] = half @ half.mT
        settings = RenderSettings(WIDTH, HEIGHT, normalize_quats=covariances)
        return rasterize(RasterInputs(**values), settings)[0]

    leaves = [v.clone().requires_grad_() for v in (half, inputs["quats"], inputs["means"])]
    for covariances in (True, False):
        assert gradcheck(
            lambda half, quats, means, c=covariances: image(half, quats, means, c),
            leaves,
            eps=1e-6,
            atol=1e-6,
            fast_mode=True,
        )


def test_bands_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = scene(seed=4)
    leaves = [v.requires_grad_(name != "Ks") for name, v in inputs.items()]
    wanted = [v for v in leaves if v.requires_grad]

    def gradients() -> list[Tensor]:
        image, alphas, info = rasterization(
            **named(inputs, leaves),
            width=WIDTH,
            height=HEIGHT,
            absgrad=True,
            backend="reference",
        )
        v = torch.autograd.grad((image * alphas).sum(), [*wanted, info["means2d"]])
        return [image, *v, info["means2d"].absgrad]

    whole = gradients()
    monkeypatch.setattr("kernels.reference.binning.MAX_FRAGMENTS", 60)
    for got, want in zip(gradients(), whole, strict=True):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-13)
