"""Photometric losses: L1, and with the structural similarity of Wang et al. (2004).

SSIM and the loss of 3DGS are a Triton kernel for float32 on a GPU, and plain PyTorch elsewhere.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import photometric_loss
from kernels import structural_similarity as ssim

__all__ = ["l1", "photometric_loss", "ssim", "to_float", "total"]


def l1(a: Tensor, b: Tensor) -> Tensor:  # [...], [...] -> []
    """Mean absolute difference."""
    return (a - b).abs().mean()


def to_float(image: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An image in 0..1; uint8 is divided by 255, floats keep their values."""
    return image.to(dtype) / 255.0 if image.dtype == torch.uint8 else image.to(dtype)


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
