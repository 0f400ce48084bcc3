"""Rasterization of 3D Gaussians with masks, and its loss, in Triton and in plain PyTorch."""

from typing import TYPE_CHECKING, Any

from .densification import add_gradient_norms
from .photometric import (
    photometric_gradient,
    photometric_loss,
    photometric_values,
    structural_similarity,
)
from .rasterization import rasterization
from .reference.sampling import logistic_noise, sample_masks, uniform

if TYPE_CHECKING:
    from .adam import FusedAdam

__all__ = [
    "FusedAdam",
    "add_gradient_norms",
    "logistic_noise",
    "photometric_gradient",
    "photometric_loss",
    "photometric_values",
    "rasterization",
    "sample_masks",
    "structural_similarity",
    "uniform",
]


def __getattr__(name: str) -> Any:
    """What needs Triton is imported only when asked for."""
    if name == "FusedAdam":
        from .adam import FusedAdam

        return FusedAdam
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
