"""Pictures of a model for somebody who looks on: colours, depth, or the Gaussians themselves.

A model under training is drawn as its last iteration drew it, with masks sampled, as it would be
saved, or with all its Gaussians. Nothing is waited for where the caller knows a capacity: counts
come back with the picture (kernels.rasterization).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kernels import Capacity

from ..data.camera import Camera, resized_camera
from ..data.loader import ImageLoader
from ..model.model import Model
from ..model.renderer import render
from ..model.splats import Splats
from ..model.view import View, pack_view, unpack_view
from ..training.captured_steps import Record
from ..training.strategy import Strategy
from .copied import CopiedPictures, Picture

Show = Literal["colours", "depth", "Gaussians"]
Masks = Literal["sampled, as in training", "kept, as saved", "off"]
SHOWS, MASKS = get_args(Show), get_args(Masks)
EXPORT_EVERY = 1.0  # seconds; finding the rows that are kept waits for the GPU
SOLID, SOLID_FROM = 0.999, 0.05  # opacity of a Gaussian that is shown itself, and who is
NEAR_COLOR, FAR_COLOR = (1.0, 0.93, 0.6), (0.05, 0.03, 0.35)
CONTRAST = 2.5  # of depths around their median
GAP_COLOR = 24  # 0..255, around and between pictures


logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class Look:
    """How a model is shown."""

    show: Show = "colours"
    masks: Masks = "sampled, as in training"
    size: float = 0.5
    """Of Gaussians that are shown themselves, in standard deviations of each."""


class Subject:
    """A model to look at: under training or finished.

    Args:
        model: What is trained, or a finished model.
        cameras: Views with images.
        images: Their images.
        background: Colour behind the Gaussians, in 0..1. [3]
        strategies: Those of the training.
        exported: The model as it would be saved; None for a finished one.
        record: Captures graphs, for pictures drawn in a stream of a GPU's own; None: all are eager.
    """

    def __init__(
        self,
        model: Callable[[], Model],
        cameras: Sequence[Camera],
        images: ImageLoader,
        background: tuple[float, float, float],
        *,
        strategies: Sequence[Strategy[Any]] = (),
        exported: Callable[[], Model] | None = None,
        record: Record | None = None,
    ) -> None:
        self._copied = None if record is None else CopiedPictures(record)
        self.model, self.cameras, self.images = model, cameras, images
        self.strategies, self.step = strategies, 0
        self._exported, self._export = exported, (0, -EXPORT_EVERY, model())
        self.on_gpu = model().device.type == "cuda"
        self._background = torch.tensor(background, device=model().device)

    @torch.no_grad()
    def draw(self, camera: Camera, look: Look, capacity: Capacity | None = None) -> Picture:
        """A picture from a camera, at its width and height."""
        model, keywords, integers = self._pick(look.masks)
        view = _view(camera, model.device)
        splats = model.splats(view)
        paint = partial(_paint, look, self._background)
        # the median of depths waits for the GPU
        if self._copied is not None and capacity is not None and look.show != "depth":
            shared = camera, keywords, integers, paint
            try:
                picture = self._copied.draw(splats, *shared, key=look, capacity=capacity)
            except RuntimeError as error:  # a training is worth more than a fast picture
                logger.warning(f"viewer: pictures are drawn without graphs: {error}")
                picture = self._copied = None
            if picture is not None:
                return picture
        if capacity is not None:
            keywords["capacity"] = capacity
        return paint(splats, view, {**keywords, **integers})

    def _pick(self, masks: Masks) -> tuple[Model, dict[str, Any], dict[str, int]]:
        """The model to draw, and the keywords of its rendering, those that count steps apart."""
        model = self.model()
        if masks == "kept, as saved" and self._exported is not None:
            step, at, _ = self._export
            if step != self.step and time.perf_counter() - at > EXPORT_EVERY:
                self._export = self.step, time.perf_counter(), self._exported()
            return self._export[2], {}, {}
        keywords: dict[str, Any] = {}
        integers: dict[str, int] = {}
        if masks == "sampled, as in training" and self.step > 0:
            for strategy in self.strategies:
                integers |= strategy.device_inputs(self.step)
                keywords |= strategy.before_render(self.step, model)
        return model, keywords, integers


def _paint(
    look: Look, background: Tensor, splats: Splats, view: View, keywords: Mapping[str, Any]
) -> Picture:
    """What a look shows of Gaussians."""
    if look.show == "depth":
        out = render(splats, view, render_mode="ED", **keywords)
        pixels = depth_colors(out.colors, out.alphas)
    else:
        if look.show == "Gaussians":
            scales = splats.scales.exp() if splats.raw else splats.scales
            shares = splats.opacities.sigmoid() if splats.raw else splats.opacities
            solid = SOLID * (shares > SOLID_FROM)
            splats = splats._replace(scales=look.size * scales, opacities=solid, raw=False)
            keywords = {name: x for name, x in keywords.items() if name != "opacities"}
        out = render(splats, view, background=background, **keywords)
        pixels = _bytes(out.colors)
    return Picture(pixels, _counts(out.info) if pixels.is_cuda else None)


def _counts(info: Mapping[str, Any]) -> Tensor:  # [2]
    """Rows and entries of a rendering, on the device, whether or not its capacity was given."""
    if "counts" in info:
        return info["counts"]
    n_rows = (info["radii"] > 0).all(-1).sum()
    return torch.cat([n_rows.view(1), info["n_isects"].to(n_rows.dtype)])


def fitted(camera: Camera, width: int, height: int) -> Camera:
    """The camera at the largest size of its shape within so many pixels."""
    scale = min(width / camera.width, height / camera.height)
    size = (max(round(x * scale), 1) for x in (camera.width, camera.height))
    return resized_camera(camera, *size)


def beside(left: Tensor, right: Tensor, width: int, height: int) -> Tensor:  # [H, W, 3] uint8
    """Two images in the halves of a canvas, the right one resized to the size of the left."""
    canvas = left.new_full((height, width, 3), GAP_COLOR)
    h, w = left.shape[:2]
    other = interpolate(right.permute(2, 0, 1)[None].float(), (h, w), mode="area")[0]
    for k, image in enumerate((left, other.permute(1, 2, 0).round().byte())):
        x, y = k * (width // 2) + (width // 2 - w) // 2, (height - h) // 2
        canvas[y : y + h, x : x + w] = image
    return canvas


def _view(camera: Camera, device: torch.device) -> View:
    words = torch.from_numpy(pack_view(camera)).to(device, non_blocking=True)
    return unpack_view(words, camera.width, camera.height, camera.near, camera.lens)


def _bytes(colors: Tensor) -> Tensor:  # [H, W, 3] -> uint8
    return (colors.clamp(0, 1) * 255).round().byte()


def depth_colors(depths: Tensor, alphas: Tensor) -> Tensor:  # [H, W, 1] twice -> [H, W, 3] uint8
    """From near to far, half-way at the median; black where nothing is."""
    covered = alphas > 0.5
    median = torch.where(covered, depths, torch.nan).nanmedian()
    nearness = (median / (median + depths.clamp_min(0))).nan_to_num()
    nearness = (0.5 + CONTRAST * (nearness - 0.5)).clamp(0, 1)
    near, far = (torch.tensor(c, device=depths.device) for c in (NEAR_COLOR, FAR_COLOR))
    return _bytes(torch.where(covered, far + nearness * (near - far), 0.0))
