"""Photometric losses: L1, and with the structural similarity of Wang et al. (2004).

SSIM and the loss of 3DGS are a Triton kernel for float32 on a GPU, and plain PyTorch elsewhere.
"""

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
    v_colors: Tensor,  # as colors
    colors: Tensor,  # any shape
    *terms: Tensor,  # []
) -> Tensor:  # []
    """image_loss, whose gradient with respect to colors is v_colors, and the terms; added.

    For `backward()` alone, without a gradient: given one, torch imports sympy, which takes up to
    two seconds of a run's first step. A scale would not reach v_colors.
    """
    return _Total.apply(image_loss, v_colors, colors, *terms)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image_loss: Tensor, v_colors: Tensor, _: Tensor, *terms: Tensor
    ) -> Tensor:
        ctx.save_for_backward(v_colors)
        ctx.n_terms = len(terms)
        return sum(terms, start=image_loss.clone())

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, v: Tensor
    ) -> tuple[Tensor | None, ...]:
        return None, None, ctx.saved_tensors[0], *[v] * ctx.n_terms
