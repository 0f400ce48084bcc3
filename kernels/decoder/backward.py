"""Backward of the decoder: the net of shapes, and those of opacity and colour; see kernel.py."""

import triton
import triton.language as tl

from .nets import (
    direction_columns,
    hidden_layer,
    hidden_vjp,
    output,
    output_vjp,
    place_of,
    store_first,
    store_second,
)

PROGRAMS = 256  # the same on every GPU, and so the order of summation


@triton.jit(do_not_specialize=["V", "n_programs"])
def decode_shape_bwd_kernel(
    anchors_ptr,  # [N, 3]
    features_ptr,  # [N, H]
    offsets_ptr,  # [N, K, 3]
    scales_ptr,  # [N, 6]
    weights_ptr,  # [P]
    rows_ptr,  # [V]
    center_ptr,  # [3]
    quats_ptr,  # [V K, 4]
    sizes_ptr,  # [V K, 3]
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
    MIN_LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid = tl.program_id(0)
    w1 = tl.zeros([H, H], tl.float32)
    a1 = tl.zeros([16, H], tl.float32)
    w_s0 = tl.zeros([H, 16], tl.float32)
    w_s1 = w_s0
    w_s2 = w_s0
    w_qw = w_s0
    w_qx = w_s0
    w_qy = w_s0
    w_qz = w_s0
    b_s0 = tl.zeros([16, 16], tl.float32)
    b_s1 = b_s0
    b_s2 = b_s0
    b_qw = b_s0
    b_qx = b_s0
    b_qy = b_s0
    b_qz = b_s0
    net_ptr = weights_ptr + HEAD1
    j = tl.arange(0, 16)[None, :]
    h = tl.arange(0, H)[None, :]
    for block in range(pid, tl.cdiv(V, BLOCK), n_programs):
        v = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        row, full = place_of(rows_ptr, v, V)
        live = full[:, None] & (j < K)
        out = v[:, None] * K + j
        at = row[:, None] * K + j
        features = tl.load(features_ptr + row[:, None] * H + h, mask=full[:, None], other=0.0)
        aug = direction_columns(anchors_ptr, center_ptr, row, full, SEES, BLOCK)
        pre = hidden_layer(features, aug, net_ptr, H, PRECISION)
        hidden = tl.maximum(pre, 0.0)
        v_hidden = tl.zeros([BLOCK, H], tl.float32)
        for c in tl.static_range(3):
            # position
            g = tl.load(v_means_ptr + out * 3 + c, mask=live, other=0.0)
            stretch = tl.exp(tl.load(scales_ptr + row * 6 + c, mask=full, other=0.0))
            stretched = g * stretch[:, None]
            o = tl.load(offsets_ptr + at * 3 + c, mask=live, other=0.0)
            tl.store(v_offsets_ptr + at * 3 + c, stretched, mask=live)
            tl.store(v_scales_ptr + row * 6 + c, tl.sum(stretched * o, axis=1), mask=full)
            # scale
            g = tl.load(v_sizes_ptr + out * 3 + c, mask=live, other=0.0)
            g *= tl.load(sizes_ptr + out * 3 + c, mask=live, other=0.0)
            tl.store(v_scales_ptr + row * 6 + 3 + c, tl.sum(g, axis=1), mask=full)
            # 1 - sigmoid(x) = 1 / (1 + e^x)
            x = output(hidden, net_ptr, c, 7, H, K, PRECISION)
            g /= 1.0 + tl.exp(x)
            if c == 0:
                v_hidden, w_s0, b_s0 = output_vjp(
                    g, v_hidden, w_s0, b_s0, hidden, aug, net_ptr, 0, 7, H, K, PRECISION
                )
            elif c == 1:
                v_hidden, w_s1, b_s1 = output_vjp(
                    g, v_hidden, w_s1, b_s1, hidden, aug, net_ptr, 1, 7, H, K, PRECISION
                )
            else:
                v_hidden, w_s2, b_s2 = output_vjp(
                    g, v_hidden, w_s2, b_s2, hidden, aug, net_ptr, 2, 7, H, K, PRECISION
                )
        # rotation: q = x / |x|, so v_x = (v_q - q (q . v_q)) / |x|
        qw = tl.load(quats_ptr + out * 4, mask=live, other=0.0)
        qx = tl.load(quats_ptr + out * 4 + 1, mask=live, other=0.0)
        qy = tl.load(quats_ptr + out * 4 + 2, mask=live, other=0.0)
        qz = tl.load(quats_ptr + out * 4 + 3, mask=live, other=0.0)
        gw = tl.load(v_quats_ptr + out * 4, mask=live, other=0.0)
        gx = tl.load(v_quats_ptr + out * 4 + 1, mask=live, other=0.0)
        gy = tl.load(v_quats_ptr + out * 4 + 2, mask=live, other=0.0)
        gz = tl.load(v_quats_ptr + out * 4 + 3, mask=live, other=0.0)
        xw = output(hidden, net_ptr, 3, 7, H, K, PRECISION)
        xx = output(hidden, net_ptr, 4, 7, H, K, PRECISION)
        xy = output(hidden, net_ptr, 5, 7, H, K, PRECISION)
        xz = output(hidden, net_ptr, 6, 7, H, K, PRECISION)
        length = tl.sqrt(xw * xw + xx * xx + xy * xy + xz * xz)
        inverse = 1.0 / tl.maximum(length, MIN_LENGTH)
        along = qw * gw + qx * gx + qy * gy + qz * gz
        gw = (gw - qw * along) * inverse
        gx = (gx - qx * along) * inverse
        gy = (gy - qy * along) * inverse
        gz = (gz - qz * along) * inverse
        v_hidden, w_qw, b_qw = output_vjp(
            gw, v_hidden, w_qw, b_qw, hidden, aug, net_ptr, 3, 7, H, K, PRECISION
        )
        v_hidden, w_qx, b_qx = output_vjp(
            gx, v_hidden, w_qx, b_qx, hidden, aug, net_ptr, 4, 7, H, K, PRECISION
        )
        v_hidden, w_qy, b_qy = output_vjp(
            gy, v_hidden, w_qy, b_qy, hidden, aug, net_ptr, 5, 7, H, K, PRECISION
        )
        v_hidden, w_qz, b_qz = output_vjp(
            gz, v_hidden, w_qz, b_qz, hidden, aug, net_ptr, 6, 7, H, K, PRECISION
        )
        v_pre = tl.where(pre > 0.0, v_hidden, 0.0)
        v_features = tl.zeros([BLOCK, H], tl.float32)
        v_features, w1, a1 = hidden_vjp(
            v_pre, v_features, w1, a1, features, aug, net_ptr, H, PRECISION
        )
        tl.store(v_features_ptr + row[:, None] * H + h, v_features, mask=full[:, None])
    size: tl.constexpr = HEAD2 + H * (H + 3) + H + (H + 1) * 3 * K
    own_ptr = partial_ptr + pid.to(tl.int64) * size + HEAD1
    store_first(w1, a1, own_ptr, H)
    store_second(w_s0, b_s0, own_ptr, 0, 7, H, K)
    store_second(w_s1, b_s1, own_ptr, 1, 7, H, K)
    store_second(w_s2, b_s2, own_ptr, 2, 7, H, K)
    store_second(w_qw, b_qw, own_ptr, 3, 7, H, K)
    store_second(w_qx, b_qx, own_ptr, 4, 7, H, K)
    store_second(w_qy, b_qy, own_ptr, 5, 7, H, K)
    store_second(w_qz, b_qz, own_ptr, 6, 7, H, K)


@triton.jit(do_not_specialize=["V", "n_programs"])
def decode_look_bwd_kernel(
    anchors_ptr,  # [N, 3]
    features_ptr,  # [N, H]
    offsets_ptr,  # [N, K, 3]
    scales_ptr,  # [N, 6]
    weights_ptr,  # [P]
    rows_ptr,  # [V]
    center_ptr,  # [3]
    opacities_ptr,  # [V K]
    colors_ptr,  # [V K, 3]
    v_opacities_ptr,  # [V K]
    v_colors_ptr,  # [V K, 3]
    v_features_ptr,  # [N, H] in and out
    off_ptr,  # [N, K] or None
    partial_ptr,  # [n_programs, P] out
    V,
    n_programs,
    SEES: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    HEAD1: tl.constexpr,
    HEAD2: tl.constexpr,
    MIN_LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid = tl.program_id(0)
    w1_o = tl.zeros([H, H], tl.float32)
    w1_c = w1_o
    a1_o = tl.zeros([16, H], tl.float32)
    a1_c = a1_o
    w_o = tl.zeros([H, 16], tl.float32)
    w_r = w_o
    w_g = w_o
    w_b = w_o
    b_o = tl.zeros([16, 16], tl.float32)
    b_r = b_o
    b_g = b_o
    b_b = b_o
    color_ptr = weights_ptr + HEAD2
    j = tl.arange(0, 16)[None, :]
    h = tl.arange(0, H)[None, :]
    for block in range(pid, tl.cdiv(V, BLOCK), n_programs):
        v = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        row, full = place_of(rows_ptr, v, V)
        live = full[:, None] & (j < K)
        out = v[:, None] * K + j
        ptr = v_features_ptr + row[:, None] * H + h
        v_features = tl.load(ptr, mask=full[:, None], other=0.0)
        features = tl.load(features_ptr + row[:, None] * H + h, mask=full[:, None], other=0.0)

        aug = direction_columns(anchors_ptr, center_ptr, row, full, SEES, BLOCK)
        pre = hidden_layer(features, aug, weights_ptr, H, PRECISION)
        hidden = tl.maximum(pre, 0.0)
        x = tl.load(opacities_ptr + out, mask=live, other=0.0)
        g = tl.load(v_opacities_ptr + out, mask=live, other=0.0) * (1.0 - x * x)
        if off_ptr is not None:
            gone = tl.load(off_ptr + row[:, None] * K + j, mask=live, other=0)
            g = tl.where(gone != 0, 0.0, g)
        v_hidden = tl.zeros([BLOCK, H], tl.float32)
        v_hidden, w_o, b_o = output_vjp(
            g, v_hidden, w_o, b_o, hidden, aug, weights_ptr, 0, 1, H, K, PRECISION
        )
        v_pre = tl.where(pre > 0.0, v_hidden, 0.0)
        v_features, w1_o, a1_o = hidden_vjp(
            v_pre, v_features, w1_o, a1_o, features, aug, weights_ptr, H, PRECISION
        )

        aug = direction_columns(anchors_ptr, center_ptr, row, full, True, BLOCK)
        pre = hidden_layer(features, aug, color_ptr, H, PRECISION)
        hidden = tl.maximum(pre, 0.0)
        v_hidden = tl.zeros([BLOCK, H], tl.float32)
        x = tl.load(colors_ptr + out * 3, mask=live, other=0.0)
        g = tl.load(v_colors_ptr + out * 3, mask=live, other=0.0) * x * (1.0 - x)
        v_hidden, w_r, b_r = output_vjp(
            g, v_hidden, w_r, b_r, hidden, aug, color_ptr, 0, 3, H, K, PRECISION
        )
        x = tl.load(colors_ptr + out * 3 + 1, mask=live, other=0.0)
        g = tl.load(v_colors_ptr + out * 3 + 1, mask=live, other=0.0) * x * (1.0 - x)
        v_hidden, w_g, b_g = output_vjp(
            g, v_hidden, w_g, b_g, hidden, aug, color_ptr, 1, 3, H, K, PRECISION
        )
        x = tl.load(colors_ptr + out * 3 + 2, mask=live, other=0.0)
        g = tl.load(v_colors_ptr + out * 3 + 2, mask=live, other=0.0) * x * (1.0 - x)
        v_hidden, w_b, b_b = output_vjp(
            g, v_hidden, w_b, b_b, hidden, aug, color_ptr, 2, 3, H, K, PRECISION
        )
        v_pre = tl.where(pre > 0.0, v_hidden, 0.0)
        v_features, w1_c, a1_c = hidden_vjp(
            v_pre, v_features, w1_c, a1_c, features, aug, color_ptr, H, PRECISION
        )
        tl.store(ptr, v_features, mask=full[:, None])
    size: tl.constexpr = HEAD2 + H * (H + 3) + H + (H + 1) * 3 * K
    own_ptr = partial_ptr + pid.to(tl.int64) * size
    store_first(w1_o, a1_o, own_ptr, H)
    store_second(w_o, b_o, own_ptr, 0, 1, H, K)
    store_first(w1_c, a1_c, own_ptr + HEAD2, H)
    store_second(w_r, b_r, own_ptr + HEAD2, 0, 3, H, K)
    store_second(w_g, b_g, own_ptr + HEAD2, 1, 3, H, K)
    store_second(w_b, b_b, own_ptr + HEAD2, 2, 3, H, K)
