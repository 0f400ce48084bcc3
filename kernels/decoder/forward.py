"""Forward of the decoder, all nets in one launch; see kernel.py."""

import triton
import triton.language as tl

from .nets import (
    by_axis,
    direction_columns,
    exponentials,
    first_layer,
    hidden_layer,
    output,
    place_of,
    second,
    second_bias,
    settled,
    sigmoid,
    split,
)


@triton.jit(do_not_specialize=["V", "n_programs"])
def decode_fwd_kernel(
    anchors_ptr,  # [N, 3]
    features_ptr,  # [N, H]
    offsets_ptr,  # [N, K, 3]
    scales_ptr,  # [N, 6]
    weights_ptr,  # [P]
    rows_ptr,  # [V]
    center_ptr,  # [3]
    off_ptr,  # [N, K] or None
    means_ptr,  # [V K, 3] out
    quats_ptr,  # [V K, 4] out
    sizes_ptr,  # [V K, 3] out
    opacities_ptr,  # [V K] out
    colors_ptr,  # [V K, 3] out
    inverses_ptr,  # [V K] out: 1 / |quaternion before it is normalised|
    kept_ptr,  # [V, 3 H + 8] out: hidden layers, `direction_columns`
    V,
    n_programs,
    SEES: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    HEAD1: tl.constexpr,
    HEAD2: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    MIN_LENGTH: tl.constexpr,
):
    shape_ptr, color_ptr = weights_ptr + HEAD1, weights_ptr + HEAD2
    j1 = tl.arange(0, 16)
    n3, n4 = tl.arange(0, 32 if K <= 10 else 64), tl.arange(0, 64)
    c = (n3 % 3)[None, :]
    size_rows, quat_rows = n3 // 3 * 7 + n3 % 3, n4 // 4 * 7 + 3 + n4 % 4
    live1, live3, live4 = j1 < K, n3 < 3 * K, n4 < 4 * K
    w1o, u1o = first_layer(weights_ptr, SEES, H)
    w1s, u1s = first_layer(shape_ptr, SEES, H)
    w1c, u1c = first_layer(color_ptr, True, H)
    w2o = second(weights_ptr, j1, live1, H, H, PRECISION)
    w2s = second(shape_ptr, size_rows, live3, H, H, PRECISION)
    w2q = second(shape_ptr, quat_rows, live4, H, H, PRECISION)
    w2c = second(color_ptr, n3, live3, H, H, PRECISION)
    b2o = second_bias(weights_ptr, j1, live1, K, H, PRECISION)
    b2s = second_bias(shape_ptr, size_rows, live3, 7 * K, H, PRECISION)
    b2q = second_bias(shape_ptr, quat_rows, live4, 7 * K, H, PRECISION)
    b2c = second_bias(color_ptr, n3, live3, 3 * K, H, PRECISION)
    for block in tl.range(tl.program_id(0), tl.cdiv(V, BLOCK), n_programs, num_stages=1):
        v = block * BLOCK + tl.arange(0, BLOCK)
        row, full = place_of(rows_ptr, v, V)
        inside = (v < V)[:, None]
        at = features_ptr + row[:, None] * H + tl.arange(0, H)[None, :]
        features = tl.load(at, mask=full[:, None], other=0.0)
        features, features_low = split(features)
        aug = direction_columns(anchors_ptr, center_ptr, row, full)
        a = tl.arange(0, 16)[None, :]
        kept_at = kept_ptr + v[:, None] * (3 * H + 8)
        tl.store(kept_at + 3 * H + a, aug, mask=inside & (a < 8))
        ones = settled(aug, PRECISION)
        aug, aug_low = split(aug)
        kept_at += tl.arange(0, H)[None, :]

        x = features, features_low, aug, aug_low
        hidden_o = settled(hidden_layer(*x, w1o, u1o, weights_ptr, SEES, H), PRECISION)
        tl.store(kept_at, hidden_o, mask=inside)
        hidden_s = settled(hidden_layer(*x, w1s, u1s, shape_ptr, SEES, H), PRECISION)
        tl.store(kept_at + H, hidden_s, mask=inside)
        hidden_c = settled(hidden_layer(*x, w1c, u1c, color_ptr, True, H), PRECISION)
        tl.store(kept_at + 2 * H, hidden_c, mask=inside)

        # opacity = tanh(x)
        x = 2.0 * sigmoid(2.0 * output(hidden_o, ones, w2o, b2o, PRECISION)) - 1.0
        drawn = full[:, None] & live1[None, :]
        if off_ptr is not None:
            off = tl.load(off_ptr + row[:, None] * K + j1[None, :], mask=drawn, other=1)
            drawn = drawn & (off == 0)
        out = v[:, None] * K + j1[None, :]
        tl.store(opacities_ptr + out, tl.where(drawn, x, 0.0), mask=inside & live1[None, :])

        # color = sigmoid(x)
        x = sigmoid(output(hidden_c, ones, w2c, b2c, PRECISION))
        out = v[:, None] * (3 * K) + n3[None, :]
        tl.store(colors_ptr + out, x, mask=inside & live3[None, :])

        # scale = exp(s) sigmoid(x)
        x = sigmoid(output(hidden_s, ones, w2s, b2s, PRECISION))
        x *= exponentials(scales_ptr + row * 6 + 3, full, c, 1.0)
        tl.store(sizes_ptr + out, x, mask=inside & live3[None, :])

        # quat = x / |x|; empty places are turned by nothing, as no zero quaternion may be
        x = tl.reshape(output(hidden_s, ones, w2q, b2q, PRECISION), [BLOCK, 16, 4])
        inverse = tl.rsqrt(tl.maximum(tl.sum(x * x, axis=2), MIN_LENGTH * MIN_LENGTH))
        out = v[:, None] * K + j1[None, :]
        tl.store(inverses_ptr + out, inverse, mask=inside & live1[None, :])
        x = tl.reshape(x * inverse[:, :, None], [BLOCK, 64])
        upright = tl.where(n4 % 4 == 0, 1.0, 0.0)
        x = tl.where(full[:, None], x, upright[None, :])
        out = v[:, None] * (4 * K) + n4[None, :]
        tl.store(quats_ptr + out, x, mask=inside & live4[None, :])

        out = v[:, None] * (3 * K) + n3[None, :]
        # mean = x + o exp(s)
        live = full[:, None] & live3[None, :]
        o = tl.load(offsets_ptr + row[:, None] * (3 * K) + n3[None, :], mask=live, other=0.0)
        x = by_axis(anchors_ptr + row * 3, full, c)
        x += o * exponentials(scales_ptr + row * 6, full, c, 1.0)
        tl.store(means_ptr + out, x, mask=inside & live3[None, :])
