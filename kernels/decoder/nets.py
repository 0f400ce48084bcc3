"""Device functions of the decoder's nets; kernel.py has the layout."""

import triton
import triton.language as tl

from ..device.intrinsics import INTERPRET, ex2, rcp


@triton.jit
def place_of(rows_ptr, v, V):
    """Row of the anchor in each place, 0 in empty ones, and whether there is one."""
    row = tl.load(rows_ptr + v, mask=v < V, other=-1)
    full = row >= 0
    return tl.where(full, row, 0), full


@triton.jit
def settled(x, PRECISION: tl.constexpr):
    """x as products take it: float16 without infinities, or float32 as it is.

    It is not moved after what is computed from it: else the compiler, to spare a conversion of
    layouts, would compute x anew in the layout of every product, with several threads for a number.
    """
    HALF: tl.constexpr = PRECISION == "fp16"
    if INTERPRET:
        return tl.minimum(tl.maximum(x, -65504.0), 65504.0).to(tl.float16) if HALF else x
    elif HALF:
        return tl.inline_asm_elementwise(
            "cvt.rn.satfinite.f16x2.f32 $0, $2, $1;",
            "=r,r,r",
            [x],
            dtype=tl.float16,
            is_pure=False,
            pack=2,
        )
    else:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [x], tl.float32, is_pure=False, pack=1
        )


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b, of operands that are `settled`."""
    if PRECISION == "fp16":
        return tl.dot(a, b, acc)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def grown(unit, largest):
    """The unit in which `largest` is below 128, if it is above the unit so far; both as bits."""
    return tl.maximum(unit, (largest.to(tl.int32, bitcast=True) & 0x7F800000) - (6 << 23))


@triton.jit
def power(bits):
    """The power of two whose bits these are, and 1 / it."""
    return bits.to(tl.float32, bitcast=True), (0x7F000000 - bits).to(tl.float32, bitcast=True)


@triton.jit
def direction_columns(anchors_ptr, center_ptr, row, full):
    """(d_x, d_y, d_z, 1, 0, ..): direction from the camera, and the bias's factor. [M, 16]"""
    x = tl.load(anchors_ptr + row * 3, mask=full, other=1.0) - tl.load(center_ptr)
    y = tl.load(anchors_ptr + row * 3 + 1, mask=full, other=1.0) - tl.load(center_ptr + 1)
    z = tl.load(anchors_ptr + row * 3 + 2, mask=full, other=1.0) - tl.load(center_ptr + 2)
    inverse = tl.rsqrt(tl.maximum(x * x + y * y + z * z, 1e-24))
    column = tl.arange(0, 16)[None, :]
    aug = tl.where(column == 0, (x * inverse)[:, None], tl.where(column == 3, 1.0, 0.0))
    aug = tl.where(column == 1, (y * inverse)[:, None], aug)
    return tl.where(column == 2, (z * inverse)[:, None], aug)


@triton.jit
def by_axis(ptr, full, c):
    """Of the axis c of each column, one of three numbers of each row. [M, columns]"""
    x = tl.load(ptr, mask=full, other=0.0)[:, None]
    y = tl.load(ptr + 1, mask=full, other=0.0)[:, None]
    z = tl.load(ptr + 2, mask=full, other=0.0)[:, None]
    return tl.where(c == 0, x, tl.where(c == 1, y, z))


@triton.jit
def exponentials(ptr, full, c, SIGN: tl.constexpr):
    """`by_axis` of e^(SIGN s)."""
    x = exponential(SIGN * tl.load(ptr, mask=full, other=0.0))[:, None]
    y = exponential(SIGN * tl.load(ptr + 1, mask=full, other=0.0))[:, None]
    z = exponential(SIGN * tl.load(ptr + 2, mask=full, other=0.0))[:, None]
    return tl.where(c == 0, x, tl.where(c == 1, y, z))


@triton.jit
def exponential(x):
    """e^x; relative error 2^-21 for |x| < 1."""
    return ex2(1.4426950408889634 * x)


@triton.jit
def sigmoid(x):
    return rcp(1.0 + ex2(-1.4426950408889634 * x))


@triton.jit
def split(x):
    """What TF32 keeps of x, and the rest."""
    high = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def first(net_ptr, H: tl.constexpr, WIDE: tl.constexpr):
    """W1 of the features, with rows of zeros from H on. [WIDE out, H in]"""
    o, i = tl.arange(0, WIDE)[:, None], tl.arange(0, H)[None, :]
    return tl.load(net_ptr + o * (H + 3) + i, mask=o < H, other=0.0)


@triton.jit
def first_of_columns(net_ptr, SEES: tl.constexpr, H: tl.constexpr):
    """W1 and b1 of `direction_columns`. [H out, 16]"""
    o, a = tl.arange(0, H)[:, None], tl.arange(0, 16)[None, :]
    place = tl.where(a < 3, o * (H + 3) + H + a, H * (H + 3) + o)
    return tl.load(net_ptr + place, mask=(a < 4) if SEES else (a == 3), other=0.0)


