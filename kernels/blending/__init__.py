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

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import RenderSettings
from ..binning import DepthOrder, ListsLayout, TileLists
from ..projection.record import (
    ABSGRAD,
    COLOR,
    DEPTH_FEATURE,
    MEAN,
    RECORD_SIZE,
    record_absgrads,
    record_depths,
    record_features,
    spread,
    spread_pairs,
)
from ..projection.records import Records
from ..runtime.autograd import apply, once_differentiable
from ..runtime.launch import empty, launch, zeros
from ..runtime.recording import Results, run_recorded
from .backward import blend_bwd_kernel, sum_rows_kernel
from .forward import blend_fwd_kernel

GROUP = 4  # channels per launch


class BlendSettings(NamedTuple):
    """Numbers and flags of blending; hashable."""

    width: int
    height: int
    n_cameras: int
    n_gaussians: int
    n_features: int
    first_column: int = 0  # of the features within records, when they come from there
    shared: bool = False  # features [N, D] are those of all cameras
    colors_only: bool = False  # the colours of records: range known, products in fp16
    mask_gradient: bool = True
    absgrad: bool = False
    deterministic: bool = False
    exact: bool = False


class Features(NamedTuple):
    """What to blend in place of the columns of records."""

    values: Tensor  # [R, D] by row, or [C, N, D] or [N, D] by Gaussian
    gaussian_ids: Tensor | None = None  # [R], by which to find them where they do not lie in rows


def blend_settings(
    s: RenderSettings, n_cameras: int, n_gaussians: int, features: Tensor | None, masks: bool
) -> BlendSettings:
    """How to blend the records of a rendering; `masks`: their gradient is asked for."""
    depth = s.has_depth
    if features is not None:
        first_column, n_features = 0, features.shape[-1] + depth
    elif s.has_colors:
        first_column, n_features = COLOR.value, 3 + depth
    else:
        first_column, n_features = DEPTH_FEATURE.value, 1
    return BlendSettings(
        s.width, s.height, n_cameras, n_gaussians, n_features, first_column,
        shared=features is not None and features.dim() == 2 and not depth,
        colors_only=features is None and not depth, mask_gradient=masks,
        absgrad=s.absgrad, deterministic=s.deterministic, exact=s.exact,
    )  # fmt: skip


def features_of(
    features: Tensor | None, values: Tensor, gaussian_ids: Tensor | None, has_depth: bool
) -> Features | None:
    """Features [N, D] or [C, N, D] of Gaussians, as blending takes them.

    With depth they are gathered by row, and the depth stands behind them.
    """
    if features is None:
        return None
    if not has_depth:
        return Features(features, gaussian_ids)
    assert gaussian_ids is not None
    D, ids = features.shape[-1], gaussian_ids.long()
    by_row = features[ids % len(features)] if features.dim() == 2 else features.view(-1, D)[ids]
    return Features(_with_depth(by_row, values))


def _with_depth(features: Tensor, values: Tensor) -> Tensor:
    return torch.cat([features, record_depths(values)[:, None]], 1)


def background_of(backgrounds: Tensor | None, s: RenderSettings) -> Tensor | None:
    """Backgrounds [C, D] with nothing behind the depth, or None."""
    if backgrounds is None or not s.has_colors:
        return None
    if s.has_depth:
        return torch.cat([backgrounds, backgrounds.new_zeros(backgrounds.shape[0], 1)], -1)
    return backgrounds.contiguous()


def expected_depth(image: Tensor, alphas: Tensor) -> Tensor:
    """Divide the last channel by alpha; 0 where alpha is 0."""
    nothing = alphas <= 0
    depth = torch.where(nothing, 0.0, image[..., -1:] / torch.where(nothing, 1.0, alphas))
    return torch.cat([image[..., :-1], depth], -1)


def _table(values: Tensor, features: Features | None, s: BlendSettings) -> tuple[Tensor, int]:
    """Features and their row stride."""
    if features is None:
        return values[:, s.first_column :], RECORD_SIZE.value
    return features.values, features.values.shape[-1]


