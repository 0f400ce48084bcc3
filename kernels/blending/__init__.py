r"""Alpha blending of depth-sorted tile lists.

For the Gaussians i of a pixel, front to back, with d = pixel - mean and mask m:

    a_i = min(o_i exp(-sigma_i), 0.99), skipped below 1/255; sigma = (A dx^2 + C dy^2) / 2 + B dx dy
    e_i = m_i a_i,   T_{i+1} = T_i (1 - e_i),   stop before T_{i+1} < 1e-4
    color = sum_i T_i e_i c_i + T_end background,    alpha = 1 - T_end

One program of one warp blends one 8x8 tile in chunks of 16 Gaussians; blending/pairs.py says how
their pairs lie in its lanes. The weights are differences, T_i e_i = T_i - T_{i+1}: no division, and
what they sum to is exact. They meet the colours in float32. Features wider than four channels run
as several launches of four, in the backward (blending/backward.py) too: every gradient is a sum
over channels.

    records [R 16] float32 (projection/record.py), flatten_ids [I] int32: rows of them,
    offsets [C TH TW + 1] int32
    colors [C H W D], alphas [C H W 1] float32
"""

# Triton types its device functions as returning nothing.
# pyright: reportGeneralTypeIssues=false

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..binning import DepthOrder, TileLists
from ..projection.record import (
    ABSGRAD,
    COLOR,
    MEAN,
    RECORD_SIZE,
    record_absgrads,
    record_features,
    spread,
    spread_pairs,
)
from ..runtime.autograd import apply, once_differentiable
from ..runtime.launch import empty, launch, zeros
from ..runtime.recording import Results, repeat
from .backward import blend_bwd_kernel, sum_rows_kernel
from .pairs import (
    CHUNK,
    PIXELS,
    T_MIN,
    TILE,
    block_max,
    chunk_alphas,
    feature,
    feature_rows,
    load_chunk,
    load_ids,
    per_quad,
    quads,
    tile_axes,
    tile_pixels,
    transmittances,
)

NONE: Any = None  # in place of tensors that are kept elsewhere
GROUP = 4  # channels per launch


@triton.jit
def _add(total, w, feature):
    f = quads(feature)
    total += w[0] * f[0]
    total += w[1] * f[1]
    total += w[2] * f[2]
    return total + w[3] * f[3]


