"""The Triton stages in order: what `kernels.rasterization` runs on CUDA tensors.

    projection -> depth order -> tile lists -> blending (-> contributions)

Tile lists live in buffers whose capacity is a guess, a little above the largest number of
intersections seen. The true number is copied to the host while the GPU sorts and blends; it is
read after everything is queued, so the GPU never waits for the host, and a call whose guess was
too small repeats the lists and the images with room for all before it returns.

A CUDA graph can neither read a count nor repeat anything. There the caller fixes the capacities
(`Room`) and compares them with `info["needed"]` once the graph has run.
"""

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .binning import depth_order, isect_tiles
from .blending import Blend, rasterize_to_pixels
from .constants import EPS2D, FAR_PLANE, NEAR_PLANE, TILE_SIZE
from .contributions import contributions as measure_contributions
from .device import INTERPRET
from .projection import project
from .reference.rasterization import rasterize as rasterize_nothing

SLACK = 1.125  # capacity over the number of intersections seen
GRAIN = 128 if INTERPRET.value else 1 << 15  # capacities are multiples of this


class Room(NamedTuple):
    """Capacities that a caller fixes, for a call that is captured in a CUDA graph."""

    rows: int
    """Visible (camera, Gaussian) pairs."""
    entries: int
    """Intersections of Gaussians and tiles."""


