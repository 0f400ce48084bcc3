"""Pixels of two images as the photometric kernels read them, and the part of a program.

Images are [H 3W] as they are in memory, channels interleaved. A target with a mask is [H W] int32,
a pixel each: three bytes of colour, and the sign, which says whether the pixel counts. Of it a
value is loaded as its byte and that sign. Where a pixel does not count, the rendering stands in for
the target.
"""

import triton
import triton.language as tl

from .blur import SIDE

RATIO = tl.constexpr(256.0 / 255.0)
# Colours beyond are cut for S alone: then (4 LARGEST)^2 and the maps fit fp16.
LARGEST = tl.constexpr(30.0)


@triton.jit
def clamp(x, low, high):
    """NaN stays NaN."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def load_target(target_ptr, x, row, column, at, inside, W, MASKED: tl.constexpr):
    """Values in columns from x on, as they are stored; `at` are their places from there."""
    if MASKED:
        pixel = (x + column) // 3
        word = tl.load(target_ptr + row * W + pixel, mask=inside, other=0)
        byte = (word >> (8 * (x + column - 3 * pixel))) & 255
        return tl.where(word < 0, byte | -256, byte)
    else:
        return tl.load(target_ptr + x + at, mask=inside, other=0)


@triton.jit
def load_counts(target_ptr, x, row, column, inside, W):
    """Whether values belong to pixels that count."""
    return tl.load(target_ptr + row * W + (x + column) // 3, mask=inside, other=0) < 0


@triton.jit
def to_truth(b, a, BYTES: tl.constexpr, MASKED: tl.constexpr):
    """Ground truth as floats; of bytes b / 256, as conversions from integers are slow."""
    if MASKED:
        byte = ((b & 255) | 0x47000000).to(tl.float32, bitcast=True) - 32768.0
        return tl.where(b < 0, byte, clamp(a, -LARGEST, LARGEST) / RATIO)
    elif BYTES:
        # 2^15 + b / 256 as bits
        return (b.to(tl.int32) | 0x47000000).to(tl.float32, bitcast=True) - 32768.0
    else:
        return b


@triton.jit
def centred(a, b, a_middle, b_middle, BYTES: tl.constexpr):
    """p and q, the middles taken off."""
    a = clamp(a, -LARGEST, LARGEST) - a_middle
    b = b * RATIO - b_middle if BYTES else clamp(b, -LARGEST, LARGEST) - b_middle
    return a + b, a - b


@triton.jit
def part_of(program, bands, blocks, P):
    """A program's first row, its first block of columns, and the one after its last."""
    first = program // bands * blocks
    return program % bands * SIDE, first, tl.minimum(first + blocks, (P + SIDE - 1) // SIDE)


@triton.jit
def pitch_of(W, ALIGN: tl.constexpr):
    """3 W, in a form that tells the compiler what divides it."""
    return 3 * W // ALIGN * ALIGN
