r"""Front-to-back compositing of the fragments of one image.

Per pixel, Gaussians i from front to back, d the offset of the pixel centre from the mean:

    alpha_i = min(float32(0.99), o_i exp(-1/2 d^T conic_i d))   skipped below 1/255
    T_{i+1} = T_i (1 - m_i alpha_i)                             T_0 = 1; stop before T < 1e-4
    C       = sum_i m_i alpha_i T_i c_i

The gradient passes straight through the minimum. It works in two passes. Without gradients,
`contributing_fragments` evaluates every fragment, drops those below 1/255, sorts the others by
pixel and cuts each pixel's list at the stop. `composite` then runs only what is left through
autograd: pixels with lists of similar length share a padded matrix, one row per pixel, and the
transmittance is a cumulative product along it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..arguments import RenderSettings
from ..constants import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN
from .binning import Spans, span_fragments
from .contributions import Contributions
from .projection import Records, View
from .sorting import sort_by_pixel, stable_order


class Fragments(NamedTuple):
    """Fragments of some pixels in ascending order, from front to back within a pixel."""

    gaussians: Tensor  # [P] int64
    pixels: Tensor  # [B] int64, those with at least one fragment
    firsts: Tensor  # [B] int64, where the pixel's fragments start
    counts: Tensor  # [B] int64, how many of them count


class Bucket(NamedTuple):
    """Pixels with lists of similar length."""

    pixels: Tensor  # [B] int64
    gaussians: Tensor  # [B, K] int64, padded with the index behind the last Gaussian


def _sigmas(dx: Tensor, dy: Tensor, conics: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    A, B, C = conics
    return dx * (0.5 * A * dx + B * dy) + 0.5 * C * dy * dy


def _clamp_alphas(raw: Tensor) -> Tensor:
    """min(raw, 0.99) whose gradient is that of raw; the difference is exact, so is the result."""
    return raw - (raw.detach() - ALPHA_MAX).clamp_min(0)


def _gather(table: Tensor, index: Tensor, deterministic: bool) -> Tensor:
    """Rows table[index]; only one of the two has a backward in fixed order on CUDA."""
    if deterministic and table.is_cuda:
        return table[index]
    return table.index_select(0, index)


def _lengths(longest: int) -> list[int]:
    """Row lengths of buckets: four per octave from 64, fewer below, where padding costs little.

    More would leave less padding and take more calls, which small images feel.
    """
    lengths, step = [0, 2, 4, 8, 12, 16, 24, 32, 48, 64], 16
    while lengths[-1] < longest:
        if lengths[-1] >= 8 * step:
            step *= 2
        lengths.append(lengths[-1] + step)
    return lengths


def buckets(fragments: Fragments, dummy: int) -> list[Bucket]:
    """Padded rows for the pixels whose count is not 0; `dummy` fills them up."""
    gaussians, pixels, firsts, counts = fragments
    lengths = _lengths(int(counts.max()) if counts.numel() else 0)
    level = torch.bucketize(counts, counts.new_tensor(lengths))
    order = stable_order(level, len(lengths))
    sizes = torch.bincount(level, minlength=len(lengths)).tolist()
    result = []
    for length, rows in zip(lengths, torch.split(order, sizes), strict=True):
        if length == 0 or rows.numel() == 0:
            continue
        number = torch.arange(length, device=rows.device)
        # Rows of the last pixels may run past the end, into what the mask overwrites.
        index = (firsts[rows][:, None] + number).clamp_max(gaussians.shape[0] - 1)
        padded = gaussians[index].masked_fill_(number >= counts[rows][:, None], dummy)
        result.append(Bucket(pixels[rows], padded))
    # An empty bucket keeps the graph whole, so that gradients are zeros and not absent.
    return result or [Bucket(pixels[:0], gaussians.new_empty(0, 1))]


@torch.no_grad()
def contributing_fragments(
    spans: Spans,
    means2d: Tensor,  # [M, 2], front to back
    conics: Tensor,  # [M, 3]
    opacities: Tensor,  # [M]
    masks: Tensor | None,  # [M]
    width: int,
    height: int,
    contributions: tuple[Contributions, Tensor] | None = None,
) -> Fragments:
    """The fragments with alpha >= 1/255 before the ray stops.

    Args:
        contributions: Where to add up the weights, and the name [M] int64 of each Gaussian there.
    """
    gaussians, pixels = span_fragments(spans, width)
    table = torch.cat([means2d, conics, opacities[:, None]], dim=1)
    mx, my, A, B, C, o = table.index_select(0, gaussians).unbind(1)
    dx = (pixels % width).to(mx.dtype) + 0.5 - mx
    dy = torch.div(pixels, width, rounding_mode="floor").to(mx.dtype) + 0.5 - my
    sigmas = _sigmas(dx, dy, (A, B, C))
    alphas = _clamp_alphas(o * torch.exp(-sigmas))
    visible = torch.nonzero((alphas >= ALPHA_MIN) & (sigmas >= 0)).squeeze(1)

    pixels, order = sort_by_pixel(pixels[visible], width * height)
    visible = visible[order]
    gaussians = gaussians[visible]
    alphas = alphas[visible]
    if masks is not None:
        alphas = alphas * masks[gaussians]

    per_pixel = torch.bincount(pixels, minlength=width * height)
    pixels = torch.nonzero(per_pixel).squeeze(1)
    counts = per_pixel[pixels]
    firsts = torch.cumsum(counts, 0) - counts

    # Rows of fragment numbers; the number behind the last has alpha 0.
    n = gaussians.shape[0]
    padded_alphas = torch.cat([alphas, alphas.new_zeros(1)])
    numbers = Fragments(torch.arange(n, device=pixels.device), pixels, firsts, counts)
    kept = per_pixel
    for bucket in buckets(numbers, dummy=n):
        alpha = padded_alphas[bucket.gaussians]
        T = torch.cumprod(1 - alpha, dim=1)
        dark = T < TRANSMITTANCE_MIN
        stopped, stop = dark.max(dim=1)
        kept[bucket.pixels] = torch.where(stopped, stop, kept[bucket.pixels])
        if contributions is not None:
            target, names = contributions
            before = torch.cat([torch.ones_like(T[:, :1]), T[:, :-1]], dim=1)
            alive = dark.cumsum(dim=1) == 0
            # Padding has weight 0, so its index only has to be a valid one.
            index = gaussians[bucket.gaussians.clamp_max(n - 1)]
            target.add(alpha * before * alive, names[index])
    return Fragments(gaussians, pixels, firsts, kept[pixels])


def composite(
    rows: list[Bucket],
    means2d: Tensor,  # [M, 2]
    conics: Tensor,  # [M, 3]
    opacities: Tensor,  # [M]
    features: Tensor,  # [M, D]
    masks: Tensor | None,  # [M]
    width: int,
    deterministic: bool = False,
    on_v_means2d: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Blend padded rows, differentiably in everything but the rows.

    Args:
        on_v_means2d: Called in backward with the index into means2d (M for padding) and the
            gradient of every fragment: [R] and [R, 2].

    Returns:
        Sums of weighted features [B, D] and remaining transmittances [B], for the rows' pixels
        one bucket after another.
    """
    # One more row stands for "nothing": opacity 0 leaves colour and transmittance alone.
    columns = [conics, opacities[:, None], features]
    columns += [] if masks is None else [masks[:, None]]
    table = _with_zero_row(torch.cat(columns, dim=1))
    index = torch.cat([row.gaussians.reshape(-1) for row in rows])
    pixels = torch.cat([row.pixels[:, None].expand_as(row.gaussians).reshape(-1) for row in rows])

    xy = _gather(_with_zero_row(means2d), index, deterministic)
    if on_v_means2d is not None and xy.requires_grad:
        xy.register_hook(lambda v_xy: on_v_means2d(index, v_xy))
    mx, my = xy.unbind(1)
    picked = _gather(table, index, deterministic)
    picked_conics, o, picked_features, *m = picked.split([c.shape[1] for c in columns], dim=1)
    A, B, C = picked_conics.unbind(1)
    dx = (pixels % width).to(mx.dtype) + 0.5 - mx
    dy = torch.div(pixels, width, rounding_mode="floor").to(mx.dtype) + 0.5 - my
    alphas = _clamp_alphas(o.squeeze(1) * torch.exp(-_sigmas(dx, dy, (A, B, C))))
    if masks is not None:
        alphas = alphas * m[0].squeeze(1)
    sizes = [row.gaussians.numel() for row in rows]
    sums, remaining = [], []
    parts = zip(rows, alphas.split(sizes), picked_features.split(sizes), strict=True)
    for row, alpha, feature in parts:
        alpha = alpha.reshape(row.gaussians.shape)
        T = torch.cumprod(1 - alpha, dim=1)
        before = torch.cat([torch.ones_like(T[:, :1]), T[:, :-1]], dim=1)
        weights = (alpha * before)[:, None]
        channels = feature.reshape(*row.gaussians.shape, feature.shape[1])
        sums.append(torch.bmm(weights, channels).squeeze(1))
        remaining.append(T[:, -1])
    return torch.cat(sums), torch.cat(remaining)


