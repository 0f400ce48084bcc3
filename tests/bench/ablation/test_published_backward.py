"""The published backward against its table and a recursion in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

import kernels.blending
from bench.ablation.published_backward import published_gradients
from gs.errors import SplatrimError
from kernels import rasterization
from kernels.constants import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SH0 = 0.28209479177387814

# masks, then the published dL/dalpha and dL/dmask of three Gaussians with alpha .5, .4, .3 in red,
# green, blue over (.1, .2, .3), for L = (1, 2, -1) . colour
COLUMNS = [
    ("111", (0.296, 1.08, -0.36), (0.148, 0.432, -0.108)),
    ("011", (0, 2.16, -0.72), (0.608, 0.864, -0.216)),
    ("101", (0.06, 0, -0.6), (0.03, 0.372, -0.18)),
    ("110", (0.26, 1.05, 0), (0.13, 0.42, -0.108)),
    ("001", (0, 0, -1.2), (0.43, 0.744, -0.36)),
    ("010", (0, 2.1, 0), (0.59, 0.84, -0.216)),
    ("100", (0, 0, 0), (0, 0.36, -0.18)),
    ("000", (0, 0, 0), (0.4, 0.72, -0.36)),
]


def scene(n: int, **more: Tensor) -> dict[str, Tensor]:
    """n Gaussians behind each other before a camera of 21 x 13 pixels, colours as SH."""
    g = torch.Generator().manual_seed(n)
    uniform = lambda *shape: torch.rand(*shape, generator=g)  # noqa: E731
    means = (uniform(n, 3) - 0.5) * torch.tensor([1.2, 0.8, 2.0]) + torch.tensor([0.0, 0.0, 3.0])
    tensors = {
        "means": means,
        "quats": torch.randn(n, 4, generator=g),
        "scales": 0.05 + 0.4 * uniform(n, 3),
        "opacities": 0.05 + 0.949 * uniform(n).sqrt(),
        "colors": ((uniform(n, 3) - 0.5) / SH0)[:, None],
        "masks": (uniform(n) < 0.5).float(),
    }
    return {k: v.to(DEVICE).requires_grad_() for k, v in (tensors | more).items()}


def rendered(
    tensors: dict[str, Tensor], width: int = 21, height: int = 13, **options: Any
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    K = torch.tensor([[20.0, 0, width / 2], [0, 20.0, height / 2], [0, 0, 1]], device=DEVICE)
    image, alphas, info = rasterization(
        tensors["means"],
        tensors["quats"],
        tensors["scales"],
        tensors["opacities"],
        tensors["colors"],
        torch.eye(4, device=DEVICE)[None],
        K[None],
        width,
        height,
        sh_degree=0,
        backgrounds=torch.tensor([[0.1, 0.2, 0.3]], device=DEVICE),
        masks=tensors["masks"],
        backend="triton",
        **options,
    )
    return image[0], alphas[0, ..., 0], info


def gradients(
    tensors: dict[str, Tensor], v_image: Tensor, v_alphas: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    image, alphas, info = rendered(tensors)
    loss = (image * v_image).sum() + (alphas * v_alphas).sum()
    leaves = tensors | {"means2d": info["means2d"]}
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(leaves, grads, strict=True)), image


def weights() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    return tuple(torch.randn(13, 21, *k, generator=g).to(DEVICE) for k in ((3,), ()))  # pyright: ignore


@pytest.mark.parametrize("row", COLUMNS, ids=[row[0] for row in COLUMNS])
def test_the_published_column(row: tuple) -> None:
    pattern, v_alphas, v_masks = row
    tensors = {
        "means": torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0], [0.0, 0.0, 3.0]]),
        "quats": torch.tensor([[1.0, 0, 0, 0]] * 3),
        "scales": torch.full((3, 3), 0.5),
        "opacities": torch.tensor([0.5, 0.4, 0.3]),
        "colors": ((torch.eye(3) - 0.5) / SH0)[:, None],
        "masks": torch.tensor([float(m) for m in pattern]),
    }
    tensors = {k: v.to(DEVICE).requires_grad_() for k, v in tensors.items()}
    with published_gradients():
        image, _, _ = rendered(tensors, 5, 5)
        loss = (image[2, 2] * torch.tensor([1.0, 2.0, -1.0], device=DEVICE)).sum()
        got = torch.autograd.grad(loss, [tensors["opacities"], tensors["masks"]])
    # at the centre exp(-sigma) = 1, so the gradient of an opacity is that of its alpha
    for name, values, want in zip(("alphas", "masks"), got, (v_alphas, v_masks), strict=True):
        assert values.tolist() == pytest.approx(want, abs=2e-6), name


def recursion(tensors: dict[str, Tensor], v_image: Tensor, v_alphas: Tensor) -> dict[str, Tensor]:
    """The published loop, pixel by pixel in float64, by the geometry that a rendering reports."""
    info = rendered(tensors)[2]
    means2d, conics = (info[k][0].detach().double().cpu() for k in ("means2d", "conics"))
    seen = (info["radii"][0] > 0).all(-1).cpu()
    order = [i for i in info["depths"][0].detach().cpu().argsort().tolist() if seen[i]]
    o, masks = (tensors[k].detach().double().cpu() for k in ("opacities", "masks"))
    c = tensors["colors"].detach().double().cpu()[:, 0] * SH0 + 0.5
    background = torch.tensor([0.1, 0.2, 0.3]).double()
    n = len(o)
    v = {"opacities": torch.zeros(n), "masks": torch.zeros(n), "colors": torch.zeros(n, 1, 3)}
    v = {k: x.double() for k, x in (v | {"means2d": torch.zeros(1, n, 2)}).items()}
    y, x = torch.meshgrid(torch.arange(13) + 0.5, torch.arange(21) + 0.5, indexing="ij")
    d = torch.stack([x, y], -1).double()[:, :, None] - means2d  # [13, 21, n, 2]
    A, B, C = conics.unbind(-1)
    slopes = torch.stack([A * d[..., 0] + B * d[..., 1], B * d[..., 0] + C * d[..., 1]], -1)
    raws = o * torch.exp(-0.5 * (slopes * d).sum(-1))
    stopped, clamped = 0, 0
    for y in range(13):
        for x in range(21):
            g, ga = v_image[y, x].double().cpu(), float(v_alphas[y, x])
            T, kept = 1.0, []
            for i in order:
                raw = float(raws[y, x, i])
                if raw < ALPHA_MIN:
                    continue
                alpha, M = min(raw, ALPHA_MAX), float(masks[i])
                clamped += raw > ALPHA_MAX
                if T * (1 - M * alpha) < TRANSMITTANCE_MIN:
                    stopped += 1
                    break
                T *= 1 - M * alpha
                kept.append((i, alpha, raw, M, slopes[y, x, i]))
            T_end = T
            last_alpha, last_color = 0.0, torch.zeros(3).double()
            behind = torch.zeros(3).double()
            for i, alpha, raw, M, slope in reversed(kept):
                T /= 1 - M * alpha
                behind = M * last_alpha * last_color + (1 - M * last_alpha) * behind
                last_alpha, last_color = alpha, c[i]
                q = float(T * (g @ (c[i] - behind)))
                q -= T_end / (1 - M * alpha) * (float(g @ background) - ga)
                v["masks"][i] += alpha * q
                v["opacities"][i] += raw / o[i] * M * q
                v["means2d"][0, i] += raw * M * q * slope
                v["colors"][i, 0] += M * alpha * T * g * SH0
    # the rare cases are among them
    assert stopped > 10 and clamped > 0, (stopped, clamped)
    return v


def test_the_published_recursion(assert_close) -> None:
    tensors, (v_image, v_alphas) = scene(60), weights()
    want = recursion(tensors, v_image, v_alphas)
    exact, image = gradients(tensors, v_image, v_alphas)
    with published_gradients():
        got, same = gradients(tensors, v_image, v_alphas)
    assert torch.equal(image, same)
    for name, value in want.items():
        assert_close(name, got[name], value, 2e-5)
    # colours are right in both, mixed masks are not
    assert_close("colors", got["colors"], exact["colors"], 1e-3)
    for name in ("masks", "opacities", "means", "scales", "quats"):
        error = (got[name] - exact[name]).norm() / exact[name].norm()
        assert error > 0.05, name


@pytest.mark.parametrize("mask", [1.0, 0.0])
def test_equal_masks_make_no_difference(mask: float, assert_close) -> None:
    tensors = scene(30, masks=torch.full((30,), mask))
    exact, _ = gradients(tensors, *weights())
    with published_gradients():
        got, _ = gradients(tensors, *weights())
    for name, value in exact.items():
        # the exact backward rounds its products to fp16
        assert_close(name, got[name], value, 2e-3)
    assert exact["masks"].norm() > 0.1


@pytest.mark.parametrize("option", ["absgrad", "deterministic"])
def test_what_was_not_published_is_refused(option: str) -> None:
    exact = kernels.blending.blend_bwd
    with pytest.raises(SplatrimError, match="SH colours alone"), published_gradients():
        assert kernels.blending.blend_bwd is not exact
        image, _, _ = rendered(scene(3), **{option: True})
        image.sum().backward()
    assert kernels.blending.blend_bwd is exact
