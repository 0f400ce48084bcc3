r"""Structural similarity of Wang et al. (2004) and the photometric loss, in plain PyTorch.

SSIM compares images a and b under a Gaussian window G (11x11, sigma 1.5, zero padding), per pixel
and channel, and is averaged over both:

    mu_a = G*a    s_aa = G*a^2 - mu_a^2    s_ab = G*(ab) - mu_a mu_b
    A1 = 2 mu_a mu_b + C1      A2 = 2 s_ab + C2
    B1 = mu_a^2 + mu_b^2 + C1  B2 = s_aa + s_bb + C2
    S = (A1 A2) / (B1 B2)

G is symmetric, so its adjoint is itself and the gradient needs three blurs per channel:

    v_a = G*(v dS/dmu_a) + 2 a G*(v dS/ds_aa) + b G*(v dS/ds_ab)

where dS/dmu_a is taken with G*a^2 and G*(ab) held fixed.

A target of four channels has a mask in the last: a pixel counts where that is above the half. Any
other pixel of the target is taken as the rendering shows it, as a constant, so that what it hides
reaches no window; its own part of S, and its gradient, are left out. Sums are divided by all
pixels, so that a pixel's gradient does not depend on how many count.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

WINDOW = 11
SIGMA = 1.5
C1 = 0.01**2  # for images in 0..1
C2 = 0.03**2


def ssim(
    a: Tensor,  # [H, W, D] in 0..1
    b: Tensor,  # [H, W, D] in 0..1
) -> Tensor:  # []
    """Mean over pixels and channels, differentiable in both images; float32 or float64."""
    return _SSIM.apply(a.permute(2, 0, 1), b.permute(2, 0, 1))


def ssim_of_counted(
    a: Tensor,  # [H, W, D] in 0..1
    b: Tensor,  # [H, W, D] in 0..1
    counted: Tensor,  # [H, W] bool
) -> Tensor:  # []
    """Mean over the pixels in whose windows all count; if there are none, over all that count."""
    similarity = _similarity(*_statistics(a.permute(2, 0, 1), b.permute(2, 0, 1))[2:])
    missing = functional.max_pool2d((~counted)[None].to(a.dtype), WINDOW, 1, WINDOW // 2)[0]
    whole = counted & (missing == 0)
    whole = torch.where(whole.any(), whole, counted)
    return similarity.where(whole, 0.0).sum() / (len(similarity) * whole.sum())


def photometric_loss(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3 or 4] uint8 or float
    lambda_dssim: float,
) -> Tensor:  # []
    """(1 - lambda) L1 + lambda (1 - SSIM), Kerbl et al. (2023), equation 7."""
    if target.shape[2] == 4:
        return _values(colors, target, lambda_dssim)[0]
    target = _to_float(target, colors.dtype)
    loss = (1.0 - lambda_dssim) * (colors - target).abs().mean()
    if lambda_dssim == 0.0:
        return loss
    return loss + lambda_dssim * (1.0 - ssim(colors, target))


def photometric_values(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3 or 4] uint8 or float
    lambda_dssim: float,
) -> Tensor:  # [5]
    """loss, l1, ssim, and l1 and mse of clamped colours, of pixels that count."""
    return _values(colors.detach(), target, lambda_dssim)


def photometric_gradient(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3 or 4] uint8 or float
    lambda_dssim: float,
) -> tuple[Tensor, Tensor]:  # [5], [H, W, 3]
    """photometric_values, and the gradient of the loss."""
    leaf = colors.detach().requires_grad_()
    with torch.enable_grad():
        values = _values(leaf, target, lambda_dssim)
        (v_colors,) = torch.autograd.grad(values[0], leaf)
    return values.detach(), v_colors


def photometric_rows(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3] uint8 or float
    lambda_dssim: float,
    first: int,
    last: int,
    n_rows: int,
) -> tuple[Tensor, Tensor]:  # [5], [H, W, 3]
    """The parts that rows of a window have in values and gradient of an image of n_rows rows."""
    share = len(colors) / n_rows
    _, v_colors = photometric_gradient(colors, target, lambda_dssim)
    v_colors[:first] = 0.0
    v_colors[last:] = 0.0
    a, b = colors.detach(), _to_float(target.detach(), colors.dtype)
    own = slice(first, last)
    dssim = 1.0 - _similarity(*_statistics(a.permute(2, 0, 1), b.permute(2, 0, 1))[2:])[:, own]
    difference, error = (a - b)[own], (a.clamp(0, 1) - b)[own]
    sums = [dssim.sum(), difference.abs().sum(), error.abs().sum(), error.square().sum()]
    dssim, l1, l1_clamped, squares = torch.stack(sums) / (n_rows * colors[0].numel())
    loss = (1.0 - lambda_dssim) * l1 + lambda_dssim * dssim
    values = torch.stack([loss, l1, (last - first) / n_rows - dssim, l1_clamped, squares])
    return values, v_colors * share


def _values(colors: Tensor, target: Tensor, lambda_dssim: float) -> Tensor:
    """photometric_values, the first three differentiable."""
    colors, target, counted = _unmasked(colors, target.detach())
    l1 = (colors - target).abs().mean()
    s = _SSIM.apply(colors.permute(2, 0, 1), target.permute(2, 0, 1), counted)
    error, share = colors.detach().clamp(0, 1) - target, 1.0
    if counted is not None:
        error = torch.where(counted[..., None], error, 0.0)
        # where nothing counts, the sums are 0
        share = counted.to(error).mean().clamp_min(0.5 / counted.numel())
    loss = (1.0 - lambda_dssim) * l1 + lambda_dssim * (1.0 - s)
    clamped = error.abs().mean() / share, error.square().mean() / share
    return torch.stack([loss, l1, s, *clamped])


def _unmasked(colors: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both images as they are compared, [H, W, 3], and which pixels count, [H, W] or None."""
    if target.shape[2] == 3:
        return colors, _to_float(target, colors.dtype), None
    counted = target[..., 3] > (127 if target.dtype == torch.uint8 else 0.5)
    those, fixed = counted[..., None], colors.detach()
    truth = _to_float(target[..., :3], colors.dtype)
    return torch.where(those, colors, fixed), torch.where(those, truth, fixed), counted