class Capacity:
    """How many intersections to make room for on one device, learnt from what was seen."""

    def __init__(self, device: torch.device) -> None:
        self.entries = 0
        pinned = device.type == "cuda"
        self._count = torch.zeros(1, dtype=torch.int32, pin_memory=pinned)
        self._event = torch.cuda.Event() if pinned else None

    def ask(self, n_isects: Tensor) -> None:
        """Start copying the count to the host."""
        self._count.copy_(n_isects, non_blocking=True)
        if self._event is not None:
            self._event.record()

    def answer(self) -> int:
        """The count of the last `ask`, and adapt to it."""
        if self._event is not None:
            self._event.synchronize()
        n = int(self._count)
        if n > self.entries or n * SLACK * 2 < self.entries:
            self.entries = max(-(-int(n * SLACK) // GRAIN), 1) * GRAIN
        return n


class _Capacities(threading.local):
    """One Capacity per device and thread; losing it costs one synchronisation."""

    def __init__(self) -> None:
        self.by_device: dict[torch.device, Capacity] = {}

    def __getitem__(self, device: torch.device) -> Capacity:
        if device not in self.by_device:
            self.by_device[device] = Capacity(device)
        return self.by_device[device]


_capacities = _Capacities()


def rasterize(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, D], [C, N, D] or [N, K, 3]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    *,
    near_plane: float = NEAR_PLANE,
    far_plane: float = FAR_PLANE,
    eps2d: float = EPS2D,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,  # [C, D]
    render_mode: str = "RGB",
    antialiased: bool = False,
    absgrad: bool = False,
    masks: Tensor | None = None,  # [N]
    mask_logits: Tensor | None = None,  # [N] or [N, 2]
    mask_seed: int | Tensor = 0,  # or [2] int32
    mask_ids: Tensor | None = None,  # [N] int32
    contributions: bool = False,
    deterministic: bool = False,
    exact: bool = False,
    colors_rest: Tensor | None = None,  # [N, K - 1, 3]
    raw: bool = False,
    sort: str = "torch",
    covars: Tensor | None = None,  # [N, 3, 3]
    normalize_quats: bool = True,
    room: Room | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render without validating; `kernels.rasterization` documents arguments and results.

    Args:
        exact: Gradients to float32 rounding, with twice the matrix products in the backward.
        colors_rest: SH coefficients above degree 0, with `colors` [N, 1, 3] the rest of them.
        raw: `scales` are logarithms and `opacities` logits; exp and sigmoid are fused.
        sort: "torch" or "triton" (binning.py).
        covars: World covariances in place of quats and scales.
        normalize_quats: False uses quaternions as they are.
        room: Fixed capacities. Nothing is copied to the host or waited for, so that the call and
            its backward can be captured in a CUDA graph, and `info["needed"]` [2] int32 on the
            device says how many rows and entries the scene has: images and gradients are right
            only where both are within the room. `rows` does not limit anything yet, and
            needed[0] is C N.
    """
    N, C, device = means.shape[0], viewmats.shape[0], means.device
    if N == 0:
        image, alphas, info = rasterize_nothing(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height,
            sh_degree=sh_degree, backgrounds=backgrounds, render_mode=render_mode, masks=masks,
            mask_logits=mask_logits, contributions=contributions,
        )  # fmt: skip
        if room is not None:
            info["needed"] = torch.zeros(2, dtype=torch.int32, device=device)
        return image, alphas, info
    if mask_ids is not None:
        mask_ids = mask_ids.to(torch.int32).contiguous()
    has_depth = "D" in render_mode
    sh0 = colors if sh_degree is not None else None
    projected = project(
        means, quats, scales, opacities, sh0, colors_rest, viewmats, Ks, width, height,
        near_plane=float(near_plane), far_plane=float(far_plane), eps2d=float(eps2d),
        sh_degree=sh_degree, antialiased=antialiased, masks=masks, mask_logits=mask_logits,
        mask_seed=mask_seed, mask_ids=mask_ids, raw=raw, covars=covars,
        normalize_quats=normalize_quats,
    )  # fmt: skip
    means2d, records = projected.means2d, projected.records
    if means2d.requires_grad:
        means2d.retain_grad()

    features, first_column, n_features = _features(colors, records, sh_degree, render_mode)
    background = _background(backgrounds, render_mode, C, device)
    tiles_x, tiles_y = -(-width // TILE_SIZE), -(-height // TILE_SIZE)
    depth = depth_order(projected.depth_keys, projected.tiles_per_gauss, sort)
    n_isects = depth.cumulative[-1:]
    capacity = _capacities[device] if room is None else room
    if isinstance(capacity, Capacity):
        capacity.ask(n_isects)
        if capacity.entries == 0:
            capacity.answer()

    while True:
        entries = capacity.entries
        lists = isect_tiles(records, depth, entries, tiles_x, tiles_y, sort)
        args = Blend(
            width, height, tiles_x, tiles_y, depth, lists, first_column, n_features,
            colors_only=features is None and not has_depth,
            mask_gradient=projected.masks is not None and projected.masks.requires_grad,
            absgrad=absgrad, deterministic=deterministic, exact=exact,
        )  # fmt: skip
        image, alphas = rasterize_to_pixels(means2d, records, features, background, args)
        if isinstance(capacity, Room) or capacity.answer() <= entries:
            break

    if "ED" in render_mode:
        image = _expected_depth(image, alphas)
    info: dict[str, Any] = {
        "width": width,
        "height": height,
        "tile_size": TILE_SIZE,
        "radii": projected.radii,
        "means2d": means2d,
        "depths": records[..., 7],
        "conics": records[..., 2:5],
        "tiles_per_gauss": projected.tiles_per_gauss,
        "n_isects": n_isects,
        "n_nonfinite": projected.n_nonfinite,
        "masks": projected.masks,
    }
    if room is not None:
        info["needed"] = torch.full((2,), C * N, dtype=torch.int32, device=device)
        info["needed"][1:] = n_isects
    if contributions:
        info |= measure_contributions(records.detach(), lists, width, height, tiles_x, tiles_y)
    return image, alphas, info


def _features(
    colors: Tensor, records: Tensor, sh_degree: int | None, render_mode: str
) -> tuple[Tensor | None, int, int]:
    """Features to blend (None: columns of records), their first column there, and their number."""
    has_depth = "D" in render_mode
    if "RGB" not in render_mode:
        return None, 11, 1
    if sh_degree is not None:
        return None, 8, 3 + has_depth
    if not has_depth:
        return colors.contiguous(), 0, colors.shape[-1]
    C, N = records.shape[:2]
    features = torch.cat([colors.expand(C, N, -1), records[..., 7:8]], -1)
    return features, 0, features.shape[-1]


def _background(
    backgrounds: Tensor | None, render_mode: str, C: int, device: torch.device
) -> Tensor | None:
    """Backgrounds [C, D] with nothing behind the depth, or None."""
    if backgrounds is None or "RGB" not in render_mode:
        return None
    if "D" in render_mode:
        return torch.cat([backgrounds, torch.zeros(C, 1, device=device)], -1)
    return backgrounds.contiguous()


def _expected_depth(image: Tensor, alphas: Tensor) -> Tensor:
    """Divide the last channel by alpha; 0 where alpha is 0."""
    empty = alphas <= 0
    depth = torch.where(empty, 0.0, image[..., -1:] / torch.where(empty, 1.0, alphas))
    return torch.cat([image[..., :-1], depth], -1)
