"""Masks in the rasterizer: published columns and scenes, thresholds, and what must not change."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import rasterization
from kernels.constants import ALPHA_MIN

WIDTH, HEIGHT = 9, 5
CENTER = (4, 2)
F64 = torch.float64


def grad_of(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def column(
    alphas: list[float], masks: list[float], *, dtype: torch.dtype = F64, bg: Tensor | None = None
) -> dict[str, Tensor]:
    """Wide Gaussians one behind the other, their centres on the centre of one pixel.

    Returns the colour and alpha of that pixel and the leaves.
    """
    n = len(alphas)
    leaves = {
        "means": torch.tensor([[0.0, 0.0, 1.0 + i] for i in range(n)], dtype=dtype),
        "opacities": torch.tensor(alphas, dtype=dtype),
        "colors": torch.eye(max(n, 3), dtype=dtype)[:n, :3].contiguous(),
        "masks": torch.tensor(masks, dtype=dtype),
    }
    for leaf in leaves.values():
        leaf.requires_grad_()
    K = torch.tensor([[8.0, 0, CENTER[0] + 0.5], [0, 8.0, CENTER[1] + 0.5], [0, 0, 1]], dtype=dtype)
    colors, alpha, info = rasterization(
        leaves["means"],
        torch.tensor([[1.0, 0, 0, 0]], dtype=dtype).repeat(n, 1),
        torch.full((n, 3), 0.5, dtype=dtype),
        leaves["opacities"],
        leaves["colors"],
        torch.eye(4, dtype=dtype)[None],
        K[None],
        WIDTH,
        HEIGHT,
        backgrounds=None if bg is None else bg.to(dtype)[None],
        masks=leaves["masks"],
        contributions=True,
        backend="reference",
    )
    pixel = (0, CENTER[1], CENTER[0])
    return leaves | {
        "color": colors[pixel],
        "alpha": alpha[pixel][0],
        "count": info["contrib_count"],
    }


# mask, colour, transmittance, dL/dalpha, dL/dmask of three Gaussians with alpha .5, .4, .3 in red,
# green, blue over (.1, .2, .3), for L = (1, 2, -1) . colour. Every value is exact.
COLUMNS = [
    ("111", (0.521, 0.242, 0.153), 0.21, (0.296, 1.08, -0.36), (0.148, 0.432, -0.108)),
    ("011", (0.042, 0.484, 0.306), 0.42, (0, 2.16, -0.72), (0.148, 0.864, -0.216)),
    ("101", (0.535, 0.07, 0.255), 0.35, (1.16, 0, -0.6), (0.58, 0.432, -0.18)),
    ("110", (0.53, 0.26, 0.09), 0.30, (0.08, 0.9, 0), (0.04, 0.36, -0.108)),
    ("001", (0.07, 0.14, 0.51), 0.70, (0, 0, -1.2), (0.58, 0.864, -0.36)),
    ("010", (0.06, 0.52, 0.18), 0.60, (0, 1.8, 0), (0.04, 0.72, -0.216)),
    ("100", (0.55, 0.1, 0.15), 0.50, (0.8, 0, 0), (0.4, 0.36, -0.18)),
    ("000", (0.1, 0.2, 0.3), 1.0, (0, 0, 0), (0.4, 0.72, -0.36)),
]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["f32", "f64"])
@pytest.mark.parametrize("row", COLUMNS, ids=[row[0] for row in COLUMNS])
def test_three_gaussians(row: tuple, dtype: torch.dtype) -> None:
    pattern, color, T, v_alphas, v_masks = row
    masks = [float(m) for m in pattern]
    bg = torch.tensor([0.1, 0.2, 0.3], dtype=F64)
    got = column([0.5, 0.4, 0.3], masks, dtype=dtype, bg=bg)
    limit = 1e-6 if dtype == torch.float32 else 1e-9
    g = torch.tensor([1.0, 2.0, -1.0], dtype=dtype)

    def close(name: str, value: Tensor, want: tuple | float) -> None:
        expected = torch.tensor(want, dtype=dtype)
        assert torch.allclose(value, expected, rtol=0, atol=limit), f"{name}: {value}, not {want}"

    close("color", got["color"].detach(), color)
    close("T", 1 - got["alpha"].detach(), T)
    (got["color"] * g).sum().backward()
    # At the centre exp(-sigma) = 1, so the gradient of an opacity is that of its alpha.
    close("v_alphas", grad_of(got["opacities"]), v_alphas)
    close("v_masks", grad_of(got["masks"]), v_masks)
    before = 1.0
    for i, a in enumerate((0.5, 0.4, 0.3)):
        want = masks[i] * a * before * g
        assert torch.allclose(grad_of(got["colors"])[i], want, rtol=0, atol=limit)
        before *= 1 - masks[i] * a


# W=50, H=37, two Gaussians: mean colour, colour and T at column 27 of row 17, loss, dL/dmask,
# dL/do, and dL/dmean2d of each in NDC units.
SCENES = [
    ((1, 1), (0.200044, 0.420533, 0.579422), (0.737409, 0.297741, 0.164850), 0.074468, 2.114673,
     (3.09181, -0.339893), (3.864762, -0.485562), (33.48349, -23.26894), (1.48503, -1.20095)),
    ((0, 1), (0.194018, 0.423926, 0.582055), (0.135036, 0.659857, 0.405108), 0.350358, -0.977136,
     (3.09181, -0.229139), (0, -0.327341), (0, 0), (2.015, -1.40962)),
    ((1, 0), (0.205576, 0.398407, 0.596017), (0.751217, 0.242509, 0.206273), 0.212547, 2.454567,
     (3.202564, -0.339893), (4.003205, 0), (37.71887, -26.38774), (0, 0)),
    ((0, 0), (0.2, 0.4, 0.6), (0.2, 0.4, 0.6), 1.0, -0.747997,
     (3.202564, -0.229139), (0, 0), (0, 0), (0, 0)),
]  # fmt: skip


def two_gaussians(masks: tuple[float, float]) -> tuple[dict[str, Tensor], Tensor, Tensor, dict]:
    W, H = 50, 37
    quat = torch.tensor([0.9, 0.1, 0.2, 0.3], dtype=F64)
    leaves = {
        "means": torch.tensor([[0.1, -0.05, 2.0], [0.05, 0, 3.0]], dtype=F64),
        "quats": torch.stack([quat / quat.norm(), torch.tensor([1.0, 0, 0, 0], dtype=F64)]),
        "scales": torch.tensor([[0.10, 0.04, 0.06], [0.3, 0.3, 0.02]], dtype=F64),
        "opacities": torch.tensor([0.8, 0.7], dtype=F64),
        "colors": torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.8, 0.3]], dtype=F64),
    }
    mask = torch.tensor(masks, dtype=F64, requires_grad=True)
    for leaf in leaves.values():
        leaf.requires_grad_()
    K = torch.tensor([[50.0, 0, 25], [0, 50, 18.5], [0, 0, 1]], dtype=F64)
    colors, alphas, info = rasterization(
        *leaves.values(),
        viewmats=torch.eye(4, dtype=F64)[None],
        Ks=K[None],
        width=W,
        height=H,
        near_plane=0.2,
        backgrounds=torch.tensor([[0.2, 0.4, 0.6]], dtype=F64),
        masks=mask,
        backend="reference",
    )
    return leaves | {"masks": mask}, colors[0], alphas[0, ..., 0], info


@pytest.mark.parametrize("row", SCENES, ids=[f"{row[0][0]}{row[0][1]}" for row in SCENES])
def test_two_gaussians(row: tuple) -> None:
    masks, mean, pixel, T, loss, v_masks, v_opacities, v_mean_a, v_mean_b = row
    leaves, image, alpha, info = two_gaussians(masks)
    H, W, _ = image.shape
    c, y, x = torch.meshgrid(torch.arange(3), torch.arange(H), torch.arange(W), indexing="ij")
    weights = torch.cos(0.37 * ((c * H + y) * W + x).double()).permute(1, 2, 0)
    value = (image * weights).sum()
    value.backward()
    v_means2d = info["means2d"].grad[0] * torch.tensor([0.5 * W, 0.5 * H], dtype=F64)

    def close(name: str, got: Tensor, want: tuple | float) -> None:
        # The figures have six digits.
        expected = torch.tensor(want, dtype=F64)
        assert torch.allclose(got.detach(), expected, rtol=1e-5, atol=2e-6), f"{name}: {got}"

    close("mean2d", info["means2d"][0] - 0.5, ((27.0, 16.75), (25.333333, 18.0)))
    close("conics", info["conics"][0], ((0.369711, -0.267996, 0.505858), (0.0395256, 0, 0.0395257)))
    close("mean", image.mean((0, 1)), mean)
    close("pixel", image[17, 27], pixel)
    close("T", 1 - alpha[17, 27], T)
    close("loss", value, loss)
    close("v_masks", grad_of(leaves["masks"]), v_masks)
    close("v_opacities", grad_of(leaves["opacities"]), v_opacities)
    close("v_mean2d of A", v_means2d[0], v_mean_a)
    close("v_mean2d of B", v_means2d[1], v_mean_b)


def test_alpha_threshold_is_strict() -> None:
    lowest = torch.tensor(1.0).div(255.0)
    below = torch.nextafter(lowest, torch.tensor(0.0))
    for opacity, kept in ((lowest, True), (below, False)):
        for mask in (1.0, 0.0):
            got = column([opacity.item()], [mask], dtype=torch.float32)
            got["color"].sum().backward()
            assert (got["color"][0] > 0) == (kept and mask > 0)
            assert (grad_of(got["masks"])[0] != 0) == kept
    assert abs(lowest.item() - ALPHA_MIN) < 1e-9


def test_clamped_opacity_keeps_its_gradient() -> None:
    got = column([0.995], [1.0])
    got["color"].sum().backward()
    assert got["alpha"].item() == pytest.approx(0.99, abs=1e-8)
    assert grad_of(got["opacities"]).item() == pytest.approx(1.0, abs=1e-12)
    just_below, just_above = (column([0.99 + d], [1.0])["alpha"].item() for d in (-1e-7, 1e-7))
    assert just_above - just_below == pytest.approx(1e-7, abs=2e-8)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["f32", "f64"])
def test_two_saturated_layers_stop(dtype: torch.dtype) -> None:
    got = column([0.999, 0.999], [1.0, 1.0], dtype=dtype)
    got["color"].sum().backward()
    assert 1 - got["alpha"].item() == pytest.approx(0.00999999, abs=1e-7)
    assert got["color"][1] == 0
    assert grad_of(got["masks"])[1] == 0


def test_unsampled_layer_does_not_stop() -> None:
    # The third stops; the unsampled second has a mask gradient, what is behind has none.
    got = column([0.995, 0.995, 0.995, 0.5], [1.0, 0.0, 1.0, 1.0])
    got["color"].sum().backward()
    assert got["color"].tolist() == pytest.approx([0.99, 0, 0], abs=1e-7)
    assert (grad_of(got["masks"]) != 0).tolist() == [True, True, False, False]

    # T is just above the limit and stays there for any unsampled layer.
    T = 1.0001e-4
    got = column([0.99, 1 - T / (1 - 0.9900000095367432), 0.99], [1.0, 1.0, 0.0])
    (got["color"].sum() + got["alpha"]).backward()
    assert 1 - got["alpha"].item() == pytest.approx(T, rel=1e-6)
    assert (grad_of(got["masks"]) != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["f32", "f64"])
def test_a_ray_goes_on_where_its_transmittance_equals_the_limit(dtype: torch.dtype) -> None:
    # thirteen halvings, and 1 - alpha = 2^13 limit: every product is exact
    limit = torch.tensor(1e-4, dtype=dtype)
    last = (1.0 - limit * 2**13).item()
    got = column([0.5] * 13 + [last, 0.5], [1.0] * 15, dtype=dtype)
    got["alpha"].backward()
    assert torch.equal(1.0 - got["alpha"].detach(), 1.0 - (1.0 - limit))
    assert (grad_of(got["masks"]) != 0).tolist() == [True] * 14 + [False]

    got = column([0.5] * 13 + [last + 1e-6], [1.0] * 14, dtype=dtype)
    assert 1.0 - got["alpha"].item() == pytest.approx(2**-13, rel=1e-3)


def random_scene(
    n: int, seed: int, dtype: torch.dtype = F64
) -> tuple[list[Tensor], dict[str, Any]]:
    g = torch.Generator().manual_seed(seed)
    means = (torch.rand(n, 3, generator=g) - 0.5) * 2 + torch.tensor([0, 0, 3.0])
    leaves = [
        means,
        torch.randn(n, 4, generator=g),
        torch.exp(torch.randn(n, 3, generator=g) * 0.5 - 2),
        torch.rand(n, generator=g) * 0.9 + 0.05,
        torch.rand(n, 3, generator=g),
    ]
    K = torch.tensor([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]])
    camera = {
        "viewmats": torch.eye(4, dtype=dtype)[None],
        "Ks": K.to(dtype)[None],
        "width": 32,
        "height": 24,
        "backgrounds": torch.tensor([[0.3, 0.5, 0.7]], dtype=dtype),
        "backend": "reference",
    }
    return [leaf.to(dtype).requires_grad_() for leaf in leaves], camera


def render(
    leaves: list[Tensor], camera: dict[str, Any], **masks: Any
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    means, quats, scales, opacities, colors = leaves
    return rasterization(means, quats, scales, opacities, colors, **(camera | masks))


@pytest.mark.parametrize("keep", [0.999, 0.9, 0.5, 0.1])
def test_unsampled_gaussians_might_as_well_be_absent(keep: float) -> None:
    leaves, camera = random_scene(120, seed=3)
    weights = torch.randn(1, 24, 32, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    sampled = torch.rand(120, generator=torch.Generator().manual_seed(2)) < keep
    masks = sampled.double().requires_grad_()
    image, alphas, _ = render(leaves, camera, masks=masks)
    v_full = torch.autograd.grad((image * weights).sum(), leaves)

    alone = [leaf.detach()[sampled].requires_grad_() for leaf in leaves]
    image_alone, alphas_alone, _ = render(alone, camera)
    v_alone = torch.autograd.grad((image_alone * weights).sum(), alone)
    assert torch.equal(image, image_alone)
    assert torch.equal(alphas, alphas_alone)
    for full, want in zip(v_full, v_alone, strict=True):
        assert torch.allclose(full[sampled], want, rtol=1e-10, atol=1e-12)
        assert (full[~sampled] == 0).all()


def test_mask_gradient_is_a_finite_difference_of_any_step() -> None:
    # Without stops the loss is affine in every mask.
    leaves, camera = random_scene(12, seed=5)
    leaves = [leaf.detach() for leaf in leaves]
    leaves[3] = leaves[3] * 0.4
    weights = torch.randn(1, 24, 32, 3, dtype=F64, generator=torch.Generator().manual_seed(1))

    def loss(masks: Tensor) -> Tensor:
        return (render(leaves, camera, masks=masks)[0] * weights).sum()

    masks = (torch.arange(12) % 2).double().requires_grad_()
    (v_masks,) = torch.autograd.grad(loss(masks), masks)
    for i in range(12):
        on, off = masks.detach().clone(), masks.detach().clone()
        on[i], off[i] = 1, 0
        assert (loss(on) - loss(off)).item() == pytest.approx(v_masks[i].item(), abs=1e-10)


def test_opacity_and_mask_gradients_agree() -> None:
    leaves, camera = random_scene(60, seed=6)
    masks = torch.rand(60, dtype=F64, generator=torch.Generator().manual_seed(7)).requires_grad_()
    image, _, _ = render(leaves, camera, masks=masks)
    v_opacities, v_masks = torch.autograd.grad(image.square().sum(), [leaves[3], masks])
    # Opacities are at most 0.95, so nothing is clamped.
    assert torch.allclose(leaves[3] * v_opacities, masks * v_masks, rtol=1e-9, atol=1e-12)
    assert v_masks.abs().max() > 0


def test_all_ones_and_all_zeros() -> None:
    leaves, camera = random_scene(80, seed=8)
    plain, plain_alphas, _ = render(leaves, camera)
    ones, ones_alphas, _ = render(leaves, camera, masks=torch.ones(80, 1, dtype=F64))
    assert torch.equal(plain, ones)
    assert torch.equal(plain_alphas, ones_alphas)

    masks = torch.zeros(80, dtype=F64, requires_grad=True)
    image, alphas, _ = render(leaves, camera, masks=masks)
    assert torch.equal(image, camera["backgrounds"][:, None, None].expand_as(image))
    assert (alphas == 0).all()
    *v_leaves, v_masks = torch.autograd.grad(image.sum(), [*leaves, masks])
    assert all((v == 0).all() for v in v_leaves)
    # Every unsampled Gaussian sees the whole ray: alpha <g, c - bg> summed over its pixels.
    lone = [leaf.detach()[:1] for leaf in leaves]
    covered = render(lone, camera)[1].sum()
    want = covered * (lone[4] - camera["backgrounds"]).sum()
    assert v_masks[0].item() == pytest.approx(want.item(), abs=1e-9)


def test_soft_and_strided_masks() -> None:
    leaves, camera = random_scene(40, seed=9)
    wide = torch.rand(40, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    strided = render(leaves, camera, masks=wide[:, 1])[0]
    packed = render(leaves, camera, masks=wide[:, 1].clone())[0]
    assert torch.equal(strided, packed)
    one = column([0.6], [0.5])
    assert one["alpha"].item() == pytest.approx(0.3)
    assert column([0.6], [1 + 6e-8])["alpha"].item() == pytest.approx(0.6, abs=1e-6)


def test_culled_gaussians_have_zero_mask_gradients() -> None:
    leaves, camera = random_scene(6, seed=10)
    means = leaves[0].detach().clone()
    means[0, 2], means[1, 0], means[2, 2] = -1.0, 50.0, math.nan
    masks = torch.ones(6, dtype=F64, requires_grad=True)
    image, _, info = render([means, *leaves[1:]], camera, masks=masks)
    image.sum().backward()
    assert (info["radii"][0, :3] == 0).all()
    assert (grad_of(masks)[:3] == 0).all()
    assert (grad_of(masks)[3:] != 0).all()
