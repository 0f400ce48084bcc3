"""Device functions that move rows of up to 16 floats between memory and one lane per row.

A lane that reads its row float by float makes a warp touch 32 rows with every instruction. These
functions touch memory as a [rows, 16] block, which is coalesced, and exchange it within the
program into one block of the rows' first floats, one of their second floats and so on. Rows that
are aligned to 16 bytes can as well be read by fours, without an exchange.
"""

import triton
import triton.language as tl


@triton.jit
def join4(a, b, c, d):
    """Four blocks [R] as the columns of one [R, 4]."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [a.shape[0], 4])


@triton.jit
def join8(a, b, c, d, e, f, g, h):
    """Eight blocks [R] as the columns of one [R, 8]."""
    return tl.reshape(tl.join(join4(a, c, e, g), join4(b, d, f, h)), [a.shape[0], 8])


@triton.jit
def join16(v):
    """A tuple of 16 blocks [R] as the columns of one [R, 16]."""
    even = join8(v[0], v[2], v[4], v[6], v[8], v[10], v[12], v[14])
    odd = join8(v[1], v[3], v[5], v[7], v[9], v[11], v[13], v[15])
    return tl.reshape(tl.join(even, odd), [v[0].shape[0], 16])


@triton.jit
def split4(m):
    """The four columns of a [R, 4] block."""
    even, odd = tl.split(tl.reshape(m, [m.shape[0], 2, 2]))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def split8(m):
    """The eight columns of a [R, 8] block."""
    even, odd = tl.split(tl.reshape(m, [m.shape[0], 4, 2]))
    a, c, e, g = split4(even)
    b, d, f, h = split4(odd)
    return a, b, c, d, e, f, g, h


@triton.jit
def split16(m):
    """The 16 columns of a [R, 16] block."""
    even, odd = tl.split(tl.reshape(m, [m.shape[0], 8, 2]))
    a0, a1, a2, a3, a4, a5, a6, a7 = split8(even)
    b0, b1, b2, b3, b4, b5, b6, b7 = split8(odd)
    return a0, b0, a1, b1, a2, b2, a3, b3, a4, b4, a5, b5, a6, b6, a7, b7


@triton.jit
def load_tile16(row_ptr, mask, COUNT: tl.constexpr):
    """The first COUNT floats at each pointer [R] as [R, 16], zeros beyond and where masked off."""
    j = tl.arange(0, 16)[None, :]
    if COUNT >= 16:
        return tl.load(row_ptr[:, None] + j, mask=mask[:, None], other=0.0)
    else:
        return tl.load(row_ptr[:, None] + j, mask=mask[:, None] & (j < COUNT), other=0.0)


@triton.jit
def load4x3(row_ptr, mask):
    """The first 12 floats at each pointer [R] as three blocks [R, 4]; rows of whole 16 bytes."""
    at, mask = row_ptr[:, None] + tl.arange(0, 4)[None, :], mask[:, None]
    a = tl.load(at, mask=mask, other=0.0)
    b = tl.load(at + 4, mask=mask, other=0.0)
    c = tl.load(at + 8, mask=mask, other=0.0)
    return a, b, c


@triton.jit
def split4x3(m):
    """The twelve columns of three blocks [R, 4]."""
    a0, a1, a2, a3 = split4(m[0])
    b0, b1, b2, b3 = split4(m[1])
    c0, c1, c2, c3 = split4(m[2])
    return a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3


@triton.jit
def pack_halves(low, high):
    """Two values rounded to fp16 as the low and high 16 bits of one float32."""
    low = low.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.uint32)
    high = high.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.uint32)
    return (low | (high << 16)).to(tl.float32, bitcast=True)


@triton.jit
def high_and_low_half(x):
    """x as fp16 and what that leaves, packed; finite also beyond the range of fp16."""
    x = tl.minimum(tl.maximum(x, -65504.0), 65504.0)
    return pack_halves(x.to(tl.float16).to(tl.float32), x - x.to(tl.float16).to(tl.float32))
