"""Backward of the decoder: the net of shapes, and that of opacity or colour; see kernel.py."""

import triton
import triton.language as tl

from .nets import (
    direction_columns,
    hidden_layer,
    hidden_vjp,
    output,
    output_vjp,
    place_of,
)

PROGRAMS = 256  # the same on every GPU, and so the order of summation


@triton.jit(do_not_specialize=["V", "n_programs", "n_axes"])
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
    partial_ptr,  # [n_programs, P] in and out
    V,
    n_programs,
    n_axes,  # 3: loops over what is no constant stay loops, which saves registers
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
    size: tl.constexpr = HEAD2 + H * (H + 3) + H + (H + 1) * 3 * K
    sums_ptr = partial_ptr + pid.to(tl.int64) * size + HEAD1
    net_ptr = weights_ptr + HEAD1
    j = tl.arange(0, 16)[None, :]
    h = tl.arange(0, H)[None, :]
    for block in range(pid, tl.cdiv(V, BLOCK), n_programs):
        tl.debug_barrier()
        v = block * BLOCK + tl.arange(0, BLOCK)
        row, full = place_of(rows_ptr, v, V)
        live = full[:, None] & (j < K)
        out = v[:, None] * K + j
        at = row[:, None] * K + j
        features = tl.load(features_ptr + row[:, None] * H + h, mask=full[:, None], other=0.0)
        aug = direction_columns(anchors_ptr, center_ptr, row, full, SEES, BLOCK)
        hidden = tl.maximum(hidden_layer(features, aug, net_ptr, H), 0.0)
        v_hidden = tl.zeros([BLOCK, H], tl.float32)
        for c in tl.range(0, n_axes, num_stages=1):
            # position
            g = tl.load(v_means_ptr + out * 3 + c, mask=live, other=0.0)
            stretch = tl.exp(tl.load(scales_ptr + row * 6 + c, mask=full, other=0.0))
            g *= stretch[:, None]
            o = tl.load(offsets_ptr + at * 3 + c, mask=live, other=0.0)
            tl.store(v_offsets_ptr + at * 3 + c, g, mask=live)
            tl.store(v_scales_ptr + row * 6 + c, tl.sum(g * o, axis=1), mask=full)
            # scale
            g = tl.load(v_sizes_ptr + out * 3 + c, mask=live, other=0.0)
            g *= tl.load(sizes_ptr + out * 3 + c, mask=live, other=0.0)
            tl.store(v_scales_ptr + row * 6 + 3 + c, tl.sum(g, axis=1), mask=full)
            # 1 - sigmoid(x) = 1 / (1 + e^x)
            g /= 1.0 + tl.exp(output(hidden, net_ptr, c, 7, H, K, PRECISION))
            v_hidden = output_vjp(g, v_hidden, hidden, net_ptr, sums_ptr, c, 7, H, K, PRECISION)
        # rotation: q = x / |x|, so v_x = (v_q - q (q . v_q)) / |x|
        along = tl.zeros([BLOCK, 16], tl.float32)
        squares = tl.zeros([BLOCK, 16], tl.float32)
        for c in tl.range(0, n_axes + 1, num_stages=1):
            x = output(hidden, net_ptr, 3 + c, 7, H, K, PRECISION)
            squares += x * x
            q = tl.load(quats_ptr + out * 4 + c, mask=live, other=0.0)
            along += q * tl.load(v_quats_ptr + out * 4 + c, mask=live, other=0.0)
        inverse = 1.0 / tl.maximum(tl.sqrt(squares), MIN_LENGTH)
        for c in tl.range(0, n_axes + 1, num_stages=1):
            q = tl.load(quats_ptr + out * 4 + c, mask=live, other=0.0)
            g = tl.load(v_quats_ptr + out * 4 + c, mask=live, other=0.0)
            g = (g - q * along) * inverse
            v_hidden = output_vjp(g, v_hidden, hidden, net_ptr, sums_ptr, 3 + c, 7, H, K, PRECISION)
        v_pre = tl.where(hidden > 0.0, v_hidden, 0.0)
        v_features = tl.zeros([BLOCK, H], tl.float32)
        # read again, as registers are what there is least of
        features = tl.load(features_ptr + row[:, None] * H + h, mask=full[:, None], other=0.0)
        aug = direction_columns(anchors_ptr, center_ptr, row, full, SEES, BLOCK)
        v_features = hidden_vjp(v_pre, v_features, features, aug, net_ptr, sums_ptr, H, PRECISION)
        tl.store(v_features_ptr + row[:, None] * H + h, v_features, mask=full[:, None])


