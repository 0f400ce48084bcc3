"""Rasterization of 3D Gaussians with masks, in Triton and in plain PyTorch."""

from .rasterization import rasterization
from .reference.sampling import sample_masks, uniform

__all__ = ["rasterization", "sample_masks", "uniform"]
