r"""Blurs of interleaved images by one warp, on tensor cores and without exchange between lanes.

An image is taken as the matrix [H, 3 W] that it is in memory, channels interleaved: down the rows
that changes nothing, and across them the window has a value every third column. A warp owns 16
rows, and walks right in blocks of 16 columns. Of each block it blurs down (16 own rows and 16
around them, of which 10 count) and adds the result, times a matrix each, to three blocks of
output, of which the left one is then complete. All products are 16x16x16: values and weights are
split in two halves of fp16, and the three larger of four products kept, exact to 2^-21 beside the
largest value.

Which row or column stands where in a product is free, as long as the matrices of weights agree,
and it is chosen so that lanes load, multiply, multiply again and store in place. With t = lane % 4
and g = lane // 4, 16 rows are read as 2 t + {0, 1, 8, 9} and 16 columns as 2 g + {0, 1}; results
are rows 2 g + {0, 1} and columns 4 t + {0, 1, 2, 3}. Loads and stores are tensors of the axes
[register, g, t, register], the last contiguous in memory.

Maps are stored for the next blur as right factors are read: [pair of rows, column, high or low
half, row of the pair] in float16. Images of widths that 4 does not divide have their values loaded
and stored in smaller vectors, by the same lanes.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.photometric import SIGMA, WINDOW

# Axes that are alike in memory get lanes from the first on in Triton 3.6, from the last on in later
# ones; in another order values pass through shuffles, and are right all the same.
FIRST = tl.constexpr(tuple(int(x) for x in triton.__version__.split(".")[:2]) < (3, 7))
SIDE = tl.constexpr(16)  # rows and columns of a product


@triton.jit
def axis(x, AXIS: tl.constexpr):
    """x along one of the axes [register, g, t, register] of a load."""
    if AXIS == 3:
        return x[None, None, None, :]
    elif AXIS == 1:
        return x[None, :, None, None]
    elif (AXIS == 0) == FIRST:
        return x[None, None, :, None]
    else:
        return x[:, None, None, None]


@triton.jit
def _mirror(x):
    """From those axes to their order in a load, and back."""
    if FIRST:
        return tl.permute(x, [2, 1, 0, 3])
    else:
        return x


@triton.jit
def _operand(x, VECTOR: tl.constexpr):
    """Loaded values [8 / VECTOR, g, t, VECTOR] as the right factor [row, column] of a product."""
    if VECTOR == 2:
        x = tl.permute(tl.reshape(_mirror(x), [2, 2, 8, 4, 2]), [0, 3, 1, 4, 2])
    else:
        x = tl.permute(tl.reshape(_mirror(x), [2, 2, 2, 8, 4]), [1, 4, 2, 0, 3])
    return tl.reshape(x, [SIDE, SIDE])


@triton.jit
def place_of_load(VECTOR: tl.constexpr):
    """Row and column of what is loaded. [8 / VECTOR, g, t, VECTOR]"""
    if VECTOR == 2:
        i = axis(tl.arange(0, 4), 0)
        column = axis(tl.arange(0, 2), 3)
    else:
        # columns last, or the compiler sees that they are contiguous and gives them lanes
        i = axis(tl.arange(0, 8) % 4, 0)
        column = axis(tl.arange(0, 8) // 4, 0)
    row = i % 2 + 8 * (i // 2) + axis(2 * tl.arange(0, 4), 2)
    return row, column + axis(2 * tl.arange(0, 8), 1)


@triton.jit
def from_product(x, VECTOR: tl.constexpr):
    """A product as [8 / VECTOR, g, t, VECTOR] for a store."""
    x = tl.reshape(x, [2, 8, 2, 4, 2])
    if VECTOR == 4:
        x = tl.permute(x, [0, 1, 3, 2, 4])
    elif VECTOR == 2:
        x = tl.permute(x, [0, 2, 1, 3, 4])
    else:
        x = tl.permute(x, [2, 4, 0, 1, 3])
    return _mirror(tl.reshape(x, [8 // VECTOR, 8, 4, VECTOR]))


@triton.jit
def place_of_product(VECTOR: tl.constexpr):
    """Row and column of what from_product gives."""
    i = tl.arange(0, 8 // VECTOR)
    if VECTOR == 1:
        row, column = axis(i % 2, 0), axis(i // 2, 0)
    else:
        row = axis(i * VECTOR // 4, 0)
        column = axis(i * VECTOR % 4, 0) + axis(tl.arange(0, VECTOR), 3)
    return row + axis(2 * tl.arange(0, 8), 1), column + axis(4 * tl.arange(0, 4), 2)


@triton.jit
def to_product(x):
    """The inverse of from_product with VECTOR 4."""
    x = tl.permute(tl.reshape(_mirror(x), [2, 8, 4, 2, 2]), [0, 1, 3, 2, 4])
    return tl.reshape(x, [SIDE, SIDE])


@triton.jit
def per_lane(x):
    """Sums of what each lane holds. [8, 4]"""
    return tl.sum(tl.sum(_mirror(x), axis=3), axis=0)


@triton.jit
def _split(x):
    """High and low half; their sum is x to 2^-22."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _times(high, low, matrix_high, matrix_low):
    return tl.dot(high, matrix_high, tl.dot(high, matrix_low, tl.dot(low, matrix_high)))


