"""Device functions that every walk through the tile lists shares.

A tile is 8x8 pixels, a chunk 16 consecutive entries of its list, and one warp works on all pairs
of them. They lie as a matrix accumulator lays out a [64 pixels, 16 columns] block: a lane has one
column of 8 pixels, shared with three others, and of the 16 columns 2q, 2q + 1, 8 + 2q and 9 + 2q.
Columns are ordered so that these are four neighbours in depth, 4q..4q + 3. Values of pairs are
therefore kept as four blocks [8 y, 8 x, 4 q], the "quads" of the names below: block k holds entries
4q + k. Sums and products along a chunk run within a lane but for two exchanges between the four
lanes, and matrix products take and give such blocks without moving them.

Blending is bound by how many instructions it starts and by the latency of the few warps that
registers leave room for, on long lists most of all. On sm_90 a pair takes 20 instructions forward
and 32 backward. Alphas and stops are selected by multiply-adds that clamp to [0, 1]: a GPU starts
twice as many of these as of comparisons and selections. Records are loaded a chunk ahead and lie
one per lane until their coefficients are known.
"""

import math

import triton
import triton.language as tl

from .. import constants
from ..device.intrinsics import ex2, mul_rounded, mul_sat, step
from ..device.transpose import join4, split4
from ..projection.record import COLOR, CONIC, HALVES, MASK, MEAN, RECORD_SIZE