@triton.jit
def first_layer(net_ptr, SEES: tl.constexpr, H: tl.constexpr):
    """W1 of the features, [H in, H out], and of `direction_columns`. [16 in, H out]"""
    return tl.trans(first(net_ptr, H, H)), tl.trans(first_of_columns(net_ptr, SEES, H))


@triton.jit
def hidden_layer(
    features, features_low, aug, aug_low, w, u, net_ptr, SEES: tl.constexpr, H: tl.constexpr
):
    """The hidden layer after its relu, of operands from `split` and `first_layer`. [M, H]

    To float32's rounding always: one that is 0 in one pass and not in another has another gradient.
    """
    if H > 32:  # read again, as shared memory would not hold them all
        w, u = first_layer(net_ptr, SEES, H)
    w, w_low = split(w)
    u, u_low = split(u)
    x = tl.dot(aug_low, u, input_precision="tf32")
    x = tl.dot(aug, u_low, x, input_precision="tf32")
    x = tl.dot(features_low, w, x, input_precision="tf32")
    x = tl.dot(features, w_low, x, input_precision="tf32")
    x = tl.dot(aug, u, x, input_precision="tf32")
    x = tl.dot(features, w, x, input_precision="tf32")
    return tl.maximum(x, 0.0)


@triton.jit
def second(net_ptr, n, live, H: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """W2 of rows n, with columns of zeros from H on. [columns, WIDE]"""
    h = tl.arange(0, WIDE)[None, :]
    ptr = net_ptr + H * (H + 4) + n[:, None] * H + h
    return settled(tl.load(ptr, mask=live[:, None] & (h < H), other=0.0), PRECISION)


@triton.jit
def second_bias(net_ptr, n, live, N: tl.constexpr, H: tl.constexpr, PRECISION: tl.constexpr):
    """b2 of rows n of N, as what `direction_columns` are multiplied by. [columns, 16]"""
    a = tl.arange(0, 16)[None, :]
    ptr = net_ptr + H * (H + 4) + N * H + n[:, None] + 0 * a
    return settled(tl.load(ptr, mask=live[:, None] & (a == 3), other=0.0), PRECISION)


@triton.jit
def output(hidden, aug, w, b, PRECISION: tl.constexpr):
    """Columns of the output before their activation. [M, columns]"""
    x = tl.zeros([hidden.shape[0], w.shape[0]], tl.float32)
    x = product(aug, tl.trans(b), x, PRECISION)
    return product(hidden, tl.trans(w), x, PRECISION)


@triton.jit
def hidden_of(kept_ptr, v, V, H: tl.constexpr, WIDE: tl.constexpr):
    """A hidden layer that the forward kept, with columns of zeros from H on. [M, WIDE]"""
    h = tl.arange(0, WIDE)[None, :]
    at = kept_ptr + v[:, None] * (3 * H + 8) + h
    return tl.load(at, mask=(v < V)[:, None] & (h < H), other=0.0)


@triton.jit
def inputs_of(features_ptr, kept_ptr, row, full, v, V, H: tl.constexpr, PRECISION: tl.constexpr):
    """Features, [M, H], and `direction_columns`. [M, 16]"""
    at = features_ptr + row[:, None] * H + tl.arange(0, H)[None, :]
    features = settled(tl.load(at, mask=full[:, None], other=0.0), PRECISION)
    a = tl.arange(0, 16)[None, :]
    at = kept_ptr + v[:, None] * (3 * H + 8) + 3 * H + a
    return features, tl.load(at, mask=(v < V)[:, None] & (a < 8), other=0.0)


@triton.jit
def side_by_side(x, y, M: tl.constexpr, N: tl.constexpr):
    """x in even columns, y in odd ones. [M, 2 N]"""
    return tl.reshape(tl.join(x, y), [M, 2 * N])


@triton.jit
def store_first(sums_ptr, v_w, v_aug, rows, live, SEES: tl.constexpr, H: tl.constexpr):
    """A program's sums for W1 and b1 of hidden numbers `rows`. [columns, H], [columns, 16]"""
    o, i, a = rows[:, None], tl.arange(0, H)[None, :], tl.arange(0, 16)[None, :]
    tl.store(sums_ptr + o * (H + 3) + i, v_w, mask=live[:, None])
    if not SEES:
        v_aug = tl.where(a == 3, v_aug, 0.0)
    place = tl.where(a < 3, o * (H + 3) + H + a, H * (H + 3) + o)
    tl.store(sums_ptr + place, v_aug, mask=live[:, None] & (a < 4))


@triton.jit
def store_second(sums_ptr, v_w, v_b, rows, live, N: tl.constexpr, H: tl.constexpr):
    """A program's sums for W2 and b2 of rows of N. [columns, H], [columns, 16]"""
    h, a = tl.arange(0, v_w.shape[1])[None, :], tl.arange(0, 16)[None, :]
    ptr = sums_ptr + H * (H + 4)
    tl.store(ptr + rows[:, None] * H + h, v_w, mask=live[:, None] & (h < H))
    tl.store(ptr + N * H + rows[:, None] + 0 * a, v_b, mask=live[:, None] & (a == 3))
