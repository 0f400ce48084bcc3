r"""The backward of blending as MaskGaussian published it, for bench.ablation alone.

Liu et al. (CVPR 2025) derive for the sampled masks M_i, with g = dL/dcolor of a pixel, T_i the
transmittance before Gaussian i, b_{i+1} the colour of all behind it, T_end g.bg its background,

    dL/dM_i = a_i q_i,   dL/da_i = M_i q_i
    q_i = T_i g.(c_i - b_{i+1}) - T_end g.bg / (1 - M_i a_i)
    b_i = M_i a_i c_i + (1 - M_i a_i) b_{i+1}

which kernels.blending computes. The published rasterizer goes on from the Gaussian behind with the
mask of the one before it: in place of b_{i+1} it takes

    h_i = M_i a_{i+1} c_{i+1} + (1 - M_i a_{i+1}) h_{i+1},   0 for a pixel's last Gaussian

with i + 1 the next of the Gaussians of at least 1/255 in that pixel. Equal masks make no
difference; mixed ones do, signs included. Colour gradients, the recovery of T, the stop and the
gradient straight through the clamp at 0.99 are the same in both.

One program of one warp takes one tile entry by entry: front to back for each pixel's stop and
T_end, then back to front. Columns of its gradients are those of kernels.projection.record.
"""

import contextlib
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

import kernels.blending
from gs.errors import SplatrimError
from kernels import TileLists
from kernels.blending import BlendSettings, Features
from kernels.blending.pairs import ALPHA_MAX, ALPHA_MIN, LOG2E, T_MIN, tile_pixels
from kernels.device.intrinsics import ex2
from kernels.projection.ellipse import LN2
from kernels.projection.record import COLOR, CONIC, LOG2_OPACITY, MASK, MEAN, RECORD_SIZE
from kernels.runtime.launch import launch


@triton.jit
def _load_entry(records_ptr, flatten_ids_ptr, i, x, y, g0, g1, g2):
    """An entry's row, conic and mask; per pixel its offset, o exp(-sigma) or 0, and g.c."""
    row = tl.load(flatten_ids_ptr + i).to(tl.int64) * RECORD_SIZE
    record = records_ptr + row
    dx = x - tl.load(record + MEAN)
    dy = y - tl.load(record + MEAN + 1)
    A = tl.load(record + CONIC)
    B = tl.load(record + CONIC + 1)
    C = tl.load(record + CONIC + 2)
    sigma = 0.5 * (A * dx * dx + C * dy * dy) + B * dx * dy
    raw = ex2(tl.load(record + LOG2_OPACITY) - LOG2E * sigma)
    raw = tl.where(raw >= ALPHA_MIN, raw, 0.0)
    color = record + COLOR
    u = g0 * tl.load(color) + g1 * tl.load(color + 1) + g2 * tl.load(color + 2)
    return row, A, B, C, tl.load(record + MASK), dx, dy, raw, u