def _to_float(image: Tensor, dtype: torch.dtype) -> Tensor:
    return image.to(dtype) / 255.0 if image.dtype == torch.uint8 else image.to(dtype)


def _window(x: Tensor) -> Tensor:  # [11], of x's type and device
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2.0 * SIGMA**2))
    return (weights / weights.sum()).to(x)


def _blur(images: Tensor) -> Tensor:  # [M, H, W] -> [M, H, W]
    """Filter each image with the Gaussian window, rows then columns, zeros outside."""
    pad, channels = WINDOW // 2, len(images)
    # One depthwise channel per image: ten times faster on a CPU than a batch of images.
    weights = _window(images).expand(channels, 1, 1, -1)
    x = functional.conv2d(images[None], weights, padding=(0, pad), groups=channels)
    x = functional.conv2d(x, weights.transpose(2, 3), padding=(pad, 0), groups=channels)
    return x[0]


def _statistics(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """mu_a, mu_b, A1, A2, B1 and B2 of images [D, H, W]."""
    maps = _blur(torch.cat([a, b, a * a, b * b, a * b]))
    mu_a, mu_b, aa, bb, ab = maps.chunk(5)
    A1 = 2.0 * mu_a * mu_b + C1
    A2 = 2.0 * (ab - mu_a * mu_b) + C2
    B1 = mu_a * mu_a + mu_b * mu_b + C1
    B2 = aa - mu_a * mu_a + bb - mu_b * mu_b + C2
    return mu_a, mu_b, A1, A2, B1, B2


def _similarity(A1: Tensor, A2: Tensor, B1: Tensor, B2: Tensor) -> Tensor:
    return A1 * A2 / (B1 * B2)


class _SSIM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,  # [D, H, W]
        b: Tensor,  # [D, H, W]
        counted: Tensor | None = None,  # [H, W] bool
    ) -> Tensor:  # []
        statistics = _statistics(a, b)
        ctx.save_for_backward(a, b, *statistics)
        ctx.counted = counted
        similarity = _similarity(*statistics[2:])
        return (similarity if counted is None else similarity.where(counted, 1.0)).mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, v: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        a, b, mu_a, mu_b, A1, A2, B1, B2 = ctx.saved_tensors
        scale = v / a.numel() / (B1 * B2)
        if ctx.counted is not None:
            scale = scale.where(ctx.counted, 0.0)
        v_A1, v_A2 = scale * A2, scale * A1
        v_B1 = -v_A1 * A1 / B1
        v_B2 = -v_A2 * A2 / B2
        cross, own = 2.0 * (v_A1 - v_A2), 2.0 * (v_B1 - v_B2)

        def vjp(x: Tensor, y: Tensor, mu_x: Tensor, mu_y: Tensor) -> Tensor:
            v_mu = mu_y * cross + mu_x * own
            v_x, v_xx, v_xy = _blur(torch.cat([v_mu, v_B2, v_A2])).chunk(3)
            return v_x + 2.0 * (x * v_xx + y * v_xy)

        v_a = vjp(a, b, mu_a, mu_b) if ctx.needs_input_grad[0] else None
        v_b = vjp(b, a, mu_b, mu_a) if ctx.needs_input_grad[1] else None
        return v_a, v_b, None
