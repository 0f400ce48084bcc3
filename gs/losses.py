"""Photometric losses: L1, and with the structural similarity of Wang et al. (2004).

SSIM and the loss of 3DGS are a Triton kernel for float32 on a GPU, and plain PyTorch elsewhere.
"""

import torch
from torch import Tensor

from kernels import photometric_loss
from kernels import structural_similarity as ssim

__all__ = ["l1", "photometric_loss", "ssim", "to_float"]


def l1(a: Tensor, b: Tensor) -> Tensor:  # [...], [...] -> []
    """Mean absolute difference."""
    return (a - b).abs().mean()


def to_float(image: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An image in 0..1; uint8 is divided by 255, floats keep their values."""
    return image.to(dtype) / 255.0 if image.dtype == torch.uint8 else image.to(dtype)