@triton.jit(do_not_specialize=["W", "H", "tiles_x", "tiles_y"])
def _published_bwd_kernel(
    records_ptr,  # [R, 16]
    flatten_ids_ptr,  # [I]
    offsets_ptr,  # [C * TH * TW + 1]
    tile_order_ptr,  # [C * TH * TW]
    colors_ptr,  # [C, H, W, 3] of the forward
    alphas_ptr,  # [C, H, W] of the forward
    v_colors_ptr,  # [C, H, W, 3]
    v_alphas_ptr,  # [C, H, W]
    v_rows_ptr,  # [R, 16] summed into
    W,
    H,
    tiles_x,
    tiles_y,
    ALPHA_GRADIENT: tl.constexpr,
):
    tile = tl.load(tile_order_ptr + tl.program_id(0))
    camera, xi, yi, inside, pixel = tile_pixels(tile, W, H, tiles_x, tiles_y)
    lo = tl.load(offsets_ptr + tile)
    hi = tl.load(offsets_ptr + tile + 1)
    x = xi.to(tl.float32) + 0.5
    y = yi.to(tl.float32) + 0.5
    g0 = tl.load(v_colors_ptr + pixel * 3, mask=inside, other=0.0)
    g1 = tl.load(v_colors_ptr + pixel * 3 + 1, mask=inside, other=0.0)
    g2 = tl.load(v_colors_ptr + pixel * 3 + 2, mask=inside, other=0.0)
    # T_end g.bg, which is what the image has beyond its Gaussians
    end = g0 * tl.load(colors_ptr + pixel * 3, mask=inside, other=0.0)
    end += g1 * tl.load(colors_ptr + pixel * 3 + 1, mask=inside, other=0.0)
    end += g2 * tl.load(colors_ptr + pixel * 3 + 2, mask=inside, other=0.0)
    if ALPHA_GRADIENT:
        alpha = tl.load(alphas_ptr + pixel, mask=inside, other=0.0)
        end += tl.load(v_alphas_ptr + pixel, mask=inside, other=0.0) * (alpha - 1.0)

    T = tl.where(inside, 1.0, 0.0)
    stop = tl.where(inside, lo, lo - 1)  # one behind the last entry before the stop
    i = lo
    while (i < hi) & (tl.max(stop, 0) == i):
        _, _, _, _, m, _, _, raw, u = _load_entry(records_ptr, flatten_ids_ptr, i, x, y, g0, g1, g2)
        e = tl.minimum(raw, ALPHA_MAX) * m
        after = T * (1.0 - e)
        passes = (stop == i) & (after >= T_MIN)
        end -= tl.where(passes, T * e * u, 0.0)
        T = tl.where(passes, after, T)
        stop = tl.where(passes, i + 1, stop)
        i += 1

    k = tl.arange(0, RECORD_SIZE)
    behind = tl.zeros_like(x)  # g.h
    last_alpha = tl.zeros_like(x)
    last_u = tl.zeros_like(x)
    i = tl.max(stop, 0) - 1
    while i >= lo:
        row, A, B, C, m, dx, dy, raw, u = _load_entry(
            records_ptr, flatten_ids_ptr, i, x, y, g0, g1, g2
        )
        valid = (i < stop) & (raw > 0.0)
        raw = tl.where(valid, raw, 0.0)
        alpha = tl.minimum(raw, ALPHA_MAX)
        inverse = 1.0 / (1.0 - alpha * m)
        T *= inverse
        # as published: the mask of this Gaussian and the alpha of the one behind it
        carried = m * last_alpha
        behind = tl.where(valid, carried * last_u + (1.0 - carried) * behind, behind)
        last_alpha = tl.where(valid, alpha, last_alpha)
        last_u = tl.where(valid, u, last_u)
        q = T * (u - behind) - end * inverse
        h = raw * q
        w = T * alpha * m
        hx = tl.sum(h * dx, 0)
        hy = tl.sum(h * dy, 0)
        v_mx = m * (A * hx + B * hy)
        v_my = m * (B * hx + C * hy)
        v = tl.where(k == MEAN, v_mx, tl.where(k == MEAN + 1, v_my, 0.0))
        v = tl.where(k == CONIC, -0.5 * m * tl.sum(h * dx * dx, 0), v)
        v = tl.where(k == CONIC + 1, -m * tl.sum(h * dx * dy, 0), v)
        v = tl.where(k == CONIC + 2, -0.5 * m * tl.sum(h * dy * dy, 0), v)
        v = tl.where(k == LOG2_OPACITY, LN2 * m * tl.sum(h, 0), v)
        v = tl.where(k == MASK, tl.sum(alpha * q, 0), v)
        v = tl.where(k == COLOR, tl.sum(w * g0, 0), v)
        v = tl.where(k == COLOR + 1, tl.sum(w * g1, 0), v)
        v = tl.where(k == COLOR + 2, tl.sum(w * g2, 0), v)
        tl.atomic_add(v_rows_ptr + row + k, v, mask=k < COLOR + 3, sem="relaxed")
        i -= 1


def published_bwd(
    values: Tensor,  # [R, 16]
    lists: TileLists,
    s: BlendSettings,
    features: Features | None,
    rows: Tensor | None,
    images: tuple[Tensor, Tensor],  # [C, H, W, 3], [C, H, W, 1]
    v_colors: Tensor,  # [C, H, W, 3]
    v_alphas: Tensor | None,  # [C, H, W, 1]
) -> tuple[Tensor, None]:
    """As kernels.blending.blend_bwd, with the published recursion.

    Returns:
        Gradients of records [R, 16], and None for features.

    Raises:
        SplatrimError: something else than colours is blended, or absolute or deterministic
            gradients are asked for.
    """
    if features is not None or not s.colors_only or s.absgrad or s.deterministic:
        raise SplatrimError(
            "published gradients are those of SH colours alone, neither absolute nor deterministic"
        )
    layout, v_values = lists.layout, torch.zeros_like(values)
    launch(
        _published_bwd_kernel,
        (layout.n_tiles,),
        values,
        lists.flatten_ids,
        lists.offsets,
        lists.tile_order,
        *images,
        v_colors,
        v_alphas,
        v_values,
        s.width,
        s.height,
        layout.tiles_x,
        layout.tiles_y,
        ALPHA_GRADIENT=v_alphas is not None,
        num_warps=1,
    )
    return v_values, None


@contextlib.contextmanager
def published_gradients() -> Iterator[None]:
    """Within it, Triton's renderings have the published gradients, also in captured graphs."""
    exact = kernels.blending.blend_bwd
    kernels.blending.blend_bwd = published_bwd
    try:
        yield
    finally:
        kernels.blending.blend_bwd = exact