@triton.jit(do_not_specialize=["W", "H", "tiles_x", "tiles_y", "N", "stride", "D", "first"])
def _blend_fwd_kernel(
    records_ptr,  # [R, 16]
    features_ptr,  # [R, stride], [C, N, stride] or [N, stride]
    gaussian_ids_ptr,  # [R], or None where features lie in rows
    flatten_ids_ptr,  # [I]
    offsets_ptr,  # [C * TH * TW + 1]
    tile_order_ptr,  # [C * TH * TW]
    backgrounds_ptr,  # [C, D]
    colors_ptr,  # [C, H, W, D] out
    alphas_ptr,  # [C, H, W] out
    W,
    H,
    tiles_x,
    tiles_y,
    N,
    stride,
    D,
    first,
    CHANNELS: tl.constexpr,
    SHARED: tl.constexpr,
    BACKGROUND: tl.constexpr,
    IN_RECORDS: tl.constexpr,  # features are the colours of records
):
    tile = tl.load(tile_order_ptr + tl.program_id(0))
    camera, xi, yi, inside, pixel = tile_pixels(tile, W, H, tiles_x, tiles_y)
    centre_x, centre_y, x, y = tile_axes(tile, tiles_x, tiles_y)
    run = per_quad(tl.where(inside, 1.0, 0.0))  # transmittance, going on below the stop
    opaque = tl.zeros([TILE, TILE, 4], tl.float32)
    c0 = opaque
    c1 = opaque
    c2 = opaque
    c3 = opaque
    i = tl.load(offsets_ptr + tile)
    hi = tl.load(offsets_ptr + tile + 1)
    alive = 1.0
    ids = load_ids(flatten_ids_ptr, i, hi)
    ahead = load_chunk(records_ptr, ids, i, hi, IN_RECORDS)
    ids = load_ids(flatten_ids_ptr, i + CHUNK, hi)
    while (i < hi) & (alive >= T_MIN):
        rows, there, mx, my, A, B, C, lo, m, f = ahead
        ahead = load_chunk(records_ptr, ids, i + CHUNK, hi, IN_RECORDS)
        ids = load_ids(flatten_ids_ptr, i + 2 * CHUNK, hi)
        _, rest = chunk_alphas(mx, my, A, B, C, lo, m, centre_x, centre_y, x, y)
        w, _, run, _ = transmittances(rest, run, T_MIN)
        opaque += (w[0] + w[1]) + (w[2] + w[3])
        if IN_RECORDS:
            c0 = _add(c0, w, f[0])
            c1 = _add(c1, w, f[1])
            c2 = _add(c2, w, f[2])
        else:
            at = feature_rows(gaussian_ids_ptr, rows, there, N, SHARED)
            c0 = _add(c0, w, feature(features_ptr, at, there, stride, D, 0, first))
            if CHANNELS > 1:
                c1 = _add(c1, w, feature(features_ptr, at, there, stride, D, 1, first))
            if CHANNELS > 2:
                c2 = _add(c2, w, feature(features_ptr, at, there, stride, D, 2, first))
            if CHANNELS > 3:
                c3 = _add(c3, w, feature(features_ptr, at, there, stride, D, 3, first))
        alive = block_max(run)
        i += CHUNK
    opaque = tl.reshape(tl.sum(opaque, 2), [PIXELS])
    c0 = tl.reshape(tl.sum(c0, 2), [PIXELS])
    c1 = tl.reshape(tl.sum(c1, 2), [PIXELS])
    c2 = tl.reshape(tl.sum(c2, 2), [PIXELS])
    c3 = tl.reshape(tl.sum(c3, 2), [PIXELS])
    end = 1.0 - opaque
    if BACKGROUND:
        b = backgrounds_ptr + camera * D + first
        c0 += end * tl.load(b)
        if CHANNELS > 1:
            c1 += end * tl.load(b + 1)
        if CHANNELS > 2:
            c2 += end * tl.load(b + 2)
        if CHANNELS > 3:
            c3 += end * tl.load(b + 3)
    out = colors_ptr + pixel * D + first
    tl.store(out, c0, mask=inside)
    if CHANNELS > 1:
        tl.store(out + 1, c1, mask=inside)
    if CHANNELS > 2:
        tl.store(out + 2, c2, mask=inside)
    if CHANNELS > 3:
        tl.store(out + 3, c3, mask=inside)
    tl.store(alphas_ptr + pixel, opaque, mask=inside)


ListsIn = Callable[[Tensor], TileLists]  # of a buffer that holds lists


class Blend(NamedTuple):
    """What a call of rasterize_to_pixels needs besides differentiable tensors."""

    width: int
    height: int
    tiles_x: int
    tiles_y: int
    rows: Tensor  # [C, N] of projection/
    gaussian_ids: Tensor | None  # [R], where features lie with their Gaussians
    depth: DepthOrder | None  # for deterministic gradients
    lists: TileLists
    first_column: int  # of the features within records, when they come from there
    n_features: int
    shared: bool  # features [N, D] are those of all cameras
    colors_only: bool  # features are the colours of records: range known, products in fp16
    mask_gradient: bool
    absgrad: bool
    deterministic: bool
    exact: bool
    kind: int | None = None  # stands for all of this but the tensors: runtime/recording.py


def _features(records: Tensor, features: Tensor | None, args: Blend) -> tuple[Tensor, int]:
    """Features tensor and its row stride."""
    if features is None:
        return records[:, args.first_column :], RECORD_SIZE.value
    return features, features.shape[-1]


def _groups(n: int) -> range:
    return range(0, n, GROUP)