@triton.jit
def _add_times(x, high, low, matrix_high, matrix_low):
    return tl.dot(high, matrix_high, tl.dot(high, matrix_low, tl.dot(low, matrix_high, x)))


@triton.jit
def _weights(weights_ptr, INDEX: tl.constexpr):
    i = tl.arange(0, SIDE)
    at = weights_ptr + INDEX * 2 * SIDE * SIDE + i[:, None] * SIDE + i[None, :]
    return tl.load(at), tl.load(at + SIDE * SIDE)


@triton.jit
def all_weights(weights_ptr):
    return (
        _weights(weights_ptr, 0),
        _weights(weights_ptr, 1),
        _weights(weights_ptr, 2),
        _weights(weights_ptr, 3),
        _weights(weights_ptr, 4),
    )


@triton.jit
def _down(own_high, own_low, high, low, own_weights, weights):
    """Halves of a block blurred down, from those of its own rows and of the rows around."""
    x = _times(own_weights[0], own_weights[1], own_high, own_low)
    return _split(_add_times(x, weights[0], weights[1], high, low))


@triton.jit
def _right(high, low, left, here, w):
    """A block into its outputs: what is complete now, the next, and the one after."""
    complete = _add_times(left, high, low, w[2][0], w[2][1])
    here = _add_times(here, high, low, w[3][0], w[3][1])
    return complete, here, _times(high, low, w[4][0], w[4][1])


@triton.jit
def blur(own, around, left, here, w, VECTOR: tl.constexpr):
    """Blur a block, given its own rows and those around.

    `left` and `here` are what the blocks before gave to the one before and to this one. Returns the
    one before, complete, and what is to be `left` and `here` with the next block.
    """
    own_high, own_low = _split(_operand(own, VECTOR))
    high, low = _split(_operand(around, VECTOR))
    high, low = _down(own_high, own_low, high, low, w[0], w[1])
    return _right(high, low, left, here, w)


@triton.jit
def map_pitch(W):
    """Columns of a stored map: 3 W and some of zeros, so that lanes move 16 bytes."""
    return (3 * W + 3) // 4 * 4


@triton.jit
def store_map(out_ptr, x, height, width, pitch):
    """A product to where its first pair of rows and column are; height and width may be less."""
    high, low = _split(x)
    x = tl.reshape(tl.join(high, low), [2, 8, 2, 4, 2, 2])
    # [column / 2, pair, t, (column, half, row)]
    x = tl.reshape(tl.permute(x, [2, 1, 3, 4, 5, 0]), [2, 8, 4, 8])
    pair, last = axis(tl.arange(0, 8), 1), axis(tl.arange(0, 8), 3)
    column = axis(2 * tl.arange(0, 2), 0) + axis(4 * tl.arange(0, 4), 2)
    at = pair * (pitch * 4) + column * 4 + last
    tl.store(out_ptr + at, _mirror(x), mask=(2 * pair < height) & (column < width))


@triton.jit
def place_of_map():
    """Pair of rows, even column, and 16 bytes of two columns, as blur_map loads."""
    pair = axis(4 * tl.arange(0, 2), 0) + axis(tl.arange(0, 4), 2)
    return pair, axis(2 * tl.arange(0, 8), 1), axis(tl.arange(0, 8), 3)


@triton.jit
def _load_map(maps_ptr, at, mask):
    """Halves of a stored map, as right factors."""
    x = tl.reshape(_mirror(tl.load(maps_ptr + at, mask=mask, other=0.0)), [2, 8, 4, 2, 2, 2])
    return tl.split(tl.reshape(tl.permute(x, [0, 2, 5, 3, 1, 4]), [SIDE, SIDE, 2]))


@triton.jit
def blur_map(maps_ptr, own_at, own_mask, at, mask, left, here, w):
    """`blur` of a stored map."""
    own_high, own_low = _load_map(maps_ptr, own_at, own_mask)
    high, low = _load_map(maps_ptr, at, mask)
    high, low = _down(own_high, own_low, high, low, w[0], w[1])
    return _right(high, low, left, here, w)


@functools.cache
def weights_on(device: torch.device) -> Tensor:  # [5, 2, 16, 16] float16, halves
    """Matrices that blur: down own rows and those around, from the right, the same, the left."""
    i = torch.arange(16)
    spread = 2 * (i % 8) + i // 8  # rows of results, columns of loads
    out = 4 * (i % 8 // 2) + i % 2 + 2 * (i // 8)  # columns of results
    distances = [i - spread[:, None], i - 8 + 16 * (i // 8) - spread[:, None]]
    for offset in (16, 0, -16):
        d = offset + spread[:, None] - out
        distances.append(torch.where(d % 3 == 0, d // 3, WINDOW))
    d = torch.stack(distances).double()
    weights = torch.exp(-d * d / (2.0 * SIGMA**2)) * (d.abs() <= WINDOW // 2)
    j = torch.arange(WINDOW) - WINDOW // 2
    weights /= sum(math.exp(-k * k / (2.0 * SIGMA**2)) for k in j.tolist())
    high = weights.half()
    return torch.stack([high, (weights - high.double()).half()], 1).contiguous().to(device)
