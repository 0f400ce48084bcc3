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

from kernels import RasterInputs, RenderSettings, exchange, lenses

from ..data.camera import Camera
from ..model.model import Model
from ..model.specs import PUBLISHED
from ..model.splats import Frozen, Splats
from ..model.view import View
from ..training.batch import grouped
from .manifest import FACTORS

REACH = 3.5  # standard deviations; beyond sqrt(2 ln 255) = 3.33 alpha is below 1/255
PADDING = 8.0  # pixels; the antialiasing blur reaches 3.33 sqrt(0.3) = 1.8
TILE, MARGIN = 8, 16  # pixels; two windows of the loss reach 10
AT_ONCE = 1 << 22  # pairs of a camera and a Gaussian that are looked at together
_FURTHER = ("mask_logits", "ids", FACTORS)


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
    n, radius = len(means), REACH * scales.amax(dim=1).exp()
    seen = torch.zeros(n, dtype=torch.bool, device=means.device)
    limits = torch.tensor([[0, 0, c.width, c.height] for c in cameras]) if boxes is None else boxes
    limits = limits.to(means)
    for camera, box in zip(cameras, limits, strict=True):
        if camera.distortion is not None and bool((box[2:] > box[:2]).all()):
            # asin(x) <= pi/2 x; the angle of the image's corners is that of all of it
            t = means @ camera.viewmat[:3, :3].T.to(means) + camera.viewmat[:3, 3].to(means)
            reach = 0.5 * torch.pi * (radius / t.norm(dim=1)).clamp_max(1.0)
            seen |= lenses.angles_beyond(camera.lens_words.to(means), t) <= reach
    straight = [k for k, camera in enumerate(cameras) if camera.distortion is None]
    viewmats = torch.stack([camera.viewmat for camera in cameras]).to(means)
    Ks = torch.stack([camera.K for camera in cameras]).to(means)
    near = means.new_tensor([camera.near for camera in cameras])
    for some in torch.tensor(straight, dtype=torch.int64).split(max(AT_ONCE // max(n, 1), 1)):
        rotations, shifts = viewmats[some, :3, :3], viewmats[some, :3, 3]
        x, y, z = (means @ rotations.transpose(1, 2) + shifts[:, None]).unbind(2)  # [c, N] each
        left, top, right, bottom = limits[some].unbind(1)
        inside = (z > near[some, None]) & ((right > left) & (bottom > top))[:, None]
        for across, axis, first, last in ((x, 0, left, right), (y, 1, top, bottom)):
            focal, centre = Ks[some, axis, axis], Ks[some, axis, 2]
            low = ((first - PADDING - centre) / focal)[:, None]
            high = ((last + PADDING - centre) / focal)[:, None]
            inside &= across - low * z > -radius * (1 + low * low).sqrt()
            inside &= high * z - across > -radius * (1 + high * high).sqrt()
        seen |= inside.any(0)
    return seen


@torch.no_grad()
def reached_boxes(model: Model, cameras: Sequence[Camera]) -> Tensor:  # [C, 4] int32
    """Of each camera's image the pixels that a model reaches, widened: left, top, right, bottom.

    On the model's device; zeros where it reaches none.
    """
    boxes = torch.zeros(len(cameras), 4, device=model.device)
    together = model.same_in_all_views
    indices, views = grouped(cameras, range(len(cameras)), model.device, together=together)
    at_once = max(AT_ONCE // max(len(model) * model.parts, 1), 1)
    done = 0
    for view in views:
        for k in range(0, view.n_cameras, at_once):
            some = view._replace(
                viewmats=view.viewmats[k : k + at_once],
                Ks=view.Ks[k : k + at_once],
                exposure=view.exposure[k : k + at_once],
                lens_words=None if view.lens_words is None else view.lens_words[k : k + at_once],
            )
            places = indices[done : done + some.n_cameras]
            boxes[places] = _reached(model, some)
            done += some.n_cameras
    return boxes.int()


def _reached(model: Model, view: View) -> Tensor:  # [C, 4]
    splats = model.splats(view)
    inputs = RasterInputs(
        splats.means,
        splats.quats,
        splats.scales,
        splats.opacities,
        splats.colors,
        view.viewmats,
        view.Ks,
        lenses=view.lens_words,
    )
    settings = RenderSettings(view.width, view.height, view.near, sh_degree=0, raw=splats.raw)
    settings = settings._replace(lens=view.lens)
    made = exchange.project_records(inputs, settings, 1)
    visible, means2d = (made.radii > 0).all(-1, keepdim=True), made.means2d
    far = torch.iinfo(torch.int32).max // 2
    low = torch.where(visible, means2d - made.radii, far).amin(1)
    high = torch.where(visible, means2d + made.radii, -far).amax(1)
    size = means2d.new_tensor([view.width, view.height])
    low = ((low / TILE).floor() * TILE - MARGIN).clamp_min(0)
    high = torch.minimum((high / TILE).ceil() * TILE + MARGIN, size)
    found = (high > low).all(-1, keepdim=True)
    return torch.where(found, torch.cat([low, high], -1), 0.0)


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
    others = [tensors for tensors in others if len(tensors["ids"])]
    if not others:
        return None
    has_factors = any(FACTORS in tensors for tensors in others)
    names = ("means", "scales")
    places = [{name: tensors[name].to(device) for name in names} for tensors in others]
    means, scales = (torch.cat([place[name] for place in places]) for name in names)
    seen = seen_rows(cameras, means, scales, boxes)
    counts = [len(tensors["ids"]) for tensors in others]
    found: dict[str, list[Tensor]] = {}
    for tensors, place, part in zip(others, places, seen.split(counts), strict=True):
        rows = part.nonzero()[:, 0]
        if not len(rows):
            continue
        for name in (*PUBLISHED, *_FURTHER):
            if name == FACTORS and has_factors and name not in tensors:
                found.setdefault(name, []).append(torch.ones(len(rows), device=device))
            elif name in tensors:
                whole = place.get(name, tensors[name])
                found.setdefault(name, []).append(whole.to(device)[rows])
    if not found:
        return None
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    logits = joined.get("mask_logits")
    if logits is not None and logits.dim() != 2:
        logits = None  # of a method whose masks are not drawn in the rasterizer
    if FACTORS in joined:
        opaque = joined["opacities"].sigmoid() * joined[FACTORS]
        joined["opacities"] = torch.logit(opaque, eps=1e-6)
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
