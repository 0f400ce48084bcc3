"""The Triton stages in order: what `kernels.rasterization` runs on CUDA tensors.

    projection -> depth order -> tile lists -> blending (-> contributions)

Only visible pairs of camera and Gaussian have records, sort keys and gradients of records. These
and the tile lists live in buffers whose capacities are guesses, a little above the largest numbers
seen. A kernel writes the numbers needed into the host's memory while the GPU goes on to make lists
and blend. They are read after everything is queued, so the GPU never waits for the host, and a call
whose guess was too small repeats itself before it returns.

Small scenes take the GPU less time than the host. So calls of a kind are repeated from notes
(runtime/recording.py), and autograd hears of the results once all kernels are queued.

A CUDA graph can neither read a count nor repeat anything. There the caller fixes the capacities
(`Room`, runtime/capacity.py) and compares them with `info["needed"]` once the graph has run.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .binning import DepthOrder, depth_order, isect_tiles, lists_in
from .blending import NONE, Blend, ListsIn, blend_fwd, differentiable_pixels
from .blending.contributions import contributions as measure_contributions
from .constants import EPS2D, FAR_PLANE, NEAR_PLANE, TILE_SIZE
from .projection import (
    COUNTERS,
    RADII,
    TILE_COUNTS,
    Inputs,
    Settings,
    differentiable_projection,
    gather_inputs,
    project_fwd,
    row_stride,
    told_layout,
)
from .projection.record import COLOR, DEPTH_FEATURE, record_conics, record_depths, spread
from .reference.rasterization import rasterize as rasterize_nothing
from .runtime.capacity import Room, capacities
from .runtime.lazy_info import Info
from .runtime.packed import Layout
from .runtime.recording import KINDS, Results, new_name, repeat, shape_of


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
    covars: Tensor | None = None,  # [N, 3, 3]
    normalize_quats: bool = True,
    room: Room | None = None,
    shapes: Hashable = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render without validating; `kernels.rasterization` documents arguments and results.

    Args:
        exact: Gradients to float32 rounding, with twice the matrix products in the backward.
        colors_rest: SH coefficients above degree 0, with `colors` [N, 1, 3] the rest of them.
        raw: `scales` are logarithms and `opacities` logits; exp and sigmoid are fused.
        covars: World covariances in place of quats and scales.
        normalize_quats: False uses quaternions as they are.
        shapes: Tells all shapes and dtypes apart; None: they are looked at.
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
    sh, sh_rest = (None, None) if sh_degree is None else (colors, colors_rest)
    inputs = gather_inputs(
        means, quats, scales, covars, opacities, sh, sh_rest, viewmats, Ks, masks, mask_logits,
        mask_seed, mask_ids,
    )  # fmt: skip
    background = _background(backgrounds, render_mode, C, device)
    features = colors.contiguous() if sh_degree is None and "RGB" in render_mode else None
    if shapes is None:
        shapes = tuple(map(shape_of, (*inputs, background, features)))
    given = masks if mask_logits is None else mask_logits
    flags = (
        sh_degree, render_mode, antialiased, raw, normalize_quats, contributions, absgrad,
        deterministic, exact, given is not None and given.requires_grad,
    )  # fmt: skip
    numbers = (width, height, near_plane, far_plane, eps2d)
    strides = (row_stride(inputs.sh0), row_stride(inputs.shN))
    capacity = None if room is not None else capacities[device]
    while True:
        limits = capacity.room if capacity is not None else room
        assert limits is not None
        kind = (shapes, limits, flags, numbers, strides, device)
        plan = _plans.get(kind)
        if plan is None:
            plan = _remember(kind, _plan(limits, flags, numbers, C, N, features))
        answer = None if capacity is None else capacity.prepare()
        r, image, alphas = _render(inputs, plan, features, background, answer)
        if capacity is None or limits.holds(capacity.answer()):
            break
        del r, image, alphas  # before others like them

    if "ED" in render_mode:
        image = _expected_depth(image, alphas)
    layout = told_layout(C, N, plan.settings.max_rows)
    info = _info(r, layout, inputs.masks if mask_logits is None else r.drawn, width, height)
    if room is not None:
        info["needed"] = layout.part(r.told, COUNTERS)[:2]
    if contributions:
        assert r.gaussian_ids is not None
        info |= measure_contributions(
            r.records.detach(), r.gaussian_ids, plan.lists_in(r.lists), C, N,
            width, height, plan.blend.tiles_x, plan.blend.tiles_y,
        )  # fmt: skip
    return image, alphas, info


class _Plan(NamedTuple):
    """What a kind of calls has in common."""

    name: int  # stands for the kind: runtime/recording.py
    settings: Settings
    blend: Blend  # without tensors
    lists_in: ListsIn
    entries: int
    render_mode: str


_plans: dict[Hashable, _Plan] = {}


def _remember(kind: Hashable, plan: _Plan) -> _Plan:
    if len(_plans) > KINDS:
        _plans.clear()
    _plans[kind] = plan
    return plan


def _plan(
    limits: Room,
    flags: tuple[Any, ...],
    numbers: tuple[Any, ...],
    C: int,
    N: int,
    features: Tensor | None,
) -> _Plan:
    (
        sh_degree, render_mode, antialiased, raw, normalize, contributions, absgrad,
        deterministic, exact, mask_gradient,
    ) = flags  # fmt: skip
    width, height, near_plane, far_plane, eps2d = numbers
    settings = Settings(
        width, height, float(near_plane), float(far_plane), float(eps2d),
        -1 if sh_degree is None else sh_degree, antialiased, raw, normalize,
        min(limits.rows, C * N), C > 1 or features is not None or contributions,
    )  # fmt: skip
    has_depth = "D" in render_mode
    name = new_name()
    if features is not None:
        first_column, n_features = 0, features.shape[-1] + has_depth
    else:
        color, depth = (COLOR.value, 3 + has_depth), (DEPTH_FEATURE.value, 1)
        first_column, n_features = color if "RGB" in render_mode else depth
    blend = Blend(
        width, height, -(-width // TILE_SIZE), -(-height // TILE_SIZE), rows=NONE,
        gaussian_ids=None, depth=None, lists=NONE, first_column=first_column,
        n_features=n_features,
        shared=features is not None and features.dim() == 2 and not has_depth,
        colors_only=features is None and not has_depth, mask_gradient=mask_gradient,
        absgrad=absgrad, deterministic=deterministic, exact=exact,
        kind=name if features is None and not deterministic else None,
    )  # fmt: skip
    sizes = C * blend.tiles_x * blend.tiles_y, limits.entries, deterministic
    return _Plan(
        name, settings, blend, lambda buffer: lists_in(buffer, *sizes), limits.entries, render_mode
    )


class _Rendered(NamedTuple):
    """What a call keeps; shapes as in projection/."""

    means2d: Tensor
    records: Tensor
    drawn: Tensor | None
    """Masks, if they were drawn."""
    gaussian_ids: Tensor | None
    rows: Tensor
    told: Tensor
    lists: Tensor


def _render(
    x: Inputs,
    plan: _Plan,
    features: Tensor | None,  # of Gaussians, in place of spherical harmonics
    background: Tensor | None,
    answer: Tensor | None,
) -> tuple[_Rendered, Tensor, Tensor]:
    """All stages; first they run, then their results join autograd's graph."""
    s = plan.settings

    def run() -> Results:
        C, N = x.viewmats.shape[0], x.means.shape[0]
        tiles = plan.blend.tiles_x, plan.blend.tiles_y
        p = project_fwd(x, s)
        depth, bins = depth_order(
            p.depth_keys, p.tile_counts, p.workspace, plan.entries, p.counters, answer
        )
        lists = isect_tiles(
            p.records, p.gaussian_ids, depth, bins, plan.entries, C, N, *tiles,
            plan.blend.deterministic,
        )  # fmt: skip
        blend = plan.blend._replace(
            rows=p.rows, lists=lists, gaussian_ids=_features_of(p.gaussian_ids, features, plan)
        )
        images = blend_fwd(
            p.records, _with_depth(features, p.gaussian_ids, p.records, plan), background, blend
        )
        drawn = None if x.mask_logits is None else p.masks
        return (
            *images, p.means2d, p.records, drawn, p.gaussian_ids, p.rows, p.told, lists.buffer,
            *(depth if blend.deterministic else ()),
        )  # fmt: skip

    if answer is None:
        made = run()
    else:
        made = repeat(plan.name, (*x, background, answer, features), run)
    image, alphas, means2d, records, drawn, gaussian_ids, rows, told, lists, *depth = made
    means2d, records, drawn = differentiable_projection(
        x, s, means2d, records, drawn, rows, None if answer is None else plan.name
    )
    blend = plan.blend
    if features is not None or depth:
        blend = blend._replace(
            gaussian_ids=_features_of(gaussian_ids, features, plan),
            depth=DepthOrder(*depth) if depth else None,
        )
        features = _with_depth(features, gaussian_ids, records, plan)
    image, alphas = differentiable_pixels(
        means2d, records, features, background, blend, plan.lists_in, rows, lists, (image, alphas)
    )
    return _Rendered(means2d, records, drawn, gaussian_ids, rows, told, lists), image, alphas


