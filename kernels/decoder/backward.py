"""Backward of the decoder: the net of shapes, and those of opacity and colour; see kernel.py."""

import triton
import triton.language as tl

from .nets import (
    exponentials,
    first,
    grown,
    hidden_of,
    inputs_of,
    place_of,
    power,
    product,
    second,
    settled,
    side_by_side,
    store_first,
    store_second,
)


@triton.jit(do_not_specialize=["V", "n_programs"])
def decode_shape_bwd_kernel(
    features_ptr,  # [N, H]
    offsets_ptr,  # [N, K, 3]
    scales_ptr,  # [N, 6]
    weights_ptr,  # [P]
    rows_ptr,  # [V]
    quats_ptr,  # [V K, 4]
    sizes_ptr,  # [V K, 3]
    inverses_ptr,  # [V K]
    kept_ptr,  # [V, 3 H + 8]
    v_means_ptr,  # [V K, 3]
    v_quats_ptr,  # [V K, 4]
    v_sizes_ptr,  # [V K, 3]
    v_features_ptr,  # [N, H] out
    v_offsets_ptr,  # [N, K, 3] out
    v_scales_ptr,  # [N, 6] out
    partial_ptr,  # [n_programs, P] out
    V,
    n_programs,
    SEES: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    HEAD1: tl.constexpr,
    HEAD2: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    SUMS: tl.constexpr,
):
    pid = tl.program_id(0)
    net_ptr = weights_ptr + HEAD1
    j, n3, n4 = tl.arange(0, 16), tl.arange(0, WIDE), tl.arange(0, 64)
    live3, live4 = n3 < 3 * K, n4 < 4 * K
    size_rows, quat_rows = n3 // 3 * 7 + n3 % 3, n4 // 4 * 7 + 3 + n4 % 4
    w1 = settled(first(net_ptr, H, WIDE), PRECISION)
    w_size = second(net_ptr, size_rows, live3, H, WIDE, PRECISION)
    w_quat = second(net_ptr, quat_rows, live4, H, WIDE, PRECISION)
    # sums for the weights; of sizes in even rows, of the hidden layer in odd ones
    v_w1, v_w_size = tl.zeros([2 * WIDE, H], tl.float32), tl.zeros([2 * WIDE, WIDE], tl.float32)
    v_w_quat = tl.zeros([64, WIDE], tl.float32)
    v_b, v_b_quat = tl.zeros([2 * WIDE, 16], tl.float32), tl.zeros([64, 16], tl.float32)
    unit = 27 << 23  # bits of the power of two that sums and what is added to them are in units of
    # column n of the scales' gradients is of axis n of the offsets, 3 + n of the sizes
    c, axis = (n3 % 3)[None, :], tl.arange(0, 8)[None, :]
    of_offsets = tl.where((n3 % 3)[:, None] == axis, 1.0, 0.0)
    of_sizes = tl.where((n3 % 3)[:, None] + 3 == axis, 1.0, 0.0)
    for block in tl.range(pid, tl.cdiv(V, BLOCK), n_programs, num_stages=1):
        v = block * BLOCK + tl.arange(0, BLOCK)
        row, full = place_of(rows_ptr, v, V)
        has3 = full[:, None] & live3[None, :]
        # mean = x + o exp(s)
        at, out = row[:, None] * (3 * K) + n3[None, :], v[:, None] * (3 * K) + n3[None, :]
        g = tl.load(v_means_ptr + out, mask=has3, other=0.0)
        g *= exponentials(scales_ptr + row * 6, full, c, 1.0)
        tl.store(v_offsets_ptr + at, g, mask=has3)
        g *= tl.load(offsets_ptr + at, mask=has3, other=0.0)
        v_scales = product(settled(g, SUMS), of_offsets, tl.zeros([BLOCK, 8], tl.float32), SUMS)
        # scale = exp(s) y, y = sigmoid(x)
        x = tl.load(sizes_ptr + out, mask=has3, other=0.0)
        g = tl.load(v_sizes_ptr + out, mask=has3, other=0.0) * x
        v_scales = product(settled(g, SUMS), of_sizes, v_scales, SUMS)
        tl.store(v_scales_ptr + row[:, None] * 6 + axis, v_scales, mask=full[:, None] & (axis < 6))
        g *= 1.0 - x * exponentials(scales_ptr + row * 6 + 3, full, c, -1.0)
        # quat = q = x / |x|, so v_x = (v_q - q (q . v_q)) / |x|
        out, has4 = v[:, None] * (4 * K) + n4[None, :], full[:, None] & live4[None, :]
        q = tl.reshape(tl.load(quats_ptr + out, mask=has4, other=0.0), [BLOCK, 16, 4])
        u = tl.reshape(tl.load(v_quats_ptr + out, mask=has4, other=0.0), [BLOCK, 16, 4])
        has = full[:, None] & (j < K)[None, :]
        length = tl.load(inverses_ptr + v[:, None] * K + j[None, :], mask=has, other=0.0)
        u = (u - q * tl.sum(q * u, axis=2)[:, :, None]) * length[:, :, None]
        u = tl.reshape(u, [BLOCK, 64])

        fits = grown(unit, tl.maximum(tl.max(tl.abs(g)), tl.max(tl.abs(u))))
        if fits > unit:
            less, _ = power(tl.maximum(0x3F800000 + unit - fits, 0))
            v_w1, v_w_size, v_w_quat = v_w1 * less, v_w_size * less, v_w_quat * less
            v_b, v_b_quat = v_b * less, v_b_quat * less
            unit = fits
        scale, inverse = power(unit)
        g, u = settled(g * inverse, PRECISION), settled(u * inverse, PRECISION)
        features, aug = inputs_of(features_ptr, kept_ptr, row, full, v, V, H, PRECISION)
        hidden = hidden_of(kept_ptr + H, v, V, H, WIDE)
        v_hidden = product(g, w_size, tl.zeros([BLOCK, WIDE], tl.float32), PRECISION)
        v_hidden = product(u, w_quat, v_hidden, PRECISION)
        v_hidden = settled(tl.where(hidden > 0.0, v_hidden, 0.0), PRECISION)
        v_features = scale * product(v_hidden, w1, tl.zeros([BLOCK, H], tl.float32), PRECISION)
        g, u = tl.trans(side_by_side(g, v_hidden, BLOCK, WIDE)), tl.trans(u)
        v_w_size, v_w1 = (
            product(g, hidden, v_w_size, PRECISION),
            product(g, features, v_w1, PRECISION),
        )
        v_b, v_b_quat = product(g, aug, v_b, PRECISION), product(u, aug, v_b_quat, PRECISION)
        v_w_quat = product(u, hidden, v_w_quat, PRECISION)
        h = tl.arange(0, H)[None, :]
        tl.store(v_features_ptr + row[:, None] * H + h, v_features, mask=full[:, None])
    size: tl.constexpr = HEAD2 + H * (H + 4) + (H + 1) * 3 * K
    sums_ptr = partial_ptr + pid.to(tl.int64) * size + HEAD1
    scale, _ = power(unit)
    v_b *= scale
    m = tl.arange(0, 2 * WIDE)
    n, even, odd = m // 2, m % 2 == 0, m % 2 == 1
    store_first(sums_ptr, v_w1 * scale, v_b, n, odd & (n < H), SEES, H)
    places = n // 3 * 7 + n % 3
    store_second(sums_ptr, v_w_size * scale, v_b, places, even & (n < 3 * K), 7 * K, H)
    store_second(sums_ptr, v_w_quat * scale, v_b_quat * scale, quat_rows, live4, 7 * K, H)


