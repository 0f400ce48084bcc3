"""The Triton stages in order: what `kernels.rasterization` runs on CUDA tensors.

    project -> bin_tiles -> blend (-> contributions)

Only visible pairs of camera and Gaussian have records, sort keys and gradients of records. These
and the tile lists live in buffers whose capacities are guesses, a little above the largest counts
seen. A kernel writes the counts into the host's memory while the GPU goes on to make lists and
blend. They are read after everything is queued, so the GPU never waits for the host, and a call
whose guess was too small repeats itself before it returns.

Small scenes take the GPU less time than the host. So calls of a kind are recorded and replayed
(runtime/recording.py), and autograd hears of the results once all kernels are queued.

A CUDA graph can neither read counts nor repeat anything. There the caller fixes the capacity
(`Capacity`, runtime/capacity.py) and compares it with `info["counts"]` once the graph has run.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import Capacity, RasterInputs, RenderSettings
from .binning import DepthOrder, ListsLayout, bin_tiles, list_tiles
from .blending import (
    BlendSettings,
    background_of,
    blend_fwd,
    blend_settings,
    differentiable_blend,
    expected_depth,
    features_of,
)
from .blending.contributions import contributions
from .constants import TILE_SIZE
from .lazy_info import Info
from .projection import (
    COUNTS,
    ENTRIES,
    NONFINITE,
    RADII,
    TILE_COUNTS,
    differentiable_projection,
    integers_layout,
    project_fwd,
)
from .projection.inputs import ProjectionInputs, gather_inputs, row_stride
from .projection.record import record_conics, record_depths, record_opacities, spread
from .projection.records import Records
from .reference.rasterization import describe_images
from .reference.rasterization import rasterize as rasterize_nothing
from .reference.tile_keys import TileKeys, keys_of_lists
from .runtime.cache import Table, caches
from .runtime.capacity import learned_capacity
from .runtime.packed import Layout
from .runtime.recording import Results, new_name, run_recorded


def rasterize(
    inputs: RasterInputs,
    settings: RenderSettings,
    capacity: Capacity | None,
    kind: Hashable,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render without validating; `kernels.rasterization` documents arguments and results.

    Args:
        inputs: Tensors.
        settings: Numbers and flags.
        capacity: Fixed capacities, in place of those learnt.
        kind: Stands for the settings and the signature of the inputs.
    """
    if inputs.means.shape[0] == 0:
        return _rasterize_nothing(inputs, settings, capacity)
    x, f = gather_inputs(inputs, settings), inputs.colors
    background = background_of(inputs.backgrounds, settings)
    features = f.contiguous() if settings.sh_degree is None and settings.has_colors else None
    given = inputs.masks if inputs.mask_logits is None else inputs.mask_logits
    mask_gradient = given is not None and given.requires_grad
    strides = row_stride(x.floats.sh0), row_stride(x.floats.shN)
    learned = learned_capacity(f.device) if capacity is None else None
    while True:
        limits = capacity if learned is None else learned.capacity
        assert limits is not None
        plan = _plans.get((kind, limits, mask_gradient, strides))
        if plan is None:
            plan = _plan(settings, limits, x, features, mask_gradient)
            _plans[kind, limits, mask_gradient, strides] = plan
        host_counts = None if learned is None else learned.expect()
        rendered, image, alphas = _render(x, plan, features, background, host_counts)
        if learned is None or limits.holds(learned.learn()):
            break
        del rendered, image, alphas  # before others like them

    if settings.expects_depth:
        image = expected_depth(image, alphas)
    masks = inputs.masks if inputs.mask_logits is None else rendered.drawn
    info = _info(rendered, plan, masks)
    if capacity is not None:
        info["counts"] = plan.integers.part(rendered.integers, COUNTS)[:2]
    if settings.contributions:
        assert rendered.gaussian_ids is not None
        lists = plan.lists.lists_in(rendered.lists)
        info |= contributions(rendered.values.detach(), rendered.gaussian_ids, lists, plan.blend)
    return image, alphas, info


