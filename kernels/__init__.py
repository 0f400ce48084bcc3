"""Rasterization of 3D Gaussians with masks, and its loss, in Triton and in plain PyTorch."""

import importlib
from typing import TYPE_CHECKING

from .backend import uses_triton
from .densification import add_gradient_norms, add_langevin_noise, add_regularizer_gradients
from .masks import sampled_in_any
from .photometric import (
    photometric_gradient,
    photometric_loss,
    photometric_values,
    structural_similarity,
)
from .rasterization import rasterization
from .reference.masks import logistic_noise, philox, sample_masks, uniform

if TYPE_CHECKING:
    from .adam import FusedAdam
    from .masks.kernel import split_seed
    from .pipeline import rasterize
    from .runtime.capacity import Room
    from .runtime.launch import warm_up

_NEED_TRITON = {
    "FusedAdam": ".adam",
    "Room": ".runtime.capacity",
    "rasterize": ".pipeline",
    "split_seed": ".masks.kernel",
    "warm_up": ".runtime.launch",
}

__all__ = [
    "FusedAdam",
    "Room",
    "add_gradient_norms",
    "add_langevin_noise",
    "add_regularizer_gradients",
    "logistic_noise",
    "philox",
    "photometric_gradient",
    "photometric_loss",
    "photometric_values",
    "rasterization",
    "rasterize",
    "sample_masks",
    "sampled_in_any",
    "split_seed",
    "structural_similarity",
    "uniform",
    "uses_triton",
    "warm_up",
]


def __getattr__(name: str) -> object:
    """What needs Triton is imported only when asked for."""
    if name in _NEED_TRITON:
        value = getattr(importlib.import_module(_NEED_TRITON[name], __name__), name)
        globals()[name] = value  # the next time it is found without a call
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