def blend_fwd(
    values: Tensor,
    lists: TileLists,
    s: BlendSettings,
    features: Features | None,
    backgrounds: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Images [C, H, W, D] and alphas [C, H, W, 1]; they carry no gradient."""
    C, N, W, H, D = s.n_cameras, s.n_gaussians, s.width, s.height, s.n_features
    tiles_x, tiles_y = lists.layout.tiles_x, lists.layout.tiles_y
    colors = empty((C, H, W, D), torch.float32, values.device)
    alphas = empty((C, H, W, 1), torch.float32, values.device)
    table, stride = _table(values, features, s)
    ids = None if features is None else features.gaussian_ids
    for first in range(0, D, GROUP):
        launch(
            blend_fwd_kernel, (C * tiles_x * tiles_y,),
            values, table, ids, lists.flatten_ids, lists.offsets, lists.tile_order,
            backgrounds, colors, alphas, W, H, tiles_x, tiles_y, N, stride, D, first,
            CHANNELS=min(GROUP, D - first), SHARED=s.shared, BACKGROUND=backgrounds is not None,
            IN_RECORDS=s.colors_only, num_warps=1,
        )  # fmt: skip
    return colors, alphas


def blend_bwd(
    values: Tensor,
    lists: TileLists,
    s: BlendSettings,
    features: Features | None,
    rows: Tensor | None,  # [C, N], where features lie with their Gaussians
    images: tuple[Tensor, Tensor],  # of blend_fwd
    v_colors: Tensor,
    v_alphas: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the records, MEAN and ABSGRAD included, and of the features."""
    C, N, W, H, D = s.n_cameras, s.n_gaussians, s.width, s.height, s.n_features
    tiles_x, tiles_y = lists.layout.tiles_x, lists.layout.tiles_y
    v_values = zeros(values.shape, torch.float32, values.device)
    v_features = None if features is None else torch.zeros_like(features.values)
    table, stride = _table(values, features, s)
    ids = None if features is None else features.gaussian_ids
    wide_absgrad = s.absgrad and D > GROUP
    passes = [(first, False) for first in range(0, D, GROUP)] + [(0, True)] * wide_absgrad
    for first, absgrad_only in passes:
        more = absgrad_only or first > 0
        v_pass = torch.zeros_like(values) if more else v_values
        entries = v_pass
        if s.deterministic:
            entries = torch.zeros(len(lists.flatten_ids), RECORD_SIZE.value, device=values.device)
        channels = 1 if absgrad_only else min(GROUP, D - first)
        launch(
            blend_bwd_kernel, (C * tiles_x * tiles_y,),
            values, table, ids, lists.flatten_ids, lists.slots, lists.offsets,
            lists.tile_order, *images, v_colors, v_alphas, entries,
            W, H, tiles_x, tiles_y, N, stride, D, first,
            COLUMN=s.first_column or COLOR.value, CHANNELS=channels, SHARED=s.shared,
            ALPHA_GRADIENT=v_alphas is not None and first == 0, MASK_GRADIENT=s.mask_gradient,
            ABSGRAD=absgrad_only or (s.absgrad and not wide_absgrad),
            ABSGRAD_ONLY=absgrad_only, DETERMINISTIC=s.deterministic,
            PRODUCT=s.colors_only, SPLIT=s.exact, num_warps=1,
        )  # fmt: skip
        if s.deterministic:
            assert lists.depth is not None
            args = (entries, *lists.depth, v_pass, entries.shape[0])
            launch(sum_rows_kernel, (values.shape[0],), *args, BLOCK=16, num_warps=1)
        if absgrad_only:
            record_absgrads(v_values).copy_(record_absgrads(v_pass))
            continue
        if v_features is not None:
            columns = record_features(v_pass, COLOR, channels)
            if ids is not None:
                assert rows is not None
                columns = spread(columns, rows)
                columns = columns.sum(0) if s.shared else columns
            v_features[..., first : first + channels] = columns
            # they are no gradients of what records hold there
            record_features(v_pass, COLOR, GROUP).zero_()
            if more:
                v_values += v_pass
    return v_values, v_features


class _How(NamedTuple):
    """What a backward needs besides the tensors that it saves."""

    layout: ListsLayout
    depth: DepthOrder | None  # for deterministic gradients
    settings: BlendSettings
    gaussian_ids: Tensor | None  # of features
    rows: Tensor | None
    kind: Hashable


class _Blend(torch.autograd.Function):
    """Hands on what `blend_fwd` has made, and makes it differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor | None,  # [C, N, 2] carries the gradient of the pixel means
        values: Tensor,  # [R, 16]
        features: Tensor | None,  # [R, D], [C, N, D] or [N, D]
        backgrounds: Tensor | None,  # [C, D]
        made: tuple[tuple[Tensor, Tensor], Tensor],  # images, and the buffer of the lists
        how: _How,
    ) -> tuple[Tensor, Tensor]:
        images, buffer = made
        # Saved, the lists are freed before the gradients of parameters are made.
        ctx.save_for_backward(values, features, *images, buffer)
        ctx.how = how
        ctx.means2d = means2d if how.settings.absgrad else None
        ctx.set_materialize_grads(False)
        return images

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, v_colors: Tensor | None, v_alphas: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        values, table, colors, alphas, buffer = ctx.saved_tensors
        if v_colors is None and v_alphas is None:
            return None, None, None, None, None, None
        v_colors = torch.zeros_like(colors) if v_colors is None else v_colors.contiguous()
        v_alphas = None if v_alphas is None else v_alphas.contiguous()
        how: _How = ctx.how
        s, rows = how.settings, how.rows
        needs_means2d, _, _, needs_backgrounds, *_ = ctx.needs_input_grad

        def run() -> Results:
            lists = how.layout.lists_in(buffer, how.depth)
            features = None if table is None else Features(table, how.gaussian_ids)
            images = colors, alphas
            v_values, v_features = blend_bwd(
                values, lists, s, features, rows, images, v_colors, v_alphas
            )
            v_means2d = v_absolute = None
            if rows is not None and needs_means2d:
                v_means2d = spread_pairs(rows, v_values, MEAN)
            if rows is not None and s.absgrad:
                v_absolute = spread_pairs(rows, v_values, ABSGRAD)
            return v_means2d, v_values, v_features, v_absolute

        if how.kind is None:
            v_means2d, v_values, v_features, v_absolute = run()
        else:
            kind = (how.kind, blend_bwd, needs_means2d, v_alphas is None)
            inputs = (values, colors, alphas, v_colors, v_alphas, rows, buffer)
            v_means2d, v_values, v_features, v_absolute = run_recorded(kind, inputs, run)
        v_backgrounds = None
        if needs_backgrounds:
            v_backgrounds = (v_colors * (1.0 - alphas)).sum((1, 2))
        if ctx.means2d is not None:
            ctx.means2d.absgrad = v_absolute
        return v_means2d, v_values, v_features, v_backgrounds, None, None


def differentiable_blend(
    images: tuple[Tensor, Tensor],
    values: Tensor,
    buffer: Tensor,
    layout: ListsLayout,
    depth: DepthOrder | None,
    settings: BlendSettings,
    features: Features | None,
    backgrounds: Tensor | None,
    means2d: Tensor | None = None,
    rows: Tensor | None = None,
    kind: Hashable = None,
) -> tuple[Tensor, Tensor]:
    """The results of `blend_fwd` as part of autograd's graph.

    Args:
        images: Of blend_fwd.
        values: Records.
        buffer: In which the lists lie.
        layout: Of the lists.
        depth: For deterministic gradients.
        settings: As blend_fwd had them.
        features: As blend_fwd had them.
        backgrounds: As blend_fwd had them.
        means2d: Gets the gradient of MEAN in place of `values`, and absgrad. [C, N, 2]
        rows: Of the records of every camera and Gaussian, with means2d. [C, N]
        kind: Stands for shapes and flags, where the backward can be recorded.
    """
    if not torch.is_grad_enabled():
        return images
    table, ids = (None, None) if features is None else features
    how = _How(layout, depth, settings, ids, rows, kind)
    return apply(_Blend, means2d, values, table, backgrounds, (images, buffer), how)


def blend(
    records: Records,
    lists: TileLists,
    settings: RenderSettings,
    *,
    features: Tensor | None = None,  # [R, D]
    backgrounds: Tensor | None = None,  # [C, D]
) -> tuple[Tensor, Tensor]:  # [C, H, W, D], [C, H, W, 1]
    """Blend tile lists into images: the third stage of a rendering.

    Differentiable in the records' values, features and backgrounds. Inputs are float32 and not
    validated here.

    Args:
        records: Of `project`, or from elsewhere.
        lists: Of `bin_tiles`, of the same records.
        settings: render_mode, absgrad, deterministic, exact count; sizes are the records'.
        features: What to blend in place of the records' colours, by row.
        backgrounds: Composited behind the colours; depth has none.

    Returns:
        Images (depth last) and alphas. The gradient of `values` has MEAN and, with `absgrad`, the
        sums of absolute gradients of MEAN in the columns ABSGRAD.

    Raises:
        ValueError: deterministic gradients of lists that were not made for them.
    """
    if settings.deterministic and lists.slots is None:
        raise ValueError("lists: settings.deterministic needs bin_tiles(..., deterministic=True)")
    values, table = records.values, None
    settings = settings._replace(width=records.width, height=records.height)
    if not settings.has_colors:
        features = None
    if features is not None:
        table = Features(_with_depth(features, values) if settings.has_depth else features)
    s = blend_settings(settings, records.n_cameras, records.n_gaussians, features, True)
    s = s._replace(shared=False)
    background = background_of(backgrounds, settings)
    images = blend_fwd(values.detach(), lists, s, table, background)
    image, alphas = differentiable_blend(
        images, values, lists.buffer, lists.layout, lists.depth, s, table, background
    )
    return expected_depth(image, alphas) if settings.expects_depth else image, alphas
