"""Rasterization of 3D Gaussians with masks, in Triton and in plain PyTorch."""

from .rasterization import rasterization

__all__ = ["rasterization"]
