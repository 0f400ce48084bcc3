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
scaled by powers of two, v_color by one per tile and T by one for all, so that fp16 neither
overflows nor vanishes: with T as it is, gradients of what is seen through T < 0.01 are off by 1 to
10 %. (A scale that follows T gains little more and costs 3 % of a whole step.) h and T e are
rounded to fp16 once, which keeps every sum unbiased to 3e-4; SPLIT adds their low halves. Only
SPLIT, too, takes the clamp out of v_m: o exp(-sigma) exceeds 0.99 by less than 1 % and within 0.15
standard deviations of opaque means, about 3e-5 of v_m, while the branch for it costs 7 % of a whole
step in registers. With it left out, mask gradients are free: v_m is the first of the moments.

    v_rows [R 16] float32: gradients of records (projection/record.py); MEAN is v_means2d.
    Deterministic mode writes one row per list entry instead, summed by sum_rows_kernel.
"""

import triton
import triton.language as tl

from ..device.intrinsics import rcp
from ..device.transpose import join8, split8
from ..projection.ellipse import LN2
from ..projection.record import ABSGRAD as ABSGRAD_COLUMN
from ..projection.record import RECORD_SIZE
from .pairs import (
    ALPHA_MAX,
    CHUNK,
    LOG2_ALPHA_MAX,
    PIXELS,
    T_MIN,
    TILE,
    block_max,
    block_to_quads,
    chunk_alphas,
    column_order,
    columns,
    feature,
    feature_rows,
    load_chunk,
    load_halves,
    load_ids,
    per_quad,
    quads,
    quads_to_block,
    sums_before,
    tile_axes,
    tile_pixels,
    transmittances,
)

UNIT = tl.constexpr(1.0 / 8.0)  # of transmittance


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
def _add_outer(u, g, feature):
    f = quads(feature)
    return u[0] + g * f[0], u[1] + g * f[1], u[2] + g * f[2], u[3] + g * f[3]


@triton.jit
def _clipped(h, a):
    """What of sum_pixels h lies above the clamp, [4]."""
    over = 1.0 - rcp(tl.maximum(a, 1.0))
    return tl.sum(tl.sum(h * tl.maximum(over, 0.0), 0), 0)


@triton.jit
def _absolute(h, dx, dy, A, B, C):
    """sum_pixels |h (A dx + B dy)| and |h (B dx + C dy)|, [4] each."""
    ax = tl.abs(h * (A * dx + B * dy))
    ay = tl.abs(h * (B * dx + C * dy))
    return tl.sum(tl.sum(ax, 0), 0), tl.sum(tl.sum(ay, 0), 0)


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
    PRODUCT: tl.constexpr,
    SPLIT: tl.constexpr,
):
    tile = tl.load(tile_order_ptr + tl.program_id(0))
    camera, xi, yi, inside, pixel = tile_pixels(tile, W, H, tiles_x, tiles_y)
    i = tl.load(offsets_ptr + tile)
    hi = tl.load(offsets_ptr + tile + 1)

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
    # |h| <= T <|v_color|, difference of colours>, each |v_color| < 2: with this unit h overflows
    # fp16 where three colours differ by more than 1300.
    unscale = rcp(scale) * UNIT
    remainder *= scale * (ALPHA_MAX / UNIT)
    g0 *= scale
    g1 *= scale
    g2 *= scale
    g3 *= scale

    # columns 0..5: basis of the moments
    k = tl.arange(0, 8)[None, :]
    bx = ((tl.arange(0, PIXELS) % TILE).to(tl.float32) - (TILE / 2 - 0.5))[:, None]
    by = ((tl.arange(0, PIXELS) // TILE).to(tl.float32) - (TILE / 2 - 0.5))[:, None]
    basis = tl.where(k == 0, 1.0, tl.where(k == 1, bx, tl.where(k == 2, by, 0.0)))
    basis = tl.where(k == 3, bx * bx, tl.where(k == 4, bx * by, tl.where(k == 5, by * by, basis)))
    basis = basis.to(tl.float16)
    # columns 0..3 and 4..7: high and low half of v_color
    c = k % 4
    g = tl.where(c == 0, g0[:, None], tl.where(c == 1, g1[:, None], 0.0))
    g = tl.where(c == 2, g2[:, None], tl.where(c == 3, g3[:, None], g))
    g_high = g.to(tl.float16)
    g_both = tl.where(k < 4, g_high, (g - g_high.to(tl.float32)).to(tl.float16))
    # alphas come in units of ALPHA_MAX, so what they are multiplied by takes that in
    g0 *= ALPHA_MAX
    g1 *= ALPHA_MAX
    g2 *= ALPHA_MAX
    g3 *= ALPHA_MAX
    # against the halves of a record: high half of v_color, then its low half
    k = tl.arange(0, 16)[None, :]
    c = (k % 8) // 2
    gs = tl.where(c == 1, g0[:, None], tl.where(c == 2, g1[:, None], 0.0))
    gs = tl.where(c == 3, g2[:, None], gs)
    gs_high = gs.to(tl.float16)
    g_split = tl.where(k < 8, gs_high, (gs - gs_high.to(tl.float32)).to(tl.float16))

    centre_x, centre_y, x, y = tile_axes(tile, tiles_x, tiles_y)
    if not PRODUCT:
        g0 = per_quad(g0)
        g1 = per_quad(g1)
        g2 = per_quad(g2)
        g3 = per_quad(g3)
    remainder = per_quad(remainder)
    run = per_quad(tl.where(inside, 1.0 / UNIT, 0.0))
    alive = tl.where(top > 0.0, 1.0 / UNIT, 0.0)
    ids = load_ids(flatten_ids_ptr, i, hi)
    ahead = load_chunk(records_ptr, ids, i, hi, False)
    ids = load_ids(flatten_ids_ptr, i + CHUNK, hi)
    while (i < hi) & (alive >= T_MIN / UNIT):
        rows, there, mx, my, A, B, C, lo, m, unused = ahead
        ahead = load_chunk(records_ptr, ids, i + CHUNK, hi, False)
        ids = load_ids(flatten_ids_ptr, i + 2 * CHUNK, hi)
        if PRODUCT:
            u = block_to_quads(tl.dot(g_split, load_halves(records_ptr, rows)))
        else:
            at = feature_rows(gaussian_ids_ptr, rows, there, N, SHARED)
            zero = tl.zeros([TILE, TILE, 4], tl.float32)
            u = (zero, zero, zero, zero)
            u = _add_outer(u, g0, feature(features_ptr, at, there, stride, D, 0, first))
            if CHANNELS > 1:
                u = _add_outer(u, g1, feature(features_ptr, at, there, stride, D, 1, first))
            if CHANNELS > 2:
                u = _add_outer(u, g2, feature(features_ptr, at, there, stride, D, 2, first))
            if CHANNELS > 3:
                u = _add_outer(u, g3, feature(features_ptr, at, there, stride, D, 3, first))
            if ABSGRAD_ONLY:
                for channel in range(1, D):
                    gc, _ = _load_gradient(v_colors_ptr, colors_ptr, pixel, inside, D, channel, 0)
                    f = feature(features_ptr, at, there, stride, D, 0, channel)
                    u = _add_outer(u, per_quad(gc * (scale * ALPHA_MAX)), f)
        a, rest = chunk_alphas(mx, my, A, B, C, lo, m, centre_x, centre_y, x, y)
        w, after, run, go = transmittances(rest, run, T_MIN / UNIT)
        v = w[0] * u[0] + w[1] * u[1]
        v += w[2] * u[2]
        v += w[3] * u[3]
        before, total = sums_before(v)
        # v_e (1 - e) = T_{i+1} u - R, R the remainder behind this Gaussian
        s0 = (before - remainder) + w[0] * u[0]
        s1 = s0 + w[1] * u[1]
        s2 = s1 + w[2] * u[2]
        s3 = s2 + w[3] * u[3]
        remainder -= total
        h0 = a[0] * rcp(rest[0]) * go[0] * (after[0] * u[0] + s0)
        h1 = a[1] * rcp(rest[1]) * go[1] * (after[1] * u[1] + s1)
        h2 = a[2] * rcp(rest[2]) * go[2] * (after[2] * u[2] + s2)
        h3 = a[3] * rcp(rest[3]) * go[3] * (after[3] * u[3] + s3)
        alive = block_max(run)

        h = quads_to_block((h0, h1, h2, h3))
        w = quads_to_block(w)
        h_high = h.to(tl.float16)
        w_high = w.to(tl.float16)
        sums = tl.dot(tl.trans(h_high), basis)
        v_both = tl.dot(tl.trans(w_high), g_both)
        if SPLIT:
            sums = tl.dot(tl.trans((h - h_high.to(tl.float32)).to(tl.float16)), basis, sums)
            v_both = tl.dot(tl.trans((w - w_high.to(tl.float32)).to(tl.float16)), g_both, v_both)
        clipped = tl.zeros([CHUNK], tl.float32)
        if MASK_GRADIENT and SPLIT:
            if tl.max(lo, 0) > LOG2_ALPHA_MAX:
                # the mask sees the clamped alpha
                c0 = _clipped(h0, a[0])
                c1 = _clipped(h1, a[1])
                c2 = _clipped(h2, a[2])
                c3 = _clipped(h3, a[3])
                clipped = columns((c0, c1, c2, c3))
        v_high, v_low = tl.split(tl.permute(tl.reshape(v_both, [CHUNK, 2, 4]), [0, 2, 1]))
        v_features = (v_high + v_low) * unscale
        s0, s1, s2, s3, s4, s5, _, _ = split8(sums * unscale)
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
        # columns MEAN to DEPTH
        v_geometry = join8(
            m * (A * hx + B * hy),
            m * (B * hx + C * hy),
            m * hxx * -0.5,
            -m * hxy,
            m * hyy * -0.5,
            m * s0 * LN2,
            v_m,
            tl.zeros([CHUNK], tl.float32),
        )
        if ABSGRAD_ONLY:
            pass
        elif DETERMINISTIC:
            slot = tl.load(slots_ptr + i + column_order(), mask=there, other=0).to(tl.int64)
            out = v_rows_ptr + slot[:, None] * RECORD_SIZE
            tl.store(out + tl.arange(0, 8)[None, :], v_geometry, mask=there[:, None])
            tl.store(out + COLUMN + tl.arange(0, 4)[None, :], v_features, mask=there[:, None])
        else:
            out = v_rows_ptr + rows[:, None] * RECORD_SIZE
            tl.atomic_add(
                out + tl.arange(0, 8)[None, :], v_geometry, mask=there[:, None], sem="relaxed"
            )
            tl.atomic_add(
                out + COLUMN + tl.arange(0, 4)[None, :],
                v_features,
                mask=there[:, None],
                sem="relaxed",
            )
        if ABSGRAD:
            dx = quads(mx - centre_x)
            dy = quads(my - centre_y)
            A4 = quads(m * A)
            B4 = quads(m * B)
            C4 = quads(m * C)
            x0, y0 = _absolute(h0, x - dx[0], y - dy[0], A4[0], B4[0], C4[0])
            x1, y1 = _absolute(h1, x - dx[1], y - dy[1], A4[1], B4[1], C4[1])
            x2, y2 = _absolute(h2, x - dx[2], y - dy[2], A4[2], B4[2], C4[2])
            x3, y3 = _absolute(h3, x - dx[3], y - dy[3], A4[3], B4[3], C4[3])
            ax = columns((x0, x1, x2, x3)) * unscale
            ay = columns((y0, y1, y2, y3)) * unscale
            if DETERMINISTIC:
                slot = tl.load(slots_ptr + i + column_order(), mask=there, other=0).to(tl.int64)
                out = v_rows_ptr + slot * RECORD_SIZE + ABSGRAD_COLUMN
                tl.store(out, ax, mask=there)
                tl.store(out + 1, ay, mask=there)
            else:
                out = v_rows_ptr + rows * RECORD_SIZE + ABSGRAD_COLUMN
                tl.atomic_add(out, ax, mask=there, sem="relaxed")
                tl.atomic_add(out + 1, ay, mask=there, sem="relaxed")
        i += CHUNK


@triton.jit(do_not_specialize=["capacity"])
def sum_rows_kernel(
    rows_ptr,  # [capacity, 16] one row per (Gaussian, tile), Gaussians in depth order
    order_ptr,  # [R]
    cumulative_ptr,  # [R]
    v_rows_ptr,  # [R, 16] out, zero where a Gaussian touches no tile
    capacity,  # pairs beyond it have no row
    BLOCK: tl.constexpr,
):
    """Sum one Gaussian's rows in an order that depends on their number alone."""
    rank = tl.program_id(0)
    first = tl.load(cumulative_ptr + tl.maximum(rank - 1, 0)) * (rank > 0).to(tl.int32)
    last = tl.minimum(tl.load(cumulative_ptr + rank), capacity)
    gaussian = tl.load(order_ptr + rank).to(tl.int64)
    k = tl.arange(0, RECORD_SIZE)
    total = tl.zeros([RECORD_SIZE], tl.float32)
    for start in range(first, last, BLOCK):
        row = start + tl.arange(0, BLOCK)
        at = row.to(tl.int64)[:, None] * RECORD_SIZE + k[None, :]
        total += tl.sum(tl.load(rows_ptr + at, mask=(row < last)[:, None], other=0.0), 0)
    tl.store(v_rows_ptr + gaussian * RECORD_SIZE + k, total)
