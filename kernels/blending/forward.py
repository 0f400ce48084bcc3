"""Forward kernel of blending: see blending/ for the equations."""

import triton
import triton.language as tl

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


@triton.jit
def _add(total, w, feature):
    f = quads(feature)
    total += w[0] * f[0]
    total += w[1] * f[1]
    total += w[2] * f[2]
    return total + w[3] * f[3]


@triton.jit(do_not_specialize=["W", "H", "tiles_x", "tiles_y", "N", "stride", "D", "first"])
def blend_fwd_kernel(
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
