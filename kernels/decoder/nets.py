"""Device functions of the decoder's nets, forward and backward; kernel.py has the layout."""

import triton
import triton.language as tl


@triton.jit
def place_of(rows_ptr, v, V):
    """Row of the anchor in each place, 0 in empty ones, and whether there is one."""
    row = tl.load(rows_ptr + v, mask=v < V, other=-1)
    full = row >= 0
    return tl.where(full, row, 0), full


@triton.jit
def direction_columns(anchors_ptr, center_ptr, row, full, SEES: tl.constexpr, BLOCK: tl.constexpr):
    """(d_x, d_y, d_z, 1, 0, ..): the direction, or zeros where the net is blind, and the bias."""
    column = tl.arange(0, 16)[None, :]
    aug = tl.where(full[:, None] & (column == 3), 1.0, 0.0)
    if SEES:
        x = tl.load(anchors_ptr + row * 3, mask=full, other=1.0) - tl.load(center_ptr)
        y = tl.load(anchors_ptr + row * 3 + 1, mask=full, other=1.0) - tl.load(center_ptr + 1)
        z = tl.load(anchors_ptr + row * 3 + 2, mask=full, other=1.0) - tl.load(center_ptr + 2)
        inverse = 1.0 / tl.maximum(tl.sqrt(x * x + y * y + z * z), 1e-12)
        d = tl.where(column == 0, (x * inverse)[:, None], 0.0)
        d = tl.where(column == 1, (y * inverse)[:, None], d)
        d = tl.where(column == 2, (z * inverse)[:, None], d)
        aug = tl.where(full[:, None], aug + d, 0.0)
    return aug


@triton.jit
def _first(weights_ptr, H: tl.constexpr):
    """W1 of the features [H in, H out]."""
    i, o = tl.arange(0, H)[:, None], tl.arange(0, H)[None, :]
    return tl.load(weights_ptr + o * (H + 3) + i)


@triton.jit
def hidden_layer(features, aug, weights_ptr, H: tl.constexpr):
    """The hidden layer before its relu. [BLOCK, H]

    To float32's rounding always: one that is 0 in one pass and not in another has another gradient.
    """
    a, o = tl.arange(0, 16)[:, None], tl.arange(0, H)[None, :]
    place = tl.where(a < 3, o * (H + 3) + H + a, H * (H + 3) + o)
    w = tl.load(weights_ptr + place, mask=a < 4, other=0.0)
    x = tl.dot(aug, w, input_precision="tf32x3")
    return tl.dot(features, _first(weights_ptr, H), x, input_precision="tf32x3")


@triton.jit
def _second(weights_ptr, c, C: tl.constexpr, H: tl.constexpr, K: tl.constexpr):
    """W2 of number c of C of every offset. [H, 16]"""
    h, j = tl.arange(0, H)[:, None], tl.arange(0, 16)[None, :]
    ptr = weights_ptr + H * (H + 3) + H + (j * C + c) * H + h
    return tl.load(ptr, mask=(j < K) & (h < H), other=0.0)


@triton.jit
def output(
    hidden,
    weights_ptr,
    c,
    C: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Number c of C of every offset, before its activation. [BLOCK, 16]"""
    j = tl.arange(0, 16)
    ptr = weights_ptr + H * (H + 3) + H + C * K * H + j * C + c
    bias = tl.load(ptr, mask=j < K, other=0.0)
    w = _second(weights_ptr, c, C, H, K)
    return tl.dot(hidden, w, input_precision=PRECISION) + bias[None, :]


@triton.jit
def _add(ptr, x, mask):
    """Add to a program's own sums. The same threads load and store, so nothing is in between."""
    tl.store(ptr, tl.load(ptr, mask=mask, other=0.0) + x, mask=mask)


@triton.jit
def output_vjp(
    v_out,
    v_hidden,
    hidden,
    weights_ptr,
    sums_ptr,
    c,
    C: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to the sums of W2 and b2; the gradient of the hidden layer with this number's part."""
    w = _second(weights_ptr, c, C, H, K)
    v_hidden = tl.dot(v_out, tl.trans(w), v_hidden, input_precision=PRECISION)
    h, j = tl.arange(0, H)[:, None], tl.arange(0, 16)[None, :]
    second = H * (H + 3) + H
    v_w = tl.dot(tl.trans(hidden), v_out, input_precision=PRECISION)
    _add(sums_ptr + second + (j * C + c) * H + h, v_w, (j < K) & (h < H))
    j = tl.arange(0, 16)
    _add(sums_ptr + second + C * K * H + j * C + c, tl.sum(v_out, axis=0), j < K)
    return v_hidden


@triton.jit
def hidden_vjp(
    v_pre,
    v_features,
    features,
    aug,
    weights_ptr,
    sums_ptr,
    H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to the sums of W1 and b1; the gradient of the features with this net's part."""
    w = tl.trans(_first(weights_ptr, H))
    v_features = tl.dot(v_pre, w, v_features, input_precision=PRECISION)
    i, o = tl.arange(0, H)[:, None], tl.arange(0, H)[None, :]
    v_w = tl.dot(tl.trans(features), v_pre, input_precision=PRECISION)
    _add(sums_ptr + o * (H + 3) + i, v_w, (i < H) & (o < H))
    a = tl.arange(0, 16)[:, None]
    v_a = tl.dot(tl.trans(aug), v_pre, input_precision=PRECISION)
    place = tl.where(a < 3, o * (H + 3) + H + a, H * (H + 3) + o)
    _add(sums_ptr + place, v_a, (a < 4) & (o < H))
    return v_features
