"""The Triton stages in order: what `kernels.rasterization` runs on CUDA tensors.

    projection -> depth order -> tile lists -> blending (-> contributions)

Only visible pairs of camera and Gaussian have records, sort keys and gradients of records. These
and the tile lists live in buffers whose capacities are guesses, a little above the largest numbers
seen. The numbers needed are copied to the host while the GPU sorts and blends, and read after
everything is queued, so the GPU never waits for the host, and a call whose guess was too small
repeats itself before it returns.

A CUDA graph can neither read a count nor repeat anything. There the caller fixes the capacities
(`Room`) and compares them with `info["needed"]` once the graph has run.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .binning import depth_order, isect_tiles
from .blending import Blend, rasterize_to_pixels, spread
from .constants import EPS2D, FAR_PLANE, NEAR_PLANE, TILE_SIZE
from .contributions import contributions as measure_contributions
from .device import INTERPRET
from .projection import Projected, project
from .reference.rasterization import rasterize as rasterize_nothing

SLACK = 1.125  # capacity over the numbers seen
# Calls before a capacity that is twice too large shrinks: views differ.
PATIENCE = 1 if INTERPRET.value else 200


class Room(NamedTuple):
    """Capacities, fixed by the caller where a call is captured in a CUDA graph."""

    rows: int
    """Visible (camera, Gaussian) pairs."""
    entries: int
    """Intersections of Gaussians and tiles."""

    def holds(self, needed: "Room") -> bool:
        return needed.rows <= self.rows and needed.entries <= self.entries


# Capacities are multiples of these.
GRAIN = Room(32, 128) if INTERPRET.value else Room(1 << 12, 1 << 15)


class Capacity:
    """How much room to make on one device, learnt from what was seen."""

    def __init__(self, device: torch.device) -> None:
        self.room = GRAIN
        self._most, self._calls = Room(0, 0), 0
        pinned = device.type == "cuda"
        self._counts = torch.zeros(2, dtype=torch.int32, pin_memory=pinned)
        self._event = torch.cuda.Event() if pinned else None

    def ask(self, needed: Tensor) -> None:
        """Start copying the counts [2] to the host."""
        self._counts.copy_(needed, non_blocking=True)
        if self._event is not None:
            self._event.record()

    def answer(self) -> Room:
        """The counts of the last `ask`, and adapt to them."""
        if self._event is not None:
            self._event.synchronize()
        needed = Room(*self._counts.tolist())
        self._most, self._calls = Room(*map(max, self._most, needed)), self._calls + 1
        if self._calls >= PATIENCE or not self.room.holds(needed):
            self.room = Room(*map(_adapted, self.room, self._most, GRAIN))
            self._most, self._calls = needed, 0
        return needed


def _adapted(capacity: int, most: int, grain: int) -> int:
    """The capacity, or another if it is too small or twice too large."""
    fitting = max(-(-int(most * SLACK) // grain), 1) * grain
    return fitting if most > capacity or 2 * fitting < capacity else capacity


class _Capacities(threading.local):
    """One Capacity per device and thread; losing it costs one repetition."""

    def __init__(self) -> None:
        self.by_device: dict[torch.device, Capacity] = {}

    def __getitem__(self, device: torch.device) -> Capacity:
        if device not in self.by_device:
            self.by_device[device] = Capacity(device)
        return self.by_device[device]


_capacities = _Capacities()


class Info(dict[str, Any]):
    """A dictionary some of whose entries are computed when they are first read.

    depths, conics, tiles_per_gauss, n_isects and n_nonfinite are kept by row or in a workspace;
    they look like any other entry.
    """

    def __init__(self, entries: dict[str, Any], later: dict[str, Callable[[], Any]]) -> None:
        super().__init__(entries | later)
        self._later = later

    def __getitem__(self, key: str) -> Any:
        if key in self._later:
            self[key] = self._later.pop(key)()
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._later.pop(key, None)
        super().__setitem__(key, value)

    def __iter__(self) -> Iterator[str]:
        # With an __iter__ of its own, dict(info) and {**info} read every entry through the above.
        return super().__iter__()

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def copy(self) -> Any:
        return dict(self)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default

    def pop(self, key: str, *default: Any) -> Any:
        if key in self._later:
            self[key]
        return super().pop(key, *default)

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


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
    sort: str = "mixed",
    covars: Tensor | None = None,  # [N, 3, 3]
    normalize_quats: bool = True,
    room: Room | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render without validating; `kernels.rasterization` documents arguments and results.

    Args:
        exact: Gradients to float32 rounding, with twice the matrix products in the backward.
        colors_rest: SH coefficients above degree 0, with `colors` [N, 1, 3] the rest of them.
        raw: `scales` are logarithms and `opacities` logits; exp and sigmoid are fused.
        sort: "torch", "triton" or "mixed" (binning.py).
        covars: World covariances in place of quats and scales.
        normalize_quats: False uses quaternions as they are.
        room: Fixed capacities. Nothing is copied to the host or waited for, so that the call and
            its backward can be captured in a CUDA graph, and `info["needed"]` [2] int32 on the
            device says how many rows and entries the scene has: images and gradients are right
            only where both are within the room. Entries of rows without room are not counted.
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
    by_gaussian = "RGB" in render_mode and sh_degree is None
    capacity = None if room is not None else _capacities[device]
    background = _background(backgrounds, render_mode, C, device)
    tiles_x, tiles_y = -(-width // TILE_SIZE), -(-height // TILE_SIZE)

    while True:
        limits = capacity.room if capacity is not None else room
        assert limits is not None
        projected = project(
            means, quats, scales, opacities, colors if sh_degree is not None else None,
            colors_rest, viewmats, Ks, width, height, near_plane=float(near_plane),
            far_plane=float(far_plane), eps2d=float(eps2d), sh_degree=sh_degree,
            antialiased=antialiased, masks=masks, mask_logits=mask_logits, mask_seed=mask_seed,
            mask_ids=mask_ids, raw=raw, covars=covars, normalize_quats=normalize_quats,
            max_rows=min(limits.rows, C * N), with_ids=C > 1 or by_gaussian or contributions,
        )  # fmt: skip
        depth = depth_order(projected.depth_keys, projected.tile_counts, projected.workspace, sort)
        if capacity is not None:
            capacity.ask(projected.workspace[:2])
        features, table = _features(colors, projected, sh_degree, render_mode, N)
        lists = isect_tiles(
            projected.records, projected.gaussian_ids, depth, limits.entries, C, N,
            tiles_x, tiles_y, sort, deterministic,
        )  # fmt: skip
        args = Blend(
            width, height, tiles_x, tiles_y, projected.rows, table.gaussian_ids,
            depth if deterministic else None, lists, table.first_column, table.n_features,
            shared=features is not None and features.dim() == 2 and table.gaussian_ids is not None,
            colors_only=features is None and "D" not in render_mode,
            mask_gradient=projected.masks is not None and projected.masks.requires_grad,
            absgrad=absgrad, deterministic=deterministic, exact=exact,
        )  # fmt: skip
        image, alphas = rasterize_to_pixels(
            projected.means2d, projected.records, features, background, args
        )
        if capacity is None or limits.holds(capacity.answer()):
            break
        del projected, depth, features, lists, args, image, alphas  # before others like them

    _retain_grad(projected.means2d)
    if "ED" in render_mode:
        image = _expected_depth(image, alphas)
    info = _info(projected, width, height)
    if room is not None:
        info["needed"] = projected.workspace[:2]
    if contributions:
        assert projected.gaussian_ids is not None
        info |= measure_contributions(
            projected.records.detach(), projected.gaussian_ids, lists, C, N,
            width, height, tiles_x, tiles_y,
        )  # fmt: skip
    return image, alphas, info


def _info(p: Projected, width: int, height: int) -> Info:
    """What a call returns besides images."""
    entries = {
        "width": width,
        "height": height,
        "tile_size": TILE_SIZE,
        "radii": p.radii,
        "means2d": p.means2d,
        "masks": p.masks,
    }
    # Only what is needed lives on with the dictionary.
    records, rows, tile_counts, workspace = p.records, p.rows, p.tile_counts, p.workspace
    later = {
        "depths": lambda: spread(records[:, 7], rows),
        "conics": lambda: spread(records[:, 2:5], rows),
        "tiles_per_gauss": lambda: spread(tile_counts, rows),
        "n_isects": lambda: workspace[1:2],
        "n_nonfinite": lambda: workspace[2:3],
    }
    return Info(entries, later)


def _retain_grad(means2d: Tensor) -> None:
    """As `means2d.retain_grad()`, but without a copy of the gradient."""
    if not means2d.requires_grad:
        return
    # The hook must not hold the tensor that holds it.
    reference = weakref.ref(means2d)
    # To read .grad before it is set is a warning.
    was_set = False

    def keep(v_means2d: Tensor) -> None:
        nonlocal was_set
        tensor = reference()
        if tensor is not None and not tensor.retains_grad:
            before = tensor.grad if was_set else None
            tensor.grad = v_means2d if before is None else before + v_means2d
            was_set = True

    means2d.register_hook(keep)


class _Table(NamedTuple):
    """Where the features to blend lie."""

    first_column: int  # in records
    n_features: int
    gaussian_ids: Tensor | None  # [R] to find them with their Gaussians


def _features(
    colors: Tensor, p: Projected, sh_degree: int | None, render_mode: str, N: int
) -> tuple[Tensor | None, _Table]:
    """Features to blend (None: columns of records) and how to read them."""
    has_depth = "D" in render_mode
    if "RGB" not in render_mode:
        return None, _Table(11, 1, None)
    if sh_degree is not None:
        return None, _Table(8, 3 + has_depth, None)
    D = colors.shape[-1]
    if not has_depth:
        return colors.contiguous(), _Table(0, D, p.gaussian_ids)
    assert p.gaussian_ids is not None
    ids = p.gaussian_ids.long()
    by_row = colors[ids % N] if colors.dim() == 2 else colors.reshape(-1, D)[ids]
    return torch.cat([by_row, p.records[:, 7:8]], 1), _Table(0, D + 1, None)


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