def _rasterize_nothing(
    inputs: RasterInputs, settings: RenderSettings, capacity: Capacity | None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Images without a Gaussian."""
    image, alphas, info = rasterize_nothing(inputs, settings)
    if capacity is not None:
        info["counts"] = torch.zeros(2, dtype=torch.int32, device=inputs.means.device)
    return image, alphas, info


class _Plan(NamedTuple):
    """What calls of a kind have in common."""

    name: int  # stands for the kind: runtime/recording.py
    all_kernels: bool  # nothing but kernels makes what they read: calls can be recorded
    backward: int | None  # the name, where the backward of blending can be recorded
    settings: RenderSettings
    images: dict[str, Any]  # entries of info that are the same in every call
    rows: int  # capacity
    with_ids: bool
    integers: Layout
    lists: ListsLayout
    blend: BlendSettings


_plans = caches.add(Table[Hashable, _Plan]())


def _plan(
    s: RenderSettings,
    limits: Capacity,
    x: ProjectionInputs,
    features: Tensor | None,
    mask_gradient: bool,
) -> _Plan:
    C, N = x.n_cameras, x.n_gaussians
    rows = min(limits.rows, C * N)
    tiles = -(-s.width // TILE_SIZE), -(-s.height // TILE_SIZE)
    name = new_name()
    return _Plan(
        name,
        features is None or not s.has_depth,
        name if features is None and not s.deterministic else None,
        s,
        describe_images(C, s.width, s.height),
        rows,
        C > 1 or features is not None or s.contributions,
        integers_layout(C, N, rows),
        ListsLayout(C, *tiles, limits.entries, s.deterministic),
        blend_settings(s, C, N, features, mask_gradient),
    )


class _Rendered(NamedTuple):
    """What a call keeps; shapes as in projection/."""

    means2d: Tensor
    values: Tensor
    drawn: Tensor | None
    """Masks, if they were drawn."""
    gaussian_ids: Tensor | None
    rows: Tensor
    integers: Tensor
    lists: Tensor


def _render(
    x: ProjectionInputs,
    plan: _Plan,
    features: Tensor | None,  # of Gaussians, in place of spherical harmonics
    background: Tensor | None,
    host_counts: Tensor | None,
) -> tuple[_Rendered, Tensor, Tensor]:
    """All stages; first they run, then their results join autograd's graph."""
    s, blend, has_depth = plan.settings, plan.blend, plan.settings.has_depth

    def run() -> Results:
        records = project_fwd(x, s, plan.rows, plan.with_ids)
        lists = list_tiles(records, records, plan.lists, host_counts)
        table = features_of(features, records.values, records.gaussian_ids, has_depth)
        images = blend_fwd(records.values, lists, blend, table, background)
        drawn = None if x.floats.mask_logits is None else records.masks
        kept = records.means2d, records.values, drawn, records.gaussian_ids, records.rows
        depth = lists.depth if blend.deterministic and lists.depth else ()
        return *images, *kept, records.integers, lists.buffer, *depth

    if plan.all_kernels and host_counts is not None:
        tensors = (*x.floats, *x[1:], background, host_counts, features)
        made = run_recorded(plan.name, tensors, run)
    else:
        made = run()
    image, alphas, means2d, values, drawn, ids, rows, integers, buffer, *depth = made
    recorded = None if host_counts is None else plan.name
    means2d, values, drawn = differentiable_projection(x, s, means2d, values, drawn, rows, recorded)
    table = features_of(features, values, ids, has_depth)
    order = DepthOrder(*depth) if depth else None
    image, alphas = differentiable_blend(
        (image, alphas),
        values,
        buffer,
        plan.lists,
        order,
        blend,
        table,
        background,
        means2d,
        rows,
        plan.backward,
    )
    return _Rendered(means2d, values, drawn, ids, rows, integers, buffer), image, alphas


def _info(r: _Rendered, plan: _Plan, masks: Tensor | None) -> Info:
    """What a call returns besides images."""
    # Only what is needed lives on with the dictionary.
    kept = _Kept(r.values, r.rows, r.integers, plan, [])
    return Info({**plan.images, "means2d": r.means2d, "masks": masks}, kept, _LATER)


class _Kept(NamedTuple):
    """Of what entries are made that are seldom read."""

    values: Tensor
    rows: Tensor
    integers: Tensor
    plan: _Plan
    found: list[TileKeys]
    """Those of `tile_keys`, once somebody has asked."""

    def part(self, k: int) -> Tensor:
        return self.plan.integers.part(self.integers, k)

    def one_count(self, k: int) -> Tensor:
        return self.part(COUNTS)[k : k + 1]

    def by_gaussian(self, x: Tensor) -> Tensor:
        return spread(x, self.rows)

    @torch.no_grad()
    def tile_keys(self) -> TileKeys:
        """Of the lists, which are made again: they are seldom asked for, and large."""
        if self.found:
            return self.found[0]
        s, rows = self.plan.settings, self.rows.flatten()
        (C, N), seen = self.rows.shape, (rows >= 0).nonzero().squeeze(1)
        pairs = rows.new_zeros(len(self.values))
        pairs[rows[seen].long()] = seen.int()
        records = Records(self.values, pairs, self.part(COUNTS)[:1], C, N, s.width, s.height)
        lists = bin_tiles(records)
        found = pairs[lists.flatten_ids[: int(lists.offsets[-1])].long()]
        depths = self.by_gaussian(record_depths(self.values)).flatten()
        keys = keys_of_lists(found, lists.offsets, depths, records.tiles_x, records.tiles_y)
        self.found.append(keys)
        return keys


_LATER: dict[str, Callable[[_Kept], Tensor]] = {
    "radii": lambda kept: kept.part(RADII),
    "depths": lambda kept: kept.by_gaussian(record_depths(kept.values)),
    "conics": lambda kept: kept.by_gaussian(record_conics(kept.values)),
    "opacities": lambda kept: kept.by_gaussian(record_opacities(kept.values)),
    "isect_ids": lambda kept: kept.tile_keys().isect_ids,
    "flatten_ids": lambda kept: kept.tile_keys().flatten_ids,
    "isect_offsets": lambda kept: kept.tile_keys().isect_offsets,
    "tiles_per_gauss": lambda kept: kept.by_gaussian(kept.part(TILE_COUNTS)[0]),
    "n_isects": lambda kept: kept.one_count(ENTRIES),
    "n_nonfinite": lambda kept: kept.one_count(NONFINITE),
}
