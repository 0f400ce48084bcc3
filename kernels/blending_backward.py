r"""Backward of alpha blending: one front-to-back replay of each tile list.

With u_i = <v_color, c_i>, T_{i+1} = T_i (1 - e_i) and the remainder behind Gaussian i

    R_i = <v_color, color> + v_alpha (alpha - 1) - sum_{j<=i} T_j e_j u_j

(color with its background) the gradients of a pixel are

    v_e_i = (T_{i+1} u_i - R_i) / (1 - e_i),   v_m_i = a_i v_e_i,   v_c_i = T_i e_i v_color

so an unsampled Gaussian (m = 0) still gets its mask gradient (MaskGaussian, section 3.2, exact).
The gradient passes the clamp at 0.99 unchanged (o exp(-sigma) in place of a). Geometry needs the
moments sum_pixels h, h x, h y, h x^2, h x y, h y^2 of h = o exp(-sigma) v_e about the tile centre.
These and v_c are matrix products: pixels are contracted against the basis [1 x y x^2 xy y^2],
which fp16 holds exactly on an 8x8 tile, and against v_color (high and low halves). Operands are
scaled by a power of two per tile, so that fp16 never overflows or vanishes. h and T e are rounded
to fp16 once, which keeps every sum unbiased to 3e-4; SPLIT adds their low halves. Only SPLIT, too,
takes the clamp out of v_m: o exp(-sigma) exceeds 0.99 by less than 1 % and within 0.15 standard
deviations of opaque means, about 3e-5 of v_m, while the branch for it costs 7 % of a whole step in
registers. With it left out, mask gradients are free: v_m is the first of the moments.

    v_rows [R 16] float32: columns as in records, 0..1 v_means2d, 5 v_log2(o), 12..13 absgrad.
    Deterministic mode writes one row per list entry instead, summed by _sum_rows_kernel.
"""

# Triton types its device functions as returning nothing.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from .device import rcp
from .tiles import (
    ALPHA_MAX,
    ALPHA_MIN,
    CHUNK,
    PIXELS,
    T_MIN,
    TILE,
    feature,
    feature_rows,
    load_chunk,
    load_halves,
    raw_alpha,
    tile_pixels,
)

LN2 = tl.constexpr(0.6931471805599453)
LOG2_ALPHA_MAX = tl.constexpr(-0.0144996)  # just below log2(0.99)


@triton.jit
def _load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, first, k: tl.constexpr):
    g = tl.load(v_colors_ptr + pixel * D + first + k, mask=inside, other=0.0)
    return g, g * tl.load(colors_ptr + pixel * D + first + k, mask=inside, other=0.0)


@triton.jit
def _reciprocal_power_of_two(x):
    """1 / 2^floor(log2 x) for positive normal x, exact."""
    exponent = x.to(tl.int32, bitcast=True) >> 23
    exponent = tl.minimum(tl.maximum(exponent, 1), 253)
    return ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _first_six_columns(block):
    """Columns 0..5 of a [CHUNK, 8] block as vectors, without a reduction."""
    even, odd = tl.split(tl.reshape(block, [CHUNK, 4, 2]))
    c04, c26 = tl.split(tl.reshape(even, [CHUNK, 2, 2]))
    c15, c37 = tl.split(tl.reshape(odd, [CHUNK, 2, 2]))
    c0, c4 = tl.split(c04)
    c1, c5 = tl.split(c15)
    c2, _ = tl.split(c26)
    c3, _ = tl.split(c37)
    return c0, c1, c2, c3, c4, c5


