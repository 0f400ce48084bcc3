"""Forward kernel of blending: see blending/ for the equations."""

import triton
import triton.language as tl

from .pairs import (
    CHUNK,
    T_MIN,
    TILE,
    alphas_at,
    block_max,
    chunk_polynomials,
    feature,
    feature_rows,
    has_part,
    load_chunk,
    load_ids,
    part_axes,
    part_pixels,
    per_quad,
    program_tile,
    quads,
    tile_centre,
    transmittances,
)


@triton.jit
def _pixels(v):
    """Sums of the four lanes of each pixel."""
    return tl.reshape(tl.sum(v, 2), [v.shape[0] * TILE])


@triton.jit
def _add(total, w, f):
    total += w[0] * f[0]
    total += w[1] * f[1]
    total += w[2] * f[2]
    return total + w[3] * f[3]


_INTEGERS = ["W", "H", "tiles_x", "tiles_y", "N", "stride", "D", "first", "n_halved"]


@triton.jit(do_not_specialize=_INTEGERS)
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
    n_halved,  # of program_tile
    CHANNELS: tl.constexpr,
    SHARED: tl.constexpr,
    BACKGROUND: tl.constexpr,
    IN_RECORDS: tl.constexpr,  # features are the colours of records
    PARTS: tl.constexpr,  # of a tile, one after the other: fewer registers
):
    tile, parts = program_tile(tile_order_ptr, n_halved)
    centre_x, centre_y = tile_centre(tile, tiles_x, tiles_y)
    runs = ()  # transmittance, going on below the stop
    sums = ()  # of weights, and of weights times features
    lives = ()  # the largest transmittance of each part
    for part in tl.static_range(PARTS):
        inside = part_pixels(tile, W, H, tiles_x, tiles_y, part, PARTS)[3]
        runs = runs + (per_quad(tl.where(inside, 1.0, 0.0)),)
        zero = tl.zeros([TILE // PARTS, TILE, 4], tl.float32)
        sums = sums + ((zero, zero, zero, zero, zero),)
        lives = lives + (tl.where(has_part(parts, part), 1.0, 0.0),)
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
        if IN_RECORDS:
            features = quads(f[0]), quads(f[1]), quads(f[2])
        else:
            at = feature_rows(gaussian_ids_ptr, rows, there, N, SHARED)
            features = ()
            for k in tl.static_range(CHANNELS):
                f = feature(features_ptr, at, there, stride, D, k, first)
                features = features + (quads(f),)
        polynomials = chunk_polynomials(mx, my, A, B, C, lo, m, centre_x, centre_y)
        alive = 0.0
        runs_behind = ()
        sums_behind = ()
        lives_behind = ()
        for part in tl.static_range(PARTS):
            run = runs[part]
            life = lives[part]
            opaque, c0, c1, c2, c3 = sums[part]
            if life >= T_MIN:
                x, y = part_axes(part, PARTS)
                seen = transmittances(alphas_at(polynomials, x, y)[1], run, T_MIN)
                w = seen[0]
                run = seen[2]
                life = block_max(run)
                opaque += (w[0] + w[1]) + (w[2] + w[3])
                c0 = _add(c0, w, features[0])
                if CHANNELS > 1:
                    c1 = _add(c1, w, features[1])
                if CHANNELS > 2:
                    c2 = _add(c2, w, features[2])
                if CHANNELS > 3:
                    c3 = _add(c3, w, features[3])
            runs_behind = runs_behind + (run,)
            sums_behind = sums_behind + ((opaque, c0, c1, c2, c3),)
            lives_behind = lives_behind + (life,)
            alive = tl.maximum(alive, life)
        runs = runs_behind
        sums = sums_behind
        lives = lives_behind
        i += CHUNK
    for part in tl.static_range(PARTS):
        camera, px, py, within, pixel = part_pixels(tile, W, H, tiles_x, tiles_y, part, PARTS)
        within &= has_part(parts, part)
        total = _pixels(sums[part][0])
        for k in tl.static_range(CHANNELS):
            color = _pixels(sums[part][k + 1])
            if BACKGROUND:
                color += (1.0 - total) * tl.load(backgrounds_ptr + camera * D + first + k)
            tl.store(colors_ptr + pixel * D + first + k, color, mask=within)
        tl.store(alphas_ptr + pixel, total, mask=within)
