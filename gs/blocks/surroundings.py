"""Surroundings of a block: frozen Gaussians of other blocks that its cameras see.

A block is trained among copies of its neighbours' Gaussians as they were when its wave began. The
image is that of the whole, so supervision is right up to the border and beyond, and the gradient of
its own rows is that of training in one piece; the copies get none and never change.

Pixels that own Gaussians do not reach have no part in their gradient. So of each camera's image a
box is rendered, of the tiles that own Gaussians reached when the wave began and two more around
them: the loss's windows reach over one and a quarter. What others show elsewhere is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from kernels import RasterInputs, RenderSettings, exchange

from ..data.camera import Camera
from ..model.model import Model
from ..model.specs import PUBLISHED
from ..model.splats import Frozen, Splats
from ..model.view import view_of

REACH = 3.5  # standard deviations; beyond sqrt(2 ln 255) = 3.33 alpha is below 1/255
PADDING = 8.0  # pixels; the antialiasing blur reaches 3.33 sqrt(0.3) = 1.8
TILE, MARGIN = 8, 16  # pixels; two windows of the loss reach 10
_FURTHER = ("mask_logits", "ids")


def seen_rows(
    cameras: Sequence[Camera],
    means: Tensor,  # [N, 3]
    scales: Tensor,  # [N, 3] log
    boxes: Tensor | None = None,  # [C, 4]
) -> Tensor:  # [N] bool
    """Which Gaussians may reach a pixel of any camera: spheres that meet a view's frustum.

    Some are kept that reach none; none is left out that does. With boxes (left, top, right, bottom)
    pixels of these count alone.
    """
    radius = REACH * scales.amax(dim=1).exp()
    seen = torch.zeros(len(means), dtype=torch.bool, device=means.device)
    limits = None if boxes is None else boxes.tolist()
    for place, camera in enumerate(cameras):
        left, top, right, bottom = limits[place] if limits else (0, 0, camera.width, camera.height)
        if right <= left or bottom <= top:
            continue
        viewmat, K = camera.viewmat.to(means), camera.K.to(means)
        x, y, z = (means @ viewmat[:3, :3].T + viewmat[:3, 3]).unbind(1)
        inside = z > camera.near
        for across, focal, centre, first, last in (
            (x, K[0, 0], K[0, 2], left, right),
            (y, K[1, 1], K[1, 2], top, bottom),
        ):
            low, high = (first - PADDING - centre) / focal, (last + PADDING - centre) / focal
            inside = inside & (across - low * z > -radius * (1 + low * low).sqrt())
            inside = inside & (high * z - across > -radius * (1 + high * high).sqrt())
        seen |= inside
    return seen


@torch.no_grad()
def reached_boxes(model: Model, cameras: Sequence[Camera]) -> Tensor:  # [C, 4] int32
    """Of each camera's image the pixels that a model reaches, widened: left, top, right, bottom.

    On the model's device; zeros where it reaches none.
    """
    boxes = []
    for camera in cameras:
        view = view_of(camera, model.device)
        splats = model.splats(view)
        inputs = RasterInputs(
            splats.means,
            splats.quats,
            splats.scales,
            splats.opacities,
            splats.colors,
            view.viewmats.to(splats.means),
            view.Ks.to(splats.means),
        )
        settings = RenderSettings(view.width, view.height, view.near, sh_degree=0, raw=splats.raw)
        made = exchange.project_records(inputs, settings, 1)
        radii, means2d = made.radii[0], made.means2d[0]
        visible = (radii > 0).all(-1, keepdim=True)
        far = torch.iinfo(torch.int32).max // 2
        low = torch.where(visible, means2d - radii, far).amin(0)
        high = torch.where(visible, means2d + radii, -far).amax(0)
        size = means2d.new_tensor([view.width, view.height])
        low = ((low / TILE).floor() * TILE - MARGIN).clamp_min(0)
        high = torch.minimum((high / TILE).ceil() * TILE + MARGIN, size)
        box = torch.cat([low, high])
        boxes.append(torch.where((high > low).all(), box, 0.0))
    return torch.stack(boxes).int()


def find_surroundings(
    others: Iterable[Mapping[str, Tensor]],
    cameras: Sequence[Camera],
    boxes: Tensor | None,  # [C, 4] int32
    device: torch.device,
    *,
    sh_degree: int,
) -> Frozen | None:
    """What a block's cameras see of other blocks; None for nothing.

    Args:
        others: Raw parameters of each other block, and "ids" [N] int32; on any device.
        cameras: The block's.
        boxes: Pixels of each camera that count; None: all.
        device: Where the copies are to be.
        sh_degree: Highest degree that any block uses by now.
    """
    found: dict[str, list[Tensor]] = {}
    for tensors in others:
        if not len(tensors["ids"]):
            continue
        places = {name: tensors[name].to(device) for name in ("means", "scales")}
        seen = seen_rows(cameras, places["means"], places["scales"], boxes)
        rows = seen.nonzero()[:, 0]
        if not len(rows):
            continue
        for name in (*PUBLISHED, *_FURTHER):
            if name in tensors:
                whole = places.get(name, tensors[name])
                found.setdefault(name, []).append(whole.to(device)[rows])
    if not found:
        return None
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    logits = joined.get("mask_logits")
    if logits is not None and logits.dim() != 2:
        logits = None  # of a method whose masks are not drawn in the rasterizer
    splats = Splats(
        joined["means"],
        joined["quats"],
        joined["scales"],
        joined["opacities"],
        joined["sh0"],
        joined["shN"],
        sh_degree=sh_degree,
        raw=True,
    )
    return Frozen(splats, joined["ids"], logits, boxes)