def _with_zero_row(table: Tensor) -> Tensor:
    return torch.cat([table, table.new_zeros(1, table.shape[1])])


def blend(
    records: Records,
    lists: list[list[Spans]],
    settings: RenderSettings,
    *,
    backgrounds: Tensor | None = None,  # [C, D]
    contributions: Contributions | None = None,
) -> tuple[Tensor, Tensor]:  # [C, H, W, D], [C, H, W, 1]
    """Blend lists into images, differentiably: the third stage of a rendering.

    Args:
        records: Of `project`.
        lists: Of `bin_tiles`, of the same records.
        settings: render_mode, absgrad and deterministic count.
        backgrounds: Composited behind the colours; depth has none.
        contributions: Where to add up the weights.

    Returns:
        Images (depth last) and alphas; with `absgrad` the backward adds to means2d.absgrad.
    """
    absgrads = None
    if settings.absgrad:
        absgrads = torch.zeros_like(records.means2d)
        records.means2d.absgrad = absgrads  # pyright: ignore[reportAttributeAccessIssue]
    images, transmittances = [], []
    for c, view in enumerate(records.views):
        features = [] if view.colors is None else [view.colors]
        if settings.has_depth:
            features.append(view.projected.depths[:, None])
        means2d = records.means2d[c].index_select(0, view.ids)
        on_v_means2d = None
        if absgrads is not None:
            on_v_means2d = functools.partial(_add_absolute, absgrads[c], view.ids)
        image, remaining = _blend_view(
            view, lists[c], means2d, torch.cat(features, 1), records.width, records.height,
            contributions, settings.deterministic, on_v_means2d,
        )  # fmt: skip
        images.append(image)
        transmittances.append(remaining)
    shape = len(records.views), records.height, records.width
    image = torch.stack(images).reshape(*shape, -1)
    remaining = torch.stack(transmittances).reshape(*shape, 1)
    return _finish(image, remaining, backgrounds, settings), 1 - remaining


