"""Scores of Gaussians by values of pixels, in some training views: edges, or errors.

With w_ip the blending weight of Gaussian i in pixel p of a view,

    edge    the mean over views of   minmax_i( sum_p omega_p w_ip )
    error   the largest over views of  sum_p w_ip e_p / mean(e)

where omega is the strength of edges in the true image: the grey image, in 255 levels, less its
8 neighbours, times 8 and -1, clipped to 0..255, from 0 at the least to 1 at the most (Deng et al.
2025, https://arxiv.org/abs/2508.12313, "edge-aware score"); and e is the absolute error of a pixel,
the mean over channels. minmax takes the values of a view to 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..losses import to_float
from ..model.gaussians import Gaussians
from ..model.renderer import render
from .taming import sum_over_pixels

if TYPE_CHECKING:
    from ..data.camera import Camera
    from ..evaluation.views import Images

PixelScore = Literal["edge", "error"]
GREY = (0.299, 0.587, 0.114)


@torch.no_grad()
def pixel_scores(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    images: Images,
    views: Sequence[int],
    kind: PixelScore,
    *,
    white_background: bool = False,
) -> Tensor:  # [N] float32, at least 0
    """Score of every Gaussian over some views; see the module's docstring.

    Args:
        gaussians: The model.
        cameras: Training cameras.
        images: Their images, by the same index.
        views: Which of them to score over, at least one.
        kind: Which score.
        white_background: Render over white instead of black.
    """
    background = torch.full((3,), float(white_background), device=gaussians.device)
    total = torch.zeros(len(gaussians), device=gaussians.device)
    for view in views:
        camera, truth = cameras[view], to_float(images[view])
        if kind == "edge":
            sums = sum_over_pixels(gaussians, camera, edge_strength(truth))
            total += minmax(sums) / len(views)
        else:
            colors = render(gaussians, camera, background=background).colors
            error = (colors - truth).abs().mean(-1)
            error = error / error.mean().clamp_min(1e-8)
            total = torch.maximum(total, sum_over_pixels(gaussians, camera, error))
    return total.clamp_min(0.0)


def edge_strength(image: Tensor) -> Tensor:  # [H, W, 3] in 0..1 -> [H, W] in 0..1
    """How strong edges are in an image, relative to its strongest; 0 for one without."""
    grey = (image @ image.new_tensor(GREY) * 255.0).round()
    padded = functional.pad(grey[None, None], (1, 1, 1, 1), mode="replicate")
    around = 9.0 * functional.avg_pool2d(padded, 3, 1)[0, 0]
    return minmax((9.0 * grey - around).clamp(0.0, 255.0))


def minmax(values: Tensor) -> Tensor:
    """Values from 0 at the least to 1 at the most; 0 where all are equal."""
    low, high = values.aminmax()
    return (values - low) / (high - low).clamp_min(1e-12)
