"""Steps of several images: how the optimizer's settings follow, and which views go together.

The gradient of a step is the sum over its b images, which Adam divides by its root mean square. The
square-root rule (Zhao et al., "On Scaling Up 3D Gaussian Splatting Training", ECCV 2024 workshops,
https://arxiv.org/abs/2406.18533, section 4.3) says

    learning rates times sqrt(b)      betas^b      eps over sqrt(b), on the mean gradient

and on the sum, which needs no pass that divides it, eps times sqrt(b): the same step. So b steps of
independent gradients move a parameter as far, and are remembered as long, as one step of b images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..data.camera import Camera
from ..model.view import View, views_of


class AdamSettings(NamedTuple):
    """Of steps of some number of images."""

    gain: float
    """Factor on learning rates."""
    betas: tuple[float, float]
    eps: float


def batched(betas: tuple[float, float], eps: float, n_images: float) -> AdamSettings:
    """Settings for the sum of `n_images` gradients in place of a single one.

    Of so many, all but some may be zero: steps that a block leaves out (gs.blocks.schedule).
    """
    gain = math.sqrt(n_images)
    return AdamSettings(gain, (betas[0] ** n_images, betas[1] ** n_images), eps * gain)


def moments_for(state: Mapping[str, Any], before: int, now: int) -> dict[str, Any]:
    """An optimizer's state (gs.training.optimizer) of steps of `before` images for steps of `now`.

    Sums of more images are larger, and as many images make fewer steps.
    """
    if before == now:
        return dict(state)
    ratio = now / before
    factors = {"exp_avg": ratio, "exp_avg_sq": ratio * ratio, "step": 1.0 / ratio}
    return {
        name: entry
        if name == "lrs"
        else {key: torch.as_tensor(x) * factors[key] for key, x in entry.items()}
        for name, entry in state.items()
    }


def grouped(
    cameras: Sequence[Camera], indices: Sequence[int], device: torch.device, *, together: bool
) -> tuple[list[int], list[View]]:
    """The views of a step, one for all cameras of a size and lens, or one for each.

    Args:
        cameras: All cameras.
        indices: Which of them the step takes.
        device: Where the views are to be.
        together: Whether several cameras may be rendered at once.

    Returns:
        The indices in the order of the views' cameras, and the views.
    """
    groups: dict[Any, list[int]] = {}
    for place, index in enumerate(indices):
        camera = cameras[index]
        size = camera.width, camera.height, camera.near, camera.lens
        groups.setdefault(size if together else place, []).append(index)
    members = list(groups.values())
    views = [views_of([cameras[i] for i in those], device, those) for those in members]
    return [i for those in members for i in those], views
