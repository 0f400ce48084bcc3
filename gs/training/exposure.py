"""Exposure compensation: what each photograph did to the light is learnt beside the scene.

affine   3x4 numbers per image, as the exposure compensation of 3DGS: gains, mixing and offsets
ppisp    exposure and colour per image, vignetting per lens, as PPISP

Equations and regularisers stand in kernels/reference/light.py.

It acts between rendering and loss, on the background too, and clamps nothing. Adam steps the rows
of all images in each iteration, as published: an image's momentum goes on until it has faded.
Rates are the published ones over the run, larger in shorter runs as all others are; affine ones
end at a tenth of theirs, as PPISP's, so that images come to rest.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from ..config import PUBLISHED_ITERATIONS
from ..data.camera import Camera
from ..model.light import NAME, Kind, Light, light_of
from ..model.model import Model
from ..model.rates import OptimConfig, step_gain
from .strategy import StepContext, Strategy

AFFINE_RATES = 1e-3, 1e-5  # at the start and at the end
PPISP_RATES = 2e-3, 2e-5
WARM_UP, WARM_UP_FROM = 500, 0.01  # of PUBLISHED_ITERATIONS; share of the rate


class Exposure(Strategy[Any]):
    """Learns the light of the images of some cameras.

    Args:
        kind: "affine" or "ppisp".
        cameras: Those that are trained on, in the order of the run's.
    """

    name = "exposure"

    def __init__(self, kind: Kind, cameras: Sequence[Camera]) -> None:
        self.kind: Kind = kind
        self.cameras = cameras

    def setup(self, gaussians: Model, *, extent: float, iterations: int, seed: int) -> None:
        light = Light.of_cameras(self.kind, self.cameras)
        rate = affine_rate if self.kind == "affine" else ppisp_rate
        gaussians.add_shared(
            NAME, light, lr=lambda config, extent, step: rate(config, step), scheduled=True
        )

    def after_render(self, step: int, colors: Tensor, ctx: StepContext[Any]) -> Tensor:
        light = light_of(ctx.gaussians)
        assert light is not None and ctx.inputs is not None
        return light(colors, ctx.inputs.view.exposure, regularised=True)

    def phase(self, step: int) -> Hashable | None:
        return "learns light"


def affine_rate(config: OptimConfig, step: int) -> float:
    """Log-linear over the run."""
    return _gain(config) * _between(AFFINE_RATES, step / max(config.position_lr_max_steps, 1))


def ppisp_rate(config: OptimConfig, step: int) -> float:
    """The same, after a linear warm-up."""
    length = max(config.position_lr_max_steps, 1)
    warm_up = max(WARM_UP * length / PUBLISHED_ITERATIONS, 1.0)
    share = min(WARM_UP_FROM + (1.0 - WARM_UP_FROM) * step / warm_up, 1.0)
    return _gain(config) * share * _between(PPISP_RATES, step / length)


def _gain(config: OptimConfig) -> float:
    return step_gain(config.position_lr_max_steps / PUBLISHED_ITERATIONS)


def _between(rates: tuple[float, float], t: float) -> float:
    low, high = (math.log(rate) for rate in rates)
    return math.exp(low + min(max(t, 0.0), 1.0) * (high - low))
