r"""Device functions on the support of a projected Gaussian, shared by projection and binning.

The support is the ellipse where alpha >= 1/255:

    A dx^2 + 2 B dx dy + C dy^2 <= t2 = 2 ln(255 o),    d = pixel - mean

Over a band of rows dy in [a, b] its right edge is the largest value of the concave function

    x(dy) = (-B dy + sqrt(A t2 - (A C - B^2) dy^2)) / A

whose maximum sits at dy* = -B sqrt(t2 / (C (A C - B^2))); the left edge mirrors it.
So the tiles of one row are a span, found without testing tiles one by one (the idea of AccuTile,
Speedy-Splat, section 4.2).

What projection counts, binning lists: both must round alike. So products that are added to are
written as the fused multiply-adds that a compiler may or may not make of them.
"""

import triton
import triton.language as tl

from .. import constants
from .record import CONIC, LOG2_OPACITY, MEAN

TILE = tl.constexpr(constants.TILE_SIZE)
SIDE_BITS = tl.constexpr(2)  # of the side of a bin (binning/coarse.py) in tiles
SIDE = tl.constexpr(4)
# Tile borders are moved out by this many pixels: float32 rounding must never lose a pixel.
MARGIN = tl.constexpr(1e-2)
LOG2_255 = tl.constexpr(7.994353436858858)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def cutoff(lo):
    """t2 = 2 ln(255 o) of a Gaussian with log2(o) = lo; not below 0."""
    return tl.maximum((lo + LOG2_255) * (2.0 * LN2), 0.0)


@triton.jit
def load_ellipse(record_ptr, mask):
    """mx, my, A, B, C and t2 of records; a point without extent where masked off."""
    mx = tl.load(record_ptr + MEAN, mask=mask, other=0.0)
    my = tl.load(record_ptr + MEAN + 1, mask=mask, other=0.0)
    A = tl.load(record_ptr + CONIC, mask=mask, other=1.0)
    B = tl.load(record_ptr + CONIC + 1, mask=mask, other=0.0)
    C = tl.load(record_ptr + CONIC + 2, mask=mask, other=1.0)
    t2 = cutoff(tl.load(record_ptr + LOG2_OPACITY, mask=mask, other=0.0))
    return mx, my, A, B, C, t2


@triton.jit
def _det(A, B, C):
    return tl.maximum(tl.fma(A, C, -(B * B)), 1e-20)


@triton.jit
def half_height(A, B, C, t2):
    """Largest |dy| of the ellipse."""
    return tl.sqrt(t2 * A / _det(A, B, C))


@triton.jit
def row_range(my, ey, tiles_y):
    """First and last tile row (inclusive) whose pixel centres lie within my +- ey."""
    r0 = tl.ceil((my - ey - (TILE - 0.5) - MARGIN) / TILE)
    r1 = tl.floor((my + ey - 0.5 + MARGIN) / TILE)
    r0 = tl.minimum(tl.maximum(r0, 0.0), 1.0e6).to(tl.int32)
    r1 = tl.minimum(tl.maximum(r1, -1.0), tiles_y - 1.0).to(tl.int32)
    return r0, r1


@triton.jit
def row_span(row, mx, my, A, B, C, t2, tiles_x):
    """First and last tile (inclusive) of a tile row that the ellipse touches, or last < first."""
    det = _det(A, B, C)
    y_max = half_height(A, B, C, t2)
    a = (row * TILE).to(tl.float32) + 0.5 - MARGIN - my
    b = a + (TILE - 1.0 + 2.0 * MARGIN)
    empty = (a > y_max) | (b < -y_max)
    a = tl.minimum(tl.maximum(a, -y_max), y_max)
    b = tl.minimum(tl.maximum(b, -y_max), y_max)
    y_star = -B * tl.sqrt(t2 / tl.maximum(C * det, 1e-20))
    y_right = tl.minimum(tl.maximum(y_star, a), b)
    y_left = tl.minimum(tl.maximum(-y_star, a), b)
    beside_right = tl.sqrt(tl.maximum(tl.fma(-(det * y_right), y_right, A * t2), 0.0))
    beside_left = tl.sqrt(tl.maximum(tl.fma(-(det * y_left), y_left, A * t2), 0.0))
    right = tl.fma(-B, y_right, beside_right) / A
    left = tl.fma(-B, y_left, -beside_left) / A
    x0 = tl.ceil((mx + left - (TILE - 0.5) - MARGIN) / TILE)
    x1 = tl.floor((mx + right - 0.5 + MARGIN) / TILE)
    x0 = tl.minimum(tl.maximum(x0, 0.0), 1.0e6).to(tl.int32)
    x1 = tl.minimum(tl.maximum(x1, -1.0), tiles_x - 1.0).to(tl.int32)
    return x0, tl.where(empty, x0 - 1, x1)


@triton.jit
def no_bins(like):
    """First and last column of bins of a row of them in which nothing is touched yet."""
    return tl.zeros_like(like) + 1000000, tl.zeros_like(like) - 1


@triton.jit
def with_span(low, high, x0, x1):
    """First and last column of bins after one more row of tiles, touched from x0 to x1."""
    touched = x0 <= x1
    low = tl.where(touched, tl.minimum(low, x0 >> SIDE_BITS), low)
    high = tl.where(touched, tl.maximum(high, x1 >> SIDE_BITS), high)
    return low, high


@triton.jit
def count_tiles(visible, mx, my, A, B, C, t2, tiles_x, tiles_y):
    """Tiles that each ellipse touches, bins as binning/coarse.py lists them, and how many of these
    lie in each of the first four rows of bins, at most 255 in a byte."""
    row, last = row_range(my, half_height(A, B, C, t2), tiles_y)
    last = tl.where(visible, last, -1)
    row = tl.where(visible, row, 0)
    n = tl.zeros_like(row)
    bins = tl.zeros_like(row)
    widths = tl.zeros_like(row)
    shift = tl.zeros_like(row)
    low, high = no_bins(row)
    for _ in range(tl.max(last - row, 0) + 1):
        x0, x1 = row_span(row, mx, my, A, B, C, t2, tiles_x)
        x1 = tl.where(row <= last, x1, x0 - 1)
        n += tl.maximum(x1 - x0 + 1, 0)
        low, high = with_span(low, high, x0, x1)
        ends = (row % SIDE == SIDE - 1) | (row == last)
        width = tl.where(ends, tl.maximum(high - low + 1, 0), 0)
        bins += width
        widths = widths | tl.where(shift < 32, tl.minimum(width, 255) << (shift & 31), 0)
        shift += tl.where(ends, 8, 0)
        none_low, none_high = no_bins(row)
        low = tl.where(ends, none_low, low)
        high = tl.where(ends, none_high, high)
        row += 1
    return n, bins, widths