def blend_fwd(
    records: Tensor, features: Tensor | None, backgrounds: Tensor | None, args: Blend
) -> tuple[Tensor, Tensor]:
    """Images [C, H, W, D] and alphas [C, H, W, 1]; they carry no gradient."""
    C, N = args.rows.shape
    W, H, D = args.width, args.height, args.n_features
    colors = empty((C, H, W, D), torch.float32, records.device)
    alphas = empty((C, H, W, 1), torch.float32, records.device)
    lists = args.lists
    table, stride = _features(records, features, args)
    for first in _groups(D):
        launch(
            _blend_fwd_kernel, (C * args.tiles_x * args.tiles_y,),
            records, table, args.gaussian_ids, lists.flatten_ids, lists.offsets, lists.tile_order,
            backgrounds, colors, alphas,
            W, H, args.tiles_x, args.tiles_y, N, stride, D, first,
            CHANNELS=min(GROUP, D - first), SHARED=args.shared, BACKGROUND=backgrounds is not None,
            IN_RECORDS=args.colors_only, num_warps=1,
        )  # fmt: skip
    return colors, alphas


def blend_bwd(
    records: Tensor,
    features: Tensor | None,
    colors: Tensor,
    alphas: Tensor,
    v_colors: Tensor,
    v_alphas: Tensor | None,
    args: Blend,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of records and features."""
    C, N = args.rows.shape
    W, H, D = args.width, args.height, args.n_features
    lists, depth = args.lists, args.depth
    v_records = zeros(records.shape, torch.float32, records.device)
    v_features = None if features is None else torch.zeros_like(features)
    table, stride = _features(records, features, args)
    wide_absgrad = args.absgrad and D > GROUP
    passes = [(first, False) for first in _groups(D)] + [(0, True)] * wide_absgrad
    for first, absgrad_only in passes:
        more = absgrad_only or first > 0
        rows = torch.zeros_like(records) if more else v_records
        entries = rows
        if args.deterministic:
            entries = torch.zeros(len(lists.flatten_ids), RECORD_SIZE.value, device=records.device)
        channels = 1 if absgrad_only else min(GROUP, D - first)
        launch(
            blend_bwd_kernel, (C * args.tiles_x * args.tiles_y,),
            records, table, args.gaussian_ids, lists.flatten_ids, lists.slots, lists.offsets,
            lists.tile_order, colors, alphas, v_colors, v_alphas, entries,
            W, H, args.tiles_x, args.tiles_y, N, stride, D, first,
            COLUMN=args.first_column or COLOR.value, CHANNELS=channels, SHARED=args.shared,
            ALPHA_GRADIENT=v_alphas is not None and first == 0, MASK_GRADIENT=args.mask_gradient,
            ABSGRAD=absgrad_only or (args.absgrad and not wide_absgrad),
            ABSGRAD_ONLY=absgrad_only, DETERMINISTIC=args.deterministic,
            PRODUCT=args.colors_only, SPLIT=args.exact, num_warps=1,
        )  # fmt: skip
        if args.deterministic:
            assert depth is not None
            launch(
                sum_rows_kernel, (records.shape[0],), entries, depth.order, depth.cumulative, rows,
                entries.shape[0],
                BLOCK=16, num_warps=1,
            )  # fmt: skip
        if absgrad_only:
            record_absgrads(v_records).copy_(record_absgrads(rows))
            continue
        if v_features is not None:
            columns = record_features(rows, COLOR, channels)
            if args.gaussian_ids is not None:
                columns = spread(columns, args.rows)
                columns = columns.sum(0) if args.shared else columns
            v_features[..., first : first + channels] = columns
            # they are no gradients of what records hold there
            record_features(rows, COLOR, GROUP).zero_()
            if more:
                v_records += rows
    return v_records, v_features


class _RasterizeToPixels(torch.autograd.Function):
    """Hands on what `blend_fwd` has made, and makes it differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,  # [C, N, 2] carries the gradient of the pixel means
        records: Tensor,  # [R, 16]
        features: Tensor | None,  # [R, D], [C, N, D] or [N, D]
        backgrounds: Tensor | None,  # [C, D]
        rest: tuple[Blend, ListsIn, Tensor, Tensor, tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        ctx.args, ctx.lists_in, ctx.rows, lists, made = rest
        # Saved, the lists are freed before the gradients of parameters are made.
        ctx.save_for_backward(records, features, *made, lists)
        ctx.means2d = means2d if ctx.args.absgrad else None
        ctx.set_materialize_grads(False)
        return made

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, v_colors: Tensor | None, v_alphas: Tensor | None
    ) -> Any:
        records, features, colors, alphas, lists = ctx.saved_tensors
        if v_colors is None and v_alphas is None:
            return None, None, None, None, None
        v_colors = torch.zeros_like(colors) if v_colors is None else v_colors.contiguous()
        v_alphas = None if v_alphas is None else v_alphas.contiguous()
        args, rows = ctx.args, ctx.rows
        needs_means2d = ctx.needs_input_grad[0]

        def run() -> Results:
            v_records, v_features = blend_bwd(
                records, features, colors, alphas, v_colors, v_alphas,
                args._replace(rows=rows, lists=ctx.lists_in(lists)),
            )  # fmt: skip
            v_means2d = spread_pairs(rows, v_records, MEAN) if needs_means2d else None
            v_absolute = spread_pairs(rows, v_records, ABSGRAD) if args.absgrad else None
            return v_means2d, v_records, v_features, v_absolute

        if args.kind is None:
            v_means2d, v_records, v_features, v_absolute = run()
        else:
            kind = (args.kind, blend_bwd, needs_means2d, v_alphas is None)
            inputs = (records, colors, alphas, v_colors, v_alphas, rows, lists)
            v_means2d, v_records, v_features, v_absolute = repeat(kind, inputs, run)
        v_backgrounds = None
        if ctx.needs_input_grad[3]:
            v_backgrounds = (v_colors * (1.0 - alphas)).sum((1, 2))
        if ctx.means2d is not None:
            ctx.means2d.absgrad = v_absolute
        return v_means2d, v_records, v_features, v_backgrounds, None


def differentiable_pixels(
    means2d: Tensor,
    records: Tensor,
    features: Tensor | None,
    backgrounds: Tensor | None,
    args: Blend,
    lists_in: ListsIn,
    rows: Tensor,
    lists: Tensor,
    made: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """The results of `blend_fwd` as part of autograd's graph.

    Args are those of rasterize_to_pixels; `rows` and lists_in(lists) stand for those in `args`.
    """
    if not torch.is_grad_enabled():
        return made
    return apply(
        _RasterizeToPixels, means2d, records, features, backgrounds,
        (args, lists_in, rows, lists, made),
    )  # fmt: skip


def rasterize_to_pixels(
    means2d: Tensor,  # [C, N, 2]
    records: Tensor,  # [R, 16]
    features: Tensor | None,  # [R, D], [C, N, D] or [N, D]
    backgrounds: Tensor | None,  # [C, D]
    args: Blend,
) -> tuple[Tensor, Tensor]:  # [C, H, W, D], [C, H, W, 1]
    """Blend tile lists into images.

    Args:
        means2d: The pixel means again, so that their gradient has a tensor to live on. Values come
            from `records`.
        records: Of projection.
        features: What to blend in place of the colours in `records`, by row, or with
            `args.gaussian_ids` by Gaussian.
        backgrounds: Composited behind all features.
        args: Image and tile sizes, lists, flags.

    Returns:
        Images and alphas. Gradients reach means2d (column MEAN), records, features, backgrounds.
    """
    made = blend_fwd(records, features, backgrounds, args)
    lists = args.lists
    return differentiable_pixels(
        means2d, records, features, backgrounds, args._replace(rows=NONE, lists=NONE),
        lambda _: lists, args.rows, lists.buffer, made,
    )  # fmt: skip
