"""Backward of the decoder: some of its nets in each launch; see kernel.py."""

import triton
import triton.language as tl

from .nets import (
    by_axis,
    first,
    place_of,
    power_of_two,
    product,
    second,
    settled,
    store_first,
    store_second,
)


@triton.jit(do_not_specialize=["V", "n_programs"])
def decode_bwd_kernel(
    features_ptr,  # [N, H]
    offsets_ptr,  # [N, K, 3]
    scales_ptr,  # [N, 6]
    weights_ptr,  # [P]
    rows_ptr,  # [V]
    off_ptr,  # [N, K] or None
    quats_ptr,  # [V K, 4]
    sizes_ptr,  # [V K, 3]
    opacities_ptr,  # [V K]
    colors_ptr,  # [V K, 3]
    inverses_ptr,  # [V K]
    kept_ptr,  # [V, 3 H + 8]: hidden layers, `direction_columns`
    v_means_ptr,  # [V K, 3]
    v_quats_ptr,  # [V K, 4]
    v_sizes_ptr,  # [V K, 3]
    v_opacities_ptr,  # [V K]
    v_colors_ptr,  # [V K, 3]
    v_features_ptr,  # [N, H] out; in too where ADDS
    v_offsets_ptr,  # [N, K, 3] out
    v_scales_ptr,  # [N, 6] out
    partial_ptr,  # [n_programs, P] out
    V,
    n_programs,
    OPACITY: tl.constexpr,
    SHAPE: tl.constexpr,
    COLOR: tl.constexpr,
    ADDS: tl.constexpr,
    SEES: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    HEAD1: tl.constexpr,
    HEAD2: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid = tl.program_id(0)
    size: tl.constexpr = HEAD2 + H * (H + 4) + (H + 1) * 3 * K
    shape_ptr, color_ptr = weights_ptr + HEAD1, weights_ptr + HEAD2
    COLUMNS: tl.constexpr = 32 if K <= 10 else 64
    SUMS: tl.constexpr = "tf32" if PRECISION == "fp16" else PRECISION
    j1, n3, n4 = tl.arange(0, 16), tl.arange(0, COLUMNS), tl.arange(0, 64)
    live1, live3, live4 = j1 < K, n3 < 3 * K, n4 < 4 * K
    size_rows, quat_rows = n3 // 3 * 7 + n3 % 3, n4 // 4 * 7 + 3 + n4 % 4
    if OPACITY:
        w1o = settled(first(weights_ptr, H), PRECISION)
        w2o = second(weights_ptr, j1, live1, 1, H, K, PRECISION)
        v_w1o, v_b1o = tl.zeros([H, H], tl.float32), tl.zeros([H, 8], tl.float32)
        v_w2o, v_b2o = tl.zeros([16, H], tl.float32), tl.zeros([16, 8], tl.float32)
    if SHAPE:
        w1s = settled(first(shape_ptr, H), PRECISION)
        w2s = second(shape_ptr, size_rows, live3, 7, H, K, PRECISION)
        w2q = second(shape_ptr, quat_rows, live4, 7, H, K, PRECISION)
        v_w1s, v_b1s = tl.zeros([H, H], tl.float32), tl.zeros([H, 8], tl.float32)
        v_w2s, v_b2s = tl.zeros([COLUMNS, H], tl.float32), tl.zeros([COLUMNS, 8], tl.float32)
        v_w2q, v_b2q = tl.zeros([64, H], tl.float32), tl.zeros([64, 8], tl.float32)
        # column n of sums over offsets takes axis n of means, 3 + n of sizes
        c, axis = (n3 % 3)[None, :], tl.arange(0, 8)[None, :]
        to_means = tl.where((n3 % 3)[:, None] == axis, 1.0, 0.0)
        to_sizes = tl.where((n3 % 3)[:, None] + 3 == axis, 1.0, 0.0)
    if COLOR:
        w1c = settled(first(color_ptr, H), PRECISION)
        w2c = second(color_ptr, n3, live3, 3, H, K, PRECISION)
        v_w1c, v_b1c = tl.zeros([H, H], tl.float32), tl.zeros([H, 8], tl.float32)
        v_w2c, v_b2c = tl.zeros([COLUMNS, H], tl.float32), tl.zeros([COLUMNS, 8], tl.float32)
    for block in tl.range(pid, tl.cdiv(V, BLOCK), n_programs, num_stages=1):
        v = block * BLOCK + tl.arange(0, BLOCK)
        row, full = place_of(rows_ptr, v, V)
        at = features_ptr + row[:, None] * H + tl.arange(0, H)[None, :]
        features = settled(tl.load(at, mask=full[:, None], other=0.0), PRECISION)
        kept_at = kept_ptr + v[:, None] * (3 * H + 8) + tl.arange(0, H)[None, :]
        inside = (v < V)[:, None]
        short = kept_ptr + v[:, None] * (3 * H + 8) + 3 * H + tl.arange(0, 8)[None, :]
        short = tl.load(short, mask=inside, other=0.0)
        v_features_at = v_features_ptr + row[:, None] * H + tl.arange(0, H)[None, :]
        v_features = tl.zeros([BLOCK, H], tl.float32)
        out1 = v[:, None] * K + j1[None, :]
        out3 = v[:, None] * (3 * K) + n3[None, :]
        has1, has3 = full[:, None] & live1[None, :], full[:, None] & live3[None, :]
        if ADDS:
            v_features += tl.load(v_features_at, mask=full[:, None], other=0.0)
        if OPACITY:
            # tanh' = 1 - tanh^2
            hidden = tl.load(kept_at, mask=inside, other=0.0)
            drawn = has1
            if off_ptr is not None:
                off = tl.load(off_ptr + row[:, None] * K + j1[None, :], mask=has1, other=1)
                drawn = has1 & (off == 0)
            y = tl.load(opacities_ptr + out1, mask=drawn, other=0.0)
            g = tl.load(v_opacities_ptr + out1, mask=drawn, other=0.0) * (1.0 - y * y)
            scale, inverse = power_of_two(tl.max(tl.abs(g)))
            g = settled(g * inverse, PRECISION)
            v_hidden = product(g, w2o, PRECISION)
            v_hidden = settled(tl.where(hidden > 0.0, v_hidden, 0.0), PRECISION)
            v_features += scale * product(v_hidden, w1o, PRECISION)
            v_w2o += scale * product(tl.trans(g), hidden, PRECISION)
            v_b2o += scale * product(tl.trans(g), short, PRECISION)
            v_w1o += scale * product(tl.trans(v_hidden), features, PRECISION)
            v_b1o += scale * product(tl.trans(v_hidden), short, PRECISION)
        if COLOR:
            hidden = tl.load(kept_at + 2 * H, mask=inside, other=0.0)
            y = tl.load(colors_ptr + out3, mask=has3, other=0.0)
            g = tl.load(v_colors_ptr + out3, mask=has3, other=0.0) * (y - y * y)
            scale, inverse = power_of_two(tl.max(tl.abs(g)))
            g = settled(g * inverse, PRECISION)
            v_hidden = product(g, w2c, PRECISION)
            v_hidden = settled(tl.where(hidden > 0.0, v_hidden, 0.0), PRECISION)
            v_features += scale * product(v_hidden, w1c, PRECISION)
            v_w2c += scale * product(tl.trans(g), hidden, PRECISION)
            v_b2c += scale * product(tl.trans(g), short, PRECISION)
            v_w1c += scale * product(tl.trans(v_hidden), features, PRECISION)
            v_b1c += scale * product(tl.trans(v_hidden), short, PRECISION)
        if SHAPE:
            # mean = x + o exp(s)
            at = row[:, None] * (3 * K) + n3[None, :]
            g = tl.load(v_means_ptr + out3, mask=has3, other=0.0)
            g *= by_axis(scales_ptr + row * 6, full, c, 1.0)
            tl.store(v_offsets_ptr + at, g, mask=has3)
            g *= tl.load(offsets_ptr + at, mask=has3, other=0.0)
            v_scales = product(settled(g, SUMS), to_means, SUMS)
            # scale = exp(s) y, y = sigmoid(x)
            x = tl.load(sizes_ptr + out3, mask=has3, other=0.0)
            g = tl.load(v_sizes_ptr + out3, mask=has3, other=0.0) * x
            v_scales += product(settled(g, SUMS), to_sizes, SUMS)
            at = v_scales_ptr + row[:, None] * 6 + axis
            tl.store(at, v_scales, mask=full[:, None] & (axis < 6))
            g *= 1.0 - x * by_axis(scales_ptr + row * 6 + 3, full, c, -1.0)
            # quat = q = x / |x|, so v_x = (v_q - q (q . v_q)) / |x|
            at = v[:, None] * (4 * K) + n4[None, :]
            has4 = full[:, None] & live4[None, :]
            q = tl.reshape(tl.load(quats_ptr + at, mask=has4, other=0.0), [BLOCK, 16, 4])
            u = tl.reshape(tl.load(v_quats_ptr + at, mask=has4, other=0.0), [BLOCK, 16, 4])
            length = tl.load(inverses_ptr + out1, mask=has1, other=0.0)
            u = (u - q * tl.sum(q * u, axis=2)[:, :, None]) * length[:, :, None]
            u = tl.reshape(u, [BLOCK, 64])
            scale, inverse = power_of_two(tl.maximum(tl.max(tl.abs(g)), tl.max(tl.abs(u))))
            g, u = settled(g * inverse, PRECISION), settled(u * inverse, PRECISION)
            hidden = tl.load(kept_at + H, mask=inside, other=0.0)
            v_hidden = product(g, w2s, PRECISION) + product(u, w2q, PRECISION)
            v_hidden = settled(tl.where(hidden > 0.0, v_hidden, 0.0), PRECISION)
            v_features += scale * product(v_hidden, w1s, PRECISION)
            v_w2s += scale * product(tl.trans(g), hidden, PRECISION)
            v_b2s += scale * product(tl.trans(g), short, PRECISION)
            v_w2q += scale * product(tl.trans(u), hidden, PRECISION)
            v_b2q += scale * product(tl.trans(u), short, PRECISION)
            v_w1s += scale * product(tl.trans(v_hidden), features, PRECISION)
            v_b1s += scale * product(tl.trans(v_hidden), short, PRECISION)
        tl.store(v_features_at, v_features, mask=full[:, None])
    sums_ptr = partial_ptr + pid.to(tl.int64) * size
    if OPACITY:
        store_first(sums_ptr, v_w1o, v_b1o, SEES, H)
        store_second(sums_ptr, v_w2o, v_b2o, j1, live1, 1, H, K)
    if SHAPE:
        store_first(sums_ptr + HEAD1, v_w1s, v_b1s, SEES, H)
        store_second(sums_ptr + HEAD1, v_w2s, v_b2s, size_rows, live3, 7, H, K)
        store_second(sums_ptr + HEAD1, v_w2q, v_b2q, quat_rows, live4, 7, H, K)
    if COLOR:
        store_first(sums_ptr + HEAD2, v_w1c, v_b1c, True, H)
        store_second(sums_ptr + HEAD2, v_w2c, v_b2c, n3, live3, 3, H, K)
