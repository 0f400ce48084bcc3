"""Photometric losses: L1, and with the structural similarity of Wang et al. (2004).

SSIM and the loss of 3DGS are a Triton kernel for float32 on a GPU, and plain PyTorch elsewhere.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import photometric_gradient, photometric_loss
from kernels import structural_similarity as ssim

__all__ = ["compared", "counted_of", "l1", "over", "photometric_loss", "ssim", "to_float", "total"]


def counted_of(image: Tensor) -> Tensor | None:  # [H, W, 3 or 4] uint8 -> [H, W] bool
    """Which pixels of an image count by its fourth channel; None where it has none: all."""
    return image[..., 3] > 127 if image.shape[-1] == 4 else None


def over(
    image: Tensor,  # [H, W, 4] uint8
    background: Tensor,  # [3]
) -> Tensor:  # [H, W, 3] float32
    """An image with alpha that was composited over black, over a background instead."""
    premultiplied, alpha = to_float(image).split((3, 1), dim=-1)
    return torch.addcmul(premultiplied, 1.0 - alpha, background)


def l1(a: Tensor, b: Tensor) -> Tensor:  # [...], [...] -> []
    """Mean absolute difference."""
    return (a - b).abs().mean()


def to_float(image: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An image in 0..1; uint8 is divided by 255, floats keep their values."""
    return image.to(dtype) / 255.0 if image.dtype == torch.uint8 else image.to(dtype)


def compared(
    images: Sequence[Tensor],  # [H, W, 3] each
    targets: Sequence[Tensor],  # [H, W, 3 or 4] uint8 each
    lambda_dssim: float,
    background: Tensor | None = None,  # [3]
) -> tuple[Tensor, list[Tensor]]:  # [5], [H, W, 3] each
    """Values of the photometric loss, summed over images, and its gradients.

    Args:
        images: Renderings.
        targets: What they are to show; with masks, or alpha where there is a background.
        lambda_dssim: Share of D-SSIM.
        background: What targets are composited over; None: they are as they shall be.
    """
    if background is not None:
        targets = [over(target, background) for target in targets]
    found = [
        photometric_gradient(image, target, lambda_dssim)
        for image, target in zip(images, targets, strict=True)
    ]
    values = found[0][0] if len(found) == 1 else torch.stack([x for x, _ in found]).sum(0)
    return values, [v_image for _, v_image in found]


def total(
    image_loss: Tensor,  # []
    v_colors: Sequence[Tensor],  # as colors
    colors: Sequence[Tensor],  # of any shapes
    *terms: Tensor,  # []
) -> Tensor:  # []
    """image_loss, whose gradient with respect to colors is v_colors, and the terms; added.

    For `backward()` alone, without a gradient: given one, torch imports sympy, which takes up to
    two seconds of a run's first step. A scale would not reach v_colors.
    """
    return _Total.apply(image_loss, len(colors), *v_colors, *colors, *terms)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image_loss: Tensor, n_images: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[:n_images])
        terms = tensors[2 * n_images :]
        ctx.n_terms = len(terms)
        return sum(terms, start=image_loss.clone())

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, v: Tensor
    ) -> tuple[Tensor | None, ...]:
        v_colors = ctx.saved_tensors
        return None, None, *[None] * len(v_colors), *v_colors, *[v] * ctx.n_terms
