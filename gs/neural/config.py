"""Settings of neural Gaussians: their shape, and the learning rates of their parameters.

The defaults are those of Scaffold-GS (Lu et al., CVPR 2024), whose rates fall log-linearly up to
--position_lr_max_steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from ..model.rates import OptimConfig
from ..model.specs import Rate
from ..ranges import NOT_NEGATIVE, POSITIVE, Range, check_ranges


@dataclass(frozen=True)
class NeuralConfig:
    """Anchors with features, and a decoder that makes Gaussians of them."""

    feature_dim: Annotated[int, Range(1, 256)] = 32
    """Features of an anchor; the hidden layers of the decoder are as wide."""
    offsets: Annotated[int, Range(1, 24)] = 10
    """Gaussians that an anchor is decoded into."""
    voxel_size: Annotated[float, NOT_NEGATIVE] = 0.001
    """One anchor at first in each cell of this size, scene units; 0: the median distance of a
    starting point to its neighbours."""
    view_input: Literal["all", "color"] = "all"
    """Whether the direction of view decides on opacity, shape and colour, or on colour alone."""
    appearance_dim: Annotated[int, Range(0, 256)] = 0
    """Numbers learnt for each training image, which colours depend on; other views get the mean."""
    offset_lr_init: Annotated[float, POSITIVE] = 0.01
    """Learning rate of offsets at the start, per unit of scene extent."""
    offset_lr_final: Annotated[float, POSITIVE] = 1e-4
    """The same at position_lr_max_steps."""
    anchor_feature_lr: Annotated[float, NOT_NEGATIVE] = 0.0075
    """Learning rate of anchors' features."""
    anchor_scaling_lr: Annotated[float, NOT_NEGATIVE] = 0.007
    """Learning rate of anchors' scales (logarithms)."""
    mlp_opacity_lr_init: Annotated[float, POSITIVE] = 0.002
    """Learning rate of the net of opacities at the start."""
    mlp_opacity_lr_final: Annotated[float, POSITIVE] = 2e-5
    """The same at position_lr_max_steps."""
    mlp_cov_lr: Annotated[float, NOT_NEGATIVE] = 0.004
    """Learning rate of the net of scales and rotations."""
    mlp_color_lr_init: Annotated[float, POSITIVE] = 0.008
    """Learning rate of the net of colours at the start."""
    mlp_color_lr_final: Annotated[float, POSITIVE] = 5e-5
    """The same at position_lr_max_steps."""
    appearance_lr_init: Annotated[float, POSITIVE] = 0.05
    """Learning rate of what is learnt for each image, at the start."""
    appearance_lr_final: Annotated[float, POSITIVE] = 5e-4
    """The same at position_lr_max_steps."""

    def __post_init__(self) -> None:
        check_ranges(self)


def falling(first: float, last: float, *, by_extent: bool = False) -> Rate:
    """A learning rate that goes from `first` to `last` log-linearly, and then stays.

    Args:
        first: At iteration 0.
        last: At position_lr_max_steps.
        by_extent: Whether both are per unit of scene extent.
    """

    def rate(config: OptimConfig, extent: float, step: int) -> float:
        t = min(max(step / max(config.position_lr_max_steps, 1), 0.0), 1.0)
        value = math.exp((1.0 - t) * math.log(first) + t * math.log(last))
        return value * extent if by_extent else value

    return rate