def _features_of(
    gaussian_ids: Tensor | None, features: Tensor | None, plan: _Plan
) -> Tensor | None:
    """Names by which to find features, where these do not lie in rows."""
    return None if features is None or "D" in plan.render_mode else gaussian_ids


def _with_depth(
    features: Tensor | None, gaussian_ids: Tensor | None, records: Tensor, plan: _Plan
) -> Tensor | None:
    """Features of Gaussians by row, with the depth behind them, if it is asked for."""
    if features is None or "D" not in plan.render_mode:
        return features
    assert gaussian_ids is not None
    D, ids = features.shape[-1], gaussian_ids.long()
    by_row = features[ids % len(features)] if features.dim() == 2 else features.view(-1, D)[ids]
    return torch.cat([by_row, record_depths(records)[:, None]], 1)


def _info(r: _Rendered, layout: Layout, masks: Tensor | None, width: int, height: int) -> Info:
    """What a call returns besides images."""
    entries = {
        "width": width,
        "height": height,
        "tile_size": TILE_SIZE,
        "means2d": r.means2d,
        "masks": masks,
    }
    # Only what is needed lives on with the dictionary.
    return Info(entries, _Told(r.records, r.rows, r.told, layout), _LATER)


class _Told(NamedTuple):
    records: Tensor
    rows: Tensor
    told: Tensor
    layout: Layout

    def part(self, k: int) -> Tensor:
        return self.layout.part(self.told, k)

    def by_row(self, x: Tensor) -> Tensor:
        return spread(x, self.rows)


_LATER: dict[str, Callable[[_Told], Tensor]] = {
    "radii": lambda s: s.part(RADII),
    "depths": lambda s: s.by_row(record_depths(s.records)),
    "conics": lambda s: s.by_row(record_conics(s.records)),
    "tiles_per_gauss": lambda s: s.by_row(s.part(TILE_COUNTS)[0]),
    "n_isects": lambda s: s.part(COUNTERS)[3:4],
    "n_nonfinite": lambda s: s.part(COUNTERS)[2:3],
}


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