@triton.jit(do_not_specialize=["W", "H", "tiles_x", "tiles_y", "N", "stride", "D", "first"])
def blend_bwd_kernel(
    records_ptr,  # [R, 16]
    features_ptr,  # [R, stride], [C, N, stride] or [N, stride]
    gaussian_ids_ptr,  # [R], or None where features lie in rows
    flatten_ids_ptr,  # [I]
    slots_ptr,  # [I] rows of v_rows_ptr in deterministic mode
    offsets_ptr,  # [C * TH * TW + 1]
    tile_order_ptr,  # [C * TH * TW]
    colors_ptr,  # [C, H, W, D] of the forward
    alphas_ptr,  # [C, H, W] of the forward
    v_colors_ptr,  # [C, H, W, D]
    v_alphas_ptr,  # [C, H, W]
    v_rows_ptr,  # [R, 16], or [I, 16] in deterministic mode
    W,
    H,
    tiles_x,
    tiles_y,
    N,
    stride,
    D,
    first,
    COLUMN: tl.constexpr,  # of v_rows where the gradients of the features begin
    CHANNELS: tl.constexpr,
    SHARED: tl.constexpr,
    ALPHA_GRADIENT: tl.constexpr,
    MASK_GRADIENT: tl.constexpr,
    ABSGRAD: tl.constexpr,
    ABSGRAD_ONLY: tl.constexpr,  # of all D channels at once: |x| is not a sum over channels
    DETERMINISTIC: tl.constexpr,
    WIDE_SLOTS: tl.constexpr,  # slots are int64
    PRODUCT: tl.constexpr,
    SPLIT: tl.constexpr,
):
    tile = tl.load(tile_order_ptr + tl.program_id(0))
    camera, xi, yi, inside, pixel = tile_pixels(tile, W, H, tiles_x, tiles_y)
    i = tl.load(offsets_ptr + tile)
    hi = tl.load(offsets_ptr + tile + 1)
    x = xi.to(tl.float32) + 0.5
    y = yi.to(tl.float32) + 0.5

    g0, remainder = _load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, first, 0)
    g1 = tl.zeros([PIXELS], tl.float32)
    g2 = g1
    g3 = g1
    largest = tl.abs(g0)
    if ABSGRAD_ONLY:
        for channel in range(1, D):
            gc, r = _load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, channel, 0)
            remainder += r
            largest = tl.maximum(largest, tl.abs(gc))
    if CHANNELS > 1:
        g1, r = _load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, first, 1)
        remainder += r
    if CHANNELS > 2:
        g2, r = _load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, first, 2)
        remainder += r
    if CHANNELS > 3:
        g3, r = _load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, first, 3)
        remainder += r
    largest = tl.maximum(tl.maximum(largest, tl.abs(g1)), tl.maximum(tl.abs(g2), tl.abs(g3)))
    if ALPHA_GRADIENT:
        ga = tl.load(v_alphas_ptr + pixel, mask=inside, other=0.0)
        remainder += ga * (tl.load(alphas_ptr + pixel, mask=inside, other=0.0) - 1.0)
        largest = tl.maximum(largest, tl.abs(ga))
    top = tl.max(largest, 0)
    scale = _reciprocal_power_of_two(top)
    unscale = rcp(scale)
    remainder *= scale
    g0 *= scale
    g1 *= scale
    g2 *= scale
    g3 *= scale

    # columns 0..5: basis of the moments; 8..11 and 12..15: high and low half of v_color
    k = tl.arange(0, 16)[None, :]
    bx = ((tl.arange(0, PIXELS) % TILE).to(tl.float32) - (TILE / 2 - 0.5))[:, None]
    by = ((tl.arange(0, PIXELS) // TILE).to(tl.float32) - (TILE / 2 - 0.5))[:, None]
    basis = tl.where(k == 0, 1.0, tl.where(k == 1, bx, tl.where(k == 2, by, 0.0)))
    basis = tl.where(k == 3, bx * bx, tl.where(k == 4, bx * by, tl.where(k == 5, by * by, basis)))
    basis = basis.to(tl.float16)
    c = k % 4
    g = tl.where(c == 0, g0[:, None], tl.where(c == 1, g1[:, None], 0.0))
    g = tl.where(c == 2, g2[:, None], tl.where(c == 3, g3[:, None], g))
    g_high = g.to(tl.float16)
    g_both = tl.where(k < 12, g_high, (g - g_high.to(tl.float32)).to(tl.float16))
    g_both = tl.where(k < 8, 0.0, g_both).to(tl.float16)
    # against the halves of a record: high half of v_color, then its low half
    c = (k % 8) // 2
    gs = tl.where(c == 1, g0[:, None], tl.where(c == 2, g1[:, None], 0.0))
    gs = tl.where(c == 3, g2[:, None], gs)
    gs_high = gs.to(tl.float16)
    g_split = tl.where(k < 8, gs_high, (gs - gs_high.to(tl.float32)).to(tl.float16))

    centre_x = tl.min(xi, 0).to(tl.float32) + TILE / 2
    centre_y = tl.min(yi, 0).to(tl.float32) + TILE / 2
    j = tl.arange(0, 8)[None, :]
    run = tl.where(inside, 1.0, 0.0)
    alive = tl.where(top > 0.0, 1.0, 0.0)
    while (i < hi) & (alive >= T_MIN):
        ids, there, mx, my, A, B, C, lo, m = load_chunk(records_ptr, flatten_ids_ptr, i, hi)
        halves = load_halves(records_ptr, ids, there)
        if PRODUCT:
            u = tl.dot(g_split, halves)
        else:
            at = feature_rows(gaussian_ids_ptr, ids, there, N, SHARED)
            f = feature(features_ptr, at, there, stride, D, 0, first)
            u = g0[:, None] * f[None, :]
            if CHANNELS > 1:
                f = feature(features_ptr, at, there, stride, D, 1, first)
                u += g1[:, None] * f[None, :]
            if CHANNELS > 2:
                f = feature(features_ptr, at, there, stride, D, 2, first)
                u += g2[:, None] * f[None, :]
            if CHANNELS > 3:
                f = feature(features_ptr, at, there, stride, D, 3, first)
                u += g3[:, None] * f[None, :]

        if ABSGRAD_ONLY:
            for channel in range(1, D):
                gc, _ = _load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, channel, 0)
                f = feature(features_ptr, at, there, stride, D, 0, channel)
                u += (gc * scale)[:, None] * f[None, :]
        raw = raw_alpha(x, y, mx, my, A, B, C, lo, there, halves)
        raw = tl.where(raw >= ALPHA_MIN, raw, 0.0)
        e = tl.minimum(raw, ALPHA_MAX) * m[None, :]
        rest = 1.0 - e
        inverse = rcp(rest)
        after = run[:, None] * tl.cumprod(rest, 1)
        run = tl.min(after, 1)
        valid = after >= T_MIN
        after = tl.where(valid, after, 0.0)
        ratio = tl.where(valid, raw * inverse, 0.0)
        w = after * (e * inverse)
        v = w * u
        # v_e (1 - e) = T_{i+1} u - R, R the remainder behind this Gaussian
        behind = after * u + tl.cumsum(v, 1) - remainder[:, None]
        h = ratio * behind
        remainder -= tl.sum(v, 1)
        alive = tl.max(run, 0)

        h_high = h.to(tl.float16)
        w_high = w.to(tl.float16)
        sums = tl.dot(tl.trans(h_high), basis)
        sums = tl.dot(tl.trans(w_high), g_both, sums)
        if SPLIT:
            sums = tl.dot(tl.trans((h - h_high.to(tl.float32)).to(tl.float16)), basis, sums)
            sums = tl.dot(tl.trans((w - w_high.to(tl.float32)).to(tl.float16)), g_both, sums)
        clipped = tl.zeros([CHUNK], tl.float32)
        if MASK_GRADIENT and SPLIT:
            if tl.max(lo, 0) > LOG2_ALPHA_MAX:
                # the mask sees the clamped alpha; computed again to keep registers free
                again = raw_alpha(x, y, mx, my, A, B, C, lo, there, halves)
                over = 1.0 - ALPHA_MAX * rcp(tl.maximum(again, ALPHA_MAX))
                clipped = tl.sum(h * tl.maximum(over, 0.0), 0)
        sums *= unscale
        low, high = tl.split(tl.permute(tl.reshape(sums, [CHUNK, 2, 8]), [0, 2, 1]))
        v_high, v_low = tl.split(tl.permute(tl.reshape(high, [CHUNK, 2, 4]), [0, 2, 1]))
        s0, s1, s2, s3, s4, s5 = _first_six_columns(low)
        # moments about the mean
        ox = mx - centre_x
        oy = my - centre_y
        hx = s1 - ox * s0
        hy = s2 - oy * s0
        hxx = s3 - ox * (s1 + hx)
        hxy = s4 - ox * s2 - oy * hx
        hyy = s5 - oy * (s2 + hy)
        v_m = s0
        if MASK_GRADIENT and SPLIT:
            v_m -= clipped * unscale
        row = tl.where(j == 0, (m * (A * hx + B * hy))[:, None], (m * (B * hx + C * hy))[:, None])
        row = tl.where(j == 2, (m * hxx * -0.5)[:, None], row)
        row = tl.where(j == 3, (-m * hxy)[:, None], row)
        row = tl.where(j == 4, (m * hyy * -0.5)[:, None], row)
        row = tl.where(j == 5, (m * s0 * LN2)[:, None], row)
        row = tl.where(j == 6, v_m[:, None], tl.where(j == 7, 0.0, row))
        if ABSGRAD_ONLY:
            pass
        elif DETERMINISTIC:
            slot = tl.load(slots_ptr + i + tl.arange(0, CHUNK), mask=there, other=0).to(tl.int64)
            out = v_rows_ptr + slot[:, None] * 16
            tl.store(out + j, row, mask=there[:, None])
            tl.store(out + COLUMN + tl.arange(0, 4)[None, :], v_high + v_low, mask=there[:, None])
        else:
            out = v_rows_ptr + ids[:, None] * 16
            tl.atomic_add(out + j, row, mask=there[:, None], sem="relaxed")
            tl.atomic_add(
                out + COLUMN + tl.arange(0, 4)[None, :],
                v_high + v_low,
                mask=there[:, None],
                sem="relaxed",
            )
        if ABSGRAD:
            dx = x[:, None] - mx[None, :]
            dy = y[:, None] - my[None, :]
            size = tl.abs(h * m[None, :]) * unscale
            ax = tl.sum(size * tl.abs(A[None, :] * dx + B[None, :] * dy), 0)
            ay = tl.sum(size * tl.abs(B[None, :] * dx + C[None, :] * dy), 0)
            if DETERMINISTIC:
                slot = tl.load(slots_ptr + i + tl.arange(0, CHUNK), mask=there, other=0)
                tl.store(v_rows_ptr + slot.to(tl.int64) * 16 + 12, ax, mask=there)
                tl.store(v_rows_ptr + slot.to(tl.int64) * 16 + 13, ay, mask=there)
            else:
                tl.atomic_add(v_rows_ptr + ids * 16 + 12, ax, mask=there, sem="relaxed")
                tl.atomic_add(v_rows_ptr + ids * 16 + 13, ay, mask=there, sem="relaxed")
        i += CHUNK


@triton.jit
def sum_rows_kernel(
    rows_ptr,  # [I, 16] one row per (Gaussian, tile), Gaussians in depth order
    order_ptr,  # [R]
    cumulative_ptr,  # [R]
    v_rows_ptr,  # [R, 16] out, zero where a Gaussian touches no tile
    WIDE_ORDER: tl.constexpr,  # order is int64
    BLOCK: tl.constexpr,
):
    """Sum one Gaussian's rows in an order that depends on their number alone."""
    rank = tl.program_id(0)
    first = tl.load(cumulative_ptr + tl.maximum(rank - 1, 0)) * (rank > 0).to(tl.int32)
    last = tl.load(cumulative_ptr + rank)
    gaussian = tl.load(order_ptr + rank).to(tl.int64)
    k = tl.arange(0, 16)
    total = tl.zeros([16], tl.float32)
    for start in range(first, last, BLOCK):
        row = start + tl.arange(0, BLOCK)
        at = row.to(tl.int64)[:, None] * 16 + k[None, :]
        total += tl.sum(tl.load(rows_ptr + at, mask=(row < last)[:, None], other=0.0), 0)
    tl.store(v_rows_ptr + gaussian * 16 + k, total)