@triton.jit(do_not_specialize=["V", "n_programs", "n_numbers"])
def decode_look_bwd_kernel(
    anchors_ptr,  # [N, 3]
    features_ptr,  # [N, H]
    offsets_ptr,  # [N, K, 3]
    scales_ptr,  # [N, 6]
    weights_ptr,  # [P]
    rows_ptr,  # [V]
    center_ptr,  # [3]
    values_ptr,  # [V K, C]
    v_values_ptr,  # [V K, C]
    v_features_ptr,  # [N, H] in and out
    off_ptr,  # [N, K] or None
    partial_ptr,  # [n_programs, P] in and out
    V,
    n_programs,
    n_numbers,  # C
    START: tl.constexpr,  # of the net in weights
    C: tl.constexpr,
    SEES: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    HEAD1: tl.constexpr,
    HEAD2: tl.constexpr,
    MIN_LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of opacities (C = 1, tanh) or colours (C = 3, sigmoid)."""
    pid = tl.program_id(0)
    size: tl.constexpr = HEAD2 + H * (H + 3) + H + (H + 1) * 3 * K
    sums_ptr = partial_ptr + pid.to(tl.int64) * size + START
    net_ptr = weights_ptr + START
    j = tl.arange(0, 16)[None, :]
    h = tl.arange(0, H)[None, :]
    for block in range(pid, tl.cdiv(V, BLOCK), n_programs):
        tl.debug_barrier()
        v = block * BLOCK + tl.arange(0, BLOCK)
        row, full = place_of(rows_ptr, v, V)
        live = full[:, None] & (j < K)
        if off_ptr is not None:
            live = live & (tl.load(off_ptr + row[:, None] * K + j, mask=live, other=1) == 0)
        out = (v[:, None] * K + j) * C
        features = tl.load(features_ptr + row[:, None] * H + h, mask=full[:, None], other=0.0)
        aug = direction_columns(anchors_ptr, center_ptr, row, full, SEES, BLOCK)
        hidden = tl.maximum(hidden_layer(features, aug, net_ptr, H), 0.0)
        v_hidden = tl.zeros([BLOCK, H], tl.float32)
        for c in tl.range(0, n_numbers, num_stages=1):
            x = tl.load(values_ptr + out + c, mask=live, other=0.0)
            g = tl.load(v_values_ptr + out + c, mask=live, other=0.0)
            if C == 1:
                g *= 1.0 - x * x
            else:
                g *= x * (1.0 - x)
            v_hidden = output_vjp(g, v_hidden, hidden, net_ptr, sums_ptr, c, C, H, K, PRECISION)
        v_pre = tl.where(hidden > 0.0, v_hidden, 0.0)
        features = tl.load(features_ptr + row[:, None] * H + h, mask=full[:, None], other=0.0)
        aug = direction_columns(anchors_ptr, center_ptr, row, full, SEES, BLOCK)
        ptr = v_features_ptr + row[:, None] * H + h
        v_features = tl.load(ptr, mask=full[:, None], other=0.0)
        v_features = hidden_vjp(v_pre, v_features, features, aug, net_ptr, sums_ptr, H, PRECISION)
        tl.store(ptr, v_features, mask=full[:, None])
