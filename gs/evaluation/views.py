"""Image quality of a model on given views, the same for the trainer, rendering and metrics.

A rendering is rounded to 8 bits before it is compared, as its PNG is, so that the trainer's figures
and those of the written images are equal. Where images have masks, pixels count that they let
through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..data.camera import Camera
from ..losses import counted_of, l1, ssim, to_float
from ..model.light import as_taken
from ..model.model import Model
from ..model.renderer import RenderOutput, render

MIN_MSE = 1e-12  # PSNR of equal images is 120 dB and not infinite


class Images(Protocol):
    """Ground truth by index, as gs.data.loader.ImageLoader gives it."""

    def __getitem__(self, index: int, /) -> Tensor: ...  # [H, W, 3 or 4] uint8

    def prefetch(self, indices: list[int], /) -> None: ...


class ViewScore(NamedTuple):
    """Quality of one view."""

    name: str
    """The camera's image name."""
    psnr: float
    """Peak signal-to-noise ratio over pixels and channels, dB."""
    ssim: float
    l1: float
    """Mean absolute difference, in 0..1."""
    counted: float = 1.0
    """Share of the pixels that count."""


OnView = Callable[[int, Camera, Tensor, Tensor], None]
"""Gets position, camera, rendering [H,W,3] and ground truth [H,W,3 or 4], uint8."""


def quantize(colors: Tensor) -> Tensor:  # [H, W, 3] float -> [H, W, 3] uint8
    """Round 0..1 to 0..255, half up, and clamp; NaN becomes 0."""
    return colors.detach().mul(255.0).add(0.5).nan_to_num(nan=0.0).clamp(0, 255).to(torch.uint8)


def psnr(a: Tensor, b: Tensor) -> Tensor:  # two of one shape -> []
    """Peak signal-to-noise ratio in dB over all elements; uint8, or floats in 0..1.

    Equal images get 120 dB.
    """
    if a.shape != b.shape:
        raise ValueError(f"psnr: expected one shape, got {list(a.shape)} and {list(b.shape)}")
    mse = (to_float(a) - to_float(b)).square().mean().clamp_min(MIN_MSE)
    return -10.0 * mse.log10()


@torch.no_grad()
def evaluate_views(
    model: Model,
    cameras: Sequence[Camera],
    images: Images,
    background: Tensor | None = None,  # [3]
    *,
    indices: Sequence[int] | None = None,
    on_view: OnView | None = None,
    render_view: Callable[..., RenderOutput] = render,
    **raster_kwargs: Any,
) -> list[ViewScore]:
    """Render views and compare them with their images, in their light (gs.model.light).

    Args:
        model: The model; all of its SH degrees that are active are used.
        cameras: The views.
        images: Their ground truth, by the same index.
        background: Colour behind the Gaussians; None is black. [3]
        indices: Which of `cameras` to evaluate; None is all.
        on_view: Called for each view, to save or show it.
        render_view: Stands in for gs.model.renderer.render, to time it.
        **raster_kwargs: Further keywords of `kernels.rasterization`.
    """
    indices = range(len(cameras)) if indices is None else indices
    values: list[Tensor] = []
    for position, index in enumerate(indices):
        images.prefetch([*indices[position + 1 : position + 3]])
        camera = cameras[index]
        out = render_view(model, camera, background=background, **raster_kwargs)
        rendering, truth = quantize(as_taken(model, out.colors, camera)), images[index]
        values.append(_compare(to_float(rendering), to_float(truth[..., :3]), counted_of(truth)))
        if on_view is not None:
            on_view(position, camera, rendering, truth)
    if not values:
        return []
    # one transfer for all views
    rows = torch.stack(values).tolist()
    return [ViewScore(cameras[i].image_name, *row) for i, row in zip(indices, rows, strict=True)]


def mean_scores(scores: Sequence[ViewScore]) -> dict[str, float]:
    """Means of psnr, ssim and l1 over views, and of counted where it is not 1; {} for none.

    A view in which nothing counts is left out.
    """
    scores = [score for score in scores if score.counted > 0.0]
    if not scores:
        return {}
    keys = ["psnr", "ssim", "l1"]
    if any(score.counted < 1.0 for score in scores):
        keys.append("counted")
    return {key: math.fsum(getattr(s, key) for s in scores) / len(scores) for key in keys}


def _compare(
    a: Tensor,  # [H, W, 3]
    b: Tensor,  # [H, W, 3]
    counted: Tensor | None,  # [H, W] bool
) -> Tensor:  # [4]
    """The numbers of a ViewScore."""
    if counted is None:
        return torch.stack([psnr(a, b), ssim(a, b), l1(a, b), a.new_ones(())])
    seen, truth = a[counted], b[counted]
    similarity = ssim(a, b, counted=counted)
    return torch.stack([psnr(seen, truth), similarity, l1(seen, truth), counted.float().mean()])
