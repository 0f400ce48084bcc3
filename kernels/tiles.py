"""Device functions that every walk through the tile lists shares.

A tile is 8x8 pixels, a chunk 16 consecutive entries of its list, a block [64 pixels, 16 Gaussians].
"""

# Triton types its device functions as returning nothing.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from . import constants
from .device import ex2, rcp

TILE = tl.constexpr(constants.TILE_SIZE)
PIXELS = tl.constexpr(constants.TILE_SIZE * constants.TILE_SIZE)
CHUNK = tl.constexpr(16)
ALPHA_MIN = tl.constexpr(constants.ALPHA_MIN)
ALPHA_MAX = tl.constexpr(constants.ALPHA_MAX)
T_MIN = tl.constexpr(constants.TRANSMITTANCE_MIN)
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
def load_chunk(records_ptr, flatten_ids_ptr, i, hi):
    """Ids and geometry of the next CHUNK entries; entries past the end have no opacity."""
    g = i + tl.arange(0, CHUNK)
    there = g < hi
    ids = tl.load(flatten_ids_ptr + g, mask=there, other=0).to(tl.int64)
    row = records_ptr + ids * 16
    mx = tl.load(row + 0, mask=there, other=0.0)
    my = tl.load(row + 1, mask=there, other=0.0)
    A = tl.load(row + 2, mask=there, other=0.0)
    B = tl.load(row + 3, mask=there, other=0.0)
    C = tl.load(row + 4, mask=there, other=0.0)
    lo = tl.load(row + 5, mask=there, other=0.0)
    m = tl.load(row + 6, mask=there, other=0.0)
    return ids, there, mx, my, A, B, C, lo, m


@triton.jit
def load_halves(records_ptr, ids, there):
    """The fp16 columns of a chunk's records, twice, as the right side of a product: [16, CHUNK].

    Rows 0 and 8: 1; 1 and 9: log2(o); 2..7 and 10..15: each colour's high and low half.
    """
    k = tl.arange(0, 16)[:, None] % 8
    halves = records_ptr.to(tl.pointer_type(tl.float16)) + ids[None, :] * 32 + 24
    return tl.load(halves + k, mask=there[None, :], other=0.0)


@triton.jit
def raw_alpha(x, y, mx, my, A, B, C, lo, there, halves):
    """o exp(-sigma) of every (pixel, Gaussian) pair, [PIXELS, CHUNK].

    The rounded log2(o) comes in through a product: it costs little and lays the whole block out
    as a matrix accumulator, in which scans along the chunk, sums over pixels and the operands of
    later products stay within a few lanes.
    """
    k = tl.arange(0, 16)[None, :] + tl.zeros([PIXELS, 1], tl.int32)
    rounded = tl.dot(tl.where(k == 1, 1.0, 0.0).to(tl.float16), halves)
    rest = tl.where(there, lo - lo.to(tl.float16).to(tl.float32), -1.0e4)
    dx = x[:, None] - mx[None, :]
    dy = y[:, None] - my[None, :]
    along = rounded + (rest[None, :] - (A * (0.5 * LOG2E))[None, :] * dx * dx)
    across = (B * LOG2E)[None, :] * dx
    return ex2(along - dy * (across + (C * (0.5 * LOG2E))[None, :] * dy))


@triton.jit
def chunk_weights(records_ptr, flatten_ids_ptr, i, hi, x, y, run):
    """Rows of the next CHUNK entries, which of them exist, their weights m alpha T in every pixel
    [PIXELS, CHUNK], and the transmittance `run` [PIXELS] behind them, going on below the stop."""
    ids, there, mx, my, A, B, C, lo, m = load_chunk(records_ptr, flatten_ids_ptr, i, hi)
    halves = load_halves(records_ptr, ids, there)
    raw = raw_alpha(x, y, mx, my, A, B, C, lo, there, halves)
    e = tl.where(raw >= ALPHA_MIN, tl.minimum(raw, ALPHA_MAX), 0.0) * m[None, :]
    rest = 1.0 - e
    after = run[:, None] * tl.cumprod(rest, 1)
    run = tl.min(after, 1)
    w = tl.where(after >= T_MIN, after, 0.0) * (e * rcp(rest))
    return ids, there, w, run


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