TILE = tl.constexpr(constants.TILE_SIZE)
PIXELS = tl.constexpr(constants.TILE_SIZE * constants.TILE_SIZE)
CHUNK = tl.constexpr(16)
ALPHA_MIN = tl.constexpr(constants.ALPHA_MIN)
ALPHA_MAX = tl.constexpr(constants.ALPHA_MAX)
T_MIN = tl.constexpr(constants.TRANSMITTANCE_MIN)
LOG2_ALPHA_MAX = tl.constexpr(math.log2(constants.ALPHA_MAX))
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def tile_pixels(tile, W, H, tiles_x, tiles_y):
    """Camera, pixel coordinates and validity of a tile's 64 pixels."""
    per_camera = tiles_x * tiles_y
    camera = tile // per_camera
    t = tile - camera * per_camera
    p = tl.arange(0, PIXELS)
    x = (t % tiles_x) * TILE + p % TILE
    y = (t // tiles_x) * TILE + p // TILE
    inside = (x < W) & (y < H)
    pixel = (camera.to(tl.int64) * H + y) * W + x
    return camera, x, y, inside, pixel


@triton.jit
def tile_axes(tile, tiles_x, tiles_y):
    """The centre of a tile, and its pixels as seen from there, x [1, 8, 1] and y [8, 1, 1]."""
    t = tile % (tiles_x * tiles_y)
    centre_x = ((t % tiles_x) * TILE).to(tl.float32) + TILE / 2
    centre_y = ((t // tiles_x) * TILE).to(tl.float32) + TILE / 2
    offsets = tl.arange(0, TILE).to(tl.float32) - (TILE / 2 - 0.5)
    return centre_x, centre_y, offsets[None, :, None], offsets[:, None, None]


@triton.jit
def per_quad(v):
    """A value per pixel [64] for each of the four lanes that share it: [8, 8, 4]."""
    return tl.reshape(v, [TILE, TILE])[:, :, None] + tl.zeros([TILE, TILE, 4], v.dtype)


@triton.jit
def block_max(v):
    """The largest of all v [8, 8, 4] >= 0, by one instruction for integers."""
    bits = tl.reshape(v, [PIXELS * 4]).to(tl.int32, bitcast=True)
    return tl.max(bits, 0).to(tl.float32, bitcast=True)


@triton.jit
def column_order():
    """Which entry of a chunk each column of a [64, 16] block holds: [16]."""
    j = tl.arange(0, CHUNK)
    return j % 8 // 2 * 4 + j // 8 * 2 + j % 2


@triton.jit
def quads(v):
    """A value per column [16] as four of [1, 1, 4]."""
    low, high = tl.split(tl.permute(tl.reshape(v, [2, 8]), [1, 0]))
    a, b = tl.split(tl.reshape(low, [4, 2]))
    c, d = tl.split(tl.reshape(high, [4, 2]))
    return a[None, None, :], b[None, None, :], c[None, None, :], d[None, None, :]


@triton.jit
def quads_of_four(a, b, c, d):
    """quads of four values per column, exchanged together."""
    m = tl.permute(tl.reshape(join4(a, b, c, d), [2, 4, 2, 4]), [1, 3, 0, 2])
    even, odd = tl.split(m)
    m0, m2 = tl.split(even)
    m1, m3 = tl.split(odd)
    a0, b0, c0, d0 = split4(m0)
    a1, b1, c1, d1 = split4(m1)
    a2, b2, c2, d2 = split4(m2)
    a3, b3, c3, d3 = split4(m3)
    return (
        (a0[None, None, :], a1[None, None, :], a2[None, None, :], a3[None, None, :]),
        (b0[None, None, :], b1[None, None, :], b2[None, None, :], b3[None, None, :]),
        (c0[None, None, :], c1[None, None, :], c2[None, None, :], c3[None, None, :]),
        (d0[None, None, :], d1[None, None, :], d2[None, None, :], d3[None, None, :]),
    )


@triton.jit
def columns(v):
    """The inverse of quads, of four [4]."""
    m = tl.join(tl.join(v[0], v[1]), tl.join(v[2], v[3]))
    return tl.reshape(tl.permute(m, [2, 0, 1]), [CHUNK])


@triton.jit
def block_to_quads(m):
    """A [64, 16] block as four [8, 8, 4]; nothing moves between lanes."""
    m = tl.permute(tl.reshape(m, [TILE, TILE, 2, 4, 2]), [0, 1, 3, 2, 4])
    even, odd = tl.split(m)
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def quads_to_block(v):
    """The inverse of block_to_quads."""
    m = tl.join(tl.join(v[0], v[1]), tl.join(v[2], v[3]))
    return tl.reshape(tl.permute(m, [0, 1, 4, 2, 3]), [PIXELS, CHUNK])


@triton.jit
def products_before(p):
    """Of p [8, 8, 4] along the last axis: the product of what stands before, and of all four."""
    q = tl.arange(0, 4)[None, None, :] + tl.zeros([TILE, TILE, 1], tl.int32)
    other = tl.gather(p, q ^ 1, 2)
    before = tl.where(q % 2 == 1, other, 1.0)
    p *= other
    other = tl.gather(p, q ^ 2, 2)
    return tl.where(q >= 2, before * other, before), p * other


@triton.jit
def sums_before(v):
    """The same of sums."""
    q = tl.arange(0, 4)[None, None, :] + tl.zeros([TILE, TILE, 1], tl.int32)
    other = tl.gather(v, q ^ 1, 2)
    before = tl.where(q % 2 == 1, other, 0.0)
    v += other
    other = tl.gather(v, q ^ 2, 2)
    return tl.where(q >= 2, before + other, before), v + other


@triton.jit
def load_pair(row_ptr, COLUMN: tl.constexpr, there):
    """An even column of rows and the one behind it, by one load."""
    v = tl.load(row_ptr.to(tl.pointer_type(tl.int64)) + COLUMN // 2, mask=there, other=0)
    low = v.to(tl.int32).to(tl.float32, bitcast=True)
    high = (v >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return low, high


@triton.jit
def load_ids(flatten_ids_ptr, i, hi):
    """Rows of the CHUNK entries from i on by column, [16]; row 0 past the end of the list."""
    entry = i + column_order()
    return tl.load(flatten_ids_ptr + entry, mask=entry < hi, other=0)


@triton.jit
def load_chunk(records_ptr, ids, i, hi, COLORS: tl.constexpr):
    """Rows, geometry and with COLORS three colours of the chunk at i, by column [16].

    Past the end of the list, entries have no opacity. Loops load a chunk while they work on the one
    before, and its ids another chunk earlier.
    """
    there = i + column_order() < hi
    rows = ids.to(tl.int64)
    row_ptr = records_ptr + rows * RECORD_SIZE
    mx, my = load_pair(row_ptr, MEAN, there)
    A, B = load_pair(row_ptr, CONIC, there)
    C, lo = load_pair(row_ptr, CONIC + 2, there)
    m = tl.load(row_ptr + MASK, mask=there, other=0.0)
    lo = tl.where(there, lo, -1.0e4)
    if COLORS:
        red, green = load_pair(row_ptr, COLOR, there)
        blue = tl.load(row_ptr + COLOR + 2, mask=there, other=0.0)
        return rows, there, mx, my, A, B, C, lo, m, (red, green, blue)
    else:
        return rows, there, mx, my, A, B, C, lo, m, (m, m, m)


@triton.jit
def load_halves(records_ptr, ids):
    """HALVES of a chunk's records, twice, as the right side of a product: [16, CHUNK].

    Rows 0 and 8: 1; 1 and 9: log2(o); 2..7 and 10..15: each colour's high and low half.
    """
    k = tl.arange(0, 16)[:, None] % 8
    record_ptr = records_ptr.to(tl.pointer_type(tl.float16)) + ids[None, :] * (2 * RECORD_SIZE)
    return tl.load(record_ptr + 2 * HALVES + k)


@triton.jit
def _alpha_and_rest(c, cx, cy, cxx, cxy, cyy, m, x, y):
    a = ex2((c + x * (cx - x * cxx)) + y * ((cy - x * cxy) - y * cyy))
    seen = step(a, ALPHA_MIN / ALPHA_MAX)
    return a * seen, 1.0 - m * mul_sat(a, seen)


@triton.jit
def chunk_alphas(mx, my, A, B, C, lo, m, centre_x, centre_y, x, y):
    """o exp(-sigma) / ALPHA_MAX, 0 below ALPHA_MIN, and 1 - m alpha, both as quads.

    log2(o exp(-sigma)) is taken as a polynomial about the tile's centre, so that all eight pixels
    of a lane, which differ in y by constants, share its coefficients. In units of ALPHA_MAX alpha
    is clamped at 1, which is free.
    """
    ox = mx - centre_x
    oy = my - centre_y
    xx = A * (0.5 * LOG2E)
    xy = B * LOG2E
    yy = C * (0.5 * LOG2E)
    along = xx * ox
    across = xy * ox + yy * oy
    c = (lo - LOG2_ALPHA_MAX) - along * ox - across * oy
    c, cx, cy, cxx = quads_of_four(c, 2.0 * along + xy * oy, across + yy * oy, xx)
    cxy, cyy, m, _ = quads_of_four(xy, yy, m * ALPHA_MAX, m)
    a0, r0 = _alpha_and_rest(c[0], cx[0], cy[0], cxx[0], cxy[0], cyy[0], m[0], x, y)
    a1, r1 = _alpha_and_rest(c[1], cx[1], cy[1], cxx[1], cxy[1], cyy[1], m[1], x, y)
    a2, r2 = _alpha_and_rest(c[2], cx[2], cy[2], cxx[2], cxy[2], cyy[2], m[2], x, y)
    a3, r3 = _alpha_and_rest(c[3], cx[3], cy[3], cxx[3], cxy[3], cyy[3], m[3], x, y)
    return (a0, a1, a2, a3), (r0, r1, r2, r3)


@triton.jit
def transmittances(r, run, least: tl.constexpr):
    """From 1 - m alpha and the transmittance in front of a chunk: weights m alpha T, zero from
    the stop on; T behind each Gaussian and behind the chunk, going on below the stop; and 1 or 0
    before and from the stop on. `least` is T_MIN in the unit of `run`."""
    before, total = products_before((r[0] * r[1]) * (r[2] * r[3]))
    # weights are exactly 0 where m alpha is
    t0 = mul_rounded(before, run)
    t1 = mul_rounded(t0, r[0])
    t2 = mul_rounded(t1, r[1])
    t3 = mul_rounded(t2, r[2])
    t4 = t3 * r[3]
    v0 = step(t1, least)
    v1 = step(t2, least)
    v2 = step(t3, least)
    v3 = step(t4, least)
    w = ((t0 - t1) * v0, (t1 - t2) * v1, (t2 - t3) * v2, (t3 - t4) * v3)
    return w, (t1, t2, t3, t4), run * total, (v0, v1, v2, v3)


@triton.jit
def feature_rows(gaussian_ids_ptr, ids, there, N, SHARED: tl.constexpr):
    """Where the features of rows lie: there too, or with their Gaussians (in every camera)."""
    if gaussian_ids_ptr is None:
        return ids
    else:
        row = tl.load(gaussian_ids_ptr + ids, mask=there, other=0)
        return (row % N if SHARED else row).to(tl.int64)


@triton.jit
def feature(features_ptr, rows, there, stride, D, k, first):
    mask = there & (first + k < D)
    return tl.load(features_ptr + rows * stride + first + k, mask=mask, other=0.0)