def _blend_view(
    view: View,
    bands: list[Spans],
    means2d: Tensor,  # [V, 2]
    features: Tensor,  # [V, D]
    width: int,
    height: int,
    scores: Contributions | None,
    deterministic: bool,
    on_v_means2d: Callable[[Tensor, Tensor], None] | None,
) -> tuple[Tensor, Tensor]:
    """Features [H W, D] and remaining transmittance [H W] of one image."""
    conics, opacities, masks = view.projected.conics, view.projected.opacities, view.masks
    target = None if scores is None else (scores, view.ids)
    pixels, sums, remaining = [], [], []
    for band in bands:
        args = (band, means2d, conics, opacities, masks, width, height)
        fragments = contributing_fragments(*args, contributions=target)
        rows = buckets(fragments, dummy=means2d.shape[0])
        options = (width, deterministic, on_v_means2d)
        inputs = (rows, means2d, conics, opacities, features, masks, *options)
        if len(bands) > 1 and torch.is_grad_enabled():
            part = checkpoint(composite, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            part = composite(*inputs)
        pixels += [row.pixels for row in rows]
        sums.append(part[0])
        remaining.append(part[1])
    where = torch.cat(pixels)
    image = features.new_zeros(width * height, features.shape[1])
    rest = features.new_ones(width * height)
    return (
        image.index_copy(0, where, torch.cat(sums)),
        rest.index_copy(0, where, torch.cat(remaining)),
    )


def _add_absolute(absgrad: Tensor, ids: Tensor, index: Tensor, v_means2d: Tensor) -> None:
    total = absgrad.new_zeros(ids.shape[0] + 1, 2).index_add_(0, index, v_means2d.abs())
    absgrad.index_add_(0, ids, total[:-1])


def _finish(
    image: Tensor,  # [C, H, W, D]
    remaining: Tensor,  # [C, H, W, 1]
    backgrounds: Tensor | None,  # [C, D]
    settings: RenderSettings,
) -> Tensor:
    """Put the background behind the colours and divide expected depths by alpha."""
    parts = []
    colors = image[..., :-1] if settings.has_depth else image
    if settings.has_colors:
        if backgrounds is not None:
            colors = colors + remaining * backgrounds[:, None, None, :]
        parts.append(colors)
    if settings.has_depth:
        depth = image[..., -1:]
        if settings.expects_depth:
            alpha = 1 - remaining
            empty = alpha <= 0
            depth = torch.where(empty, 0.0, depth / torch.where(empty, 1.0, alpha))
        parts.append(depth)
    return torch.cat(parts, dim=-1)