@triton.jit(do_not_specialize=["V", "n_programs"])
def decode_look_bwd_kernel(
    features_ptr,  # [N, H]
    weights_ptr,  # [P]
    rows_ptr,  # [V]
    opacities_ptr,  # [V K]
    colors_ptr,  # [V K, 3]
    kept_ptr,  # [V, 3 H + 8]
    off_ptr,  # [N, K] or None
    v_opacities_ptr,  # [V K]
    v_colors_ptr,  # [V K, 3]
    v_features_ptr,  # [N, H] in and out
    partial_ptr,  # [n_programs, P] out
    V,
    n_programs,
    SEES: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    HEAD1: tl.constexpr,
    HEAD2: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    pid = tl.program_id(0)
    net_ptr = weights_ptr + HEAD2
    n = tl.arange(0, WIDE)
    live1, live3 = n < K, n < 3 * K
    w1o, w1c = first(weights_ptr, H, WIDE), first(net_ptr, H, WIDE)
    w1o, w1c = settled(w1o, PRECISION), settled(w1c, PRECISION)
    w2o = second(weights_ptr, n, live1, H, WIDE, PRECISION)
    w2c = second(net_ptr, n, live3, H, WIDE, PRECISION)
    # sums for the weights; of colour in even rows, of opacity in odd ones
    v_w1, v_b1 = tl.zeros([2 * WIDE, H], tl.float32), tl.zeros([2 * WIDE, 16], tl.float32)
    v_w2o, v_w2c = tl.zeros([2 * WIDE, WIDE], tl.float32), tl.zeros([2 * WIDE, WIDE], tl.float32)
    v_b2 = tl.zeros([2 * WIDE, 16], tl.float32)
    unit = 27 << 23  # as above
    for block in tl.range(pid, tl.cdiv(V, BLOCK), n_programs, num_stages=1):
        v = block * BLOCK + tl.arange(0, BLOCK)
        row, full = place_of(rows_ptr, v, V)
        # opacity = y = tanh(x)
        drawn = full[:, None] & live1[None, :]
        if off_ptr is not None:
            off = tl.load(off_ptr + row[:, None] * K + n[None, :], mask=drawn, other=1)
            drawn = drawn & (off == 0)
        out = v[:, None] * K + n[None, :]
        y = tl.load(opacities_ptr + out, mask=drawn, other=0.0)
        g = tl.load(v_opacities_ptr + out, mask=drawn, other=0.0) * (1.0 - y * y)
        # color = y = sigmoid(x)
        out, has3 = v[:, None] * (3 * K) + n[None, :], full[:, None] & live3[None, :]
        y = tl.load(colors_ptr + out, mask=has3, other=0.0)
        u = tl.load(v_colors_ptr + out, mask=has3, other=0.0) * (y - y * y)

        fits = grown(unit, tl.maximum(tl.max(tl.abs(g)), tl.max(tl.abs(u))))
        if fits > unit:
            less, _ = power(tl.maximum(0x3F800000 + unit - fits, 0))
            v_w1, v_b1, v_b2 = v_w1 * less, v_b1 * less, v_b2 * less
            v_w2o, v_w2c = v_w2o * less, v_w2c * less
            unit = fits
        scale, inverse = power(unit)
        g, u = settled(g * inverse, PRECISION), settled(u * inverse, PRECISION)
        features, aug = inputs_of(features_ptr, kept_ptr, row, full, v, V, H, PRECISION)
        zeros = tl.zeros([BLOCK, WIDE], tl.float32)
        hidden_o = hidden_of(kept_ptr, v, V, H, WIDE)
        v_o = tl.where(hidden_o > 0.0, product(g, w2o, zeros, PRECISION), 0.0)
        hidden_c = hidden_of(kept_ptr + 2 * H, v, V, H, WIDE)
        v_c = tl.where(hidden_c > 0.0, product(u, w2c, zeros, PRECISION), 0.0)
        v_o, v_c = settled(v_o, PRECISION), settled(v_c, PRECISION)
        v_features = product(v_o, w1o, tl.zeros([BLOCK, H], tl.float32), PRECISION)
        v_features = product(v_c, w1c, v_features, PRECISION) * scale
        g = tl.trans(side_by_side(u, g, BLOCK, WIDE))
        v_w2o, v_w2c = (
            product(g, hidden_o, v_w2o, PRECISION),
            product(g, hidden_c, v_w2c, PRECISION),
        )
        v_b2 = product(g, aug, v_b2, PRECISION)
        u = tl.trans(side_by_side(v_c, v_o, BLOCK, WIDE))
        v_w1, v_b1 = product(u, features, v_w1, PRECISION), product(u, aug, v_b1, PRECISION)
        at = v_features_ptr + row[:, None] * H + tl.arange(0, H)[None, :]
        v_features += tl.load(at, mask=full[:, None], other=0.0)
        tl.store(at, v_features, mask=full[:, None])
    size: tl.constexpr = HEAD2 + H * (H + 4) + (H + 1) * 3 * K
    sums_ptr = partial_ptr + pid.to(tl.int64) * size
    scale, _ = power(unit)
    v_w1, v_b1, v_b2 = v_w1 * scale, v_b1 * scale, v_b2 * scale
    m = tl.arange(0, 2 * WIDE)
    n, even, odd = m // 2, m % 2 == 0, m % 2 == 1
    store_first(sums_ptr, v_w1, v_b1, n, odd & (n < H), SEES, H)
    store_second(sums_ptr, v_w2o * scale, v_b2, n, odd & (n < K), K, H)
    store_first(sums_ptr + HEAD2, v_w1, v_b1, n, even & (n < H), True, H)
    store_second(sums_ptr + HEAD2, v_w2c * scale, v_b2, n, even & (n < 3 * K), 3 * K, H)
