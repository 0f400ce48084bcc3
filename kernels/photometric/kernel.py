r"""L1 and D-SSIM of a rendering, forward and backward in two launches.

    loss = (1 - lambda) mean |a - b| + lambda (1 - mean S)      Kerbl et al. (2023), equation 7

S is the structural similarity of Wang et al. (2004), per pixel and channel, under a Gaussian
window G (11x11, sigma 1.5, zero padding). With p = a + b, q = a - b, their blurred values P, Q and
variances V_p = G*p^2 - P^2, V_q = G*q^2 - Q^2 it is

    e = Q^2 / (P^2 + Q^2 + 2 C1)    f = V_q / (V_p + V_q + 2 C2)    S = (1 - 2 e) (1 - 2 f)

where nothing cancels as the images become equal. The gradient needs three blurs: with g = (1 - 2 e)
/ (V_p + V_q + 2 C2), h = (1 - 2 f) / (P^2 + Q^2 + 2 C1),

    v_a = 4 [G*(P h e - P g f + Q h (e - 1) - Q g (f - 1)) + p G*(g f) + q G*(g (f - 1))]

where P in P g f and p may both be taken less 1, which keeps digits. For the same reason p and q are
blurred less their mean near the middle of a program's pixels, which changes no variance.

Both launches blur as `ssim_blur` tells: a program is one warp that owns 16 rows of the image as it
is in memory, channels interleaved, and walks right along a part of them. Instructions per value of
the image, as compiled for sm_90, are 156 and 62, and a part of k blocks takes k + 2.

Tried on an H200, 1296x840, microseconds: 38 and 30 as it is; tiles of 64x64 values of one channel,
four warps, by wgmma 83 and 100; three warps of the maps per scheduler, with spills, 52, four 91;
asynchronous copies of stored maps 55; vertical neighbours on one SM, or loops unrolled, the same.

    colors [H 3W] float32, target [H 3W] uint8 or float32, or [H W] int32 with a mask (pixels.py),
    contiguous
    maps [3 ceil(H/2) map_pitch 2 2] float16: arguments of the last three blurs
    partials [4 n] float32: sums of 1 - S, |a - b|, and |.| and square of clamp(a, 0, 1) - b; with a
    mask [5 n], as they are over values that count, and the number of these
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.intrinsics import rcp
from ..reference.photometric import C1, C2
from ..runtime.autograd import once_differentiable
from ..runtime.launch import launch
from .blur import (
    SIDE,
    all_weights,
    blur,
    blur_map,
    from_product,
    map_pitch,
    per_lane,
    place_of_load,
    place_of_map,
    place_of_product,
    store_map,
    to_product,
    weights_on,
)
from .pixels import (
    LARGEST,
    RATIO,
    centred,
    clamp,
    load_counts,
    load_target,
    part_of,
    pitch_of,
    to_truth,
)

DOUBLE_C1 = tl.constexpr(2.0 * C1)
DOUBLE_C2 = tl.constexpr(2.0 * C2)
REST = tl.constexpr(1.0 / 255.0 - 1.0 / 256.0)
BAND = 16  # rows of a program
BLOCK = tl.constexpr(512)  # partial sums read at once
# Warps per SM, and the registers per thread that leave room for so many.
MAPS_WARPS, MAPS_REGISTERS = 8, 255
GRADIENT_WARPS, GRADIENT_REGISTERS = 12, 168


@triton.jit(do_not_specialize=["H", "W", "bands", "blocks", "n"])
def _ssim_maps_kernel(
    colors_ptr,  # [H, 3W]
    target_ptr,  # [H, 3W] or [H, W]
    weights_ptr,  # [5, 2, 16, 16]
    maps_ptr,  # [3, ceil(H/2), map_pitch, 2, 2] out
    partials_ptr,  # [4, n] out
    H,
    W,
    bands,
    blocks,
    n,
    BYTES: tl.constexpr,
    MASKED: tl.constexpr,
    GRADIENT: tl.constexpr,
    ALIGN: tl.constexpr,
):
    program = tl.program_id(0)
    P = pitch_of(W, ALIGN)
    y0, first, end = part_of(program, bands, blocks, P)
    weights = all_weights(weights_ptr)
    VECTOR: tl.constexpr = min(ALIGN, 2)
    k, column = place_of_load(VECTOR)
    out_row, out_column = place_of_product(4)
    pitch = map_pitch(W)
    # own rows, and 8 above and below, of which 5 count
    own_y, y = y0 + k, y0 + k - 8 + SIDE * (k // 8)
    own_rows, rows = own_y < H, (y >= 0) & (y < H) & (k >= 3) & (k < 13)
    own_at, at = own_y * P + column, y * P + column

    x = (first + end) // 2 * SIDE
    inside = own_rows & (x + column < P)
    a = tl.load(colors_ptr + x + own_at, mask=inside, other=0.0)
    b = load_target(target_ptr, x, own_y, column, own_at, inside, W, MASKED)
    b = to_truth(b, a, BYTES, MASKED)
    share = 1.0 / (tl.minimum(H - y0, SIDE) * tl.minimum(P - x, SIDE)).to(tl.float32)
    a_middle = tl.sum(per_lane(clamp(a, -LARGEST, LARGEST))) * share
    b = b * RATIO if BYTES else clamp(b, -LARGEST, LARGEST)
    b_middle = tl.sum(per_lane(b)) * share
    p_middle, q_middle = a_middle + b_middle, a_middle - b_middle

    l1 = tl.zeros([8, 4], tl.float32)
    l1_clamped, squares, dssim, counted = l1, l1, l1, l1
    p_left = tl.zeros([SIDE, SIDE], tl.float32)
    p_here, pp_left, pp_here = p_left, p_left, p_left
    q_left, q_here, qq_left, qq_here = p_left, p_left, p_left, p_left
    x = (first - 1) * SIDE
    inside = (x + column >= 0) & (x + column < P)
    own_a = tl.load(colors_ptr + x + own_at, mask=inside & own_rows, other=0.0)
    own_b = load_target(target_ptr, x, own_y, column, own_at, inside & own_rows, W, MASKED)
    a = tl.load(colors_ptr + x + at, mask=inside & rows, other=0.0)
    b = load_target(target_ptr, x, y, column, at, inside & rows, W, MASKED)
    for block in tl.range(first - 1, end + 1, num_stages=1):
        truth = to_truth(own_b, own_a, BYTES, MASKED)
        if (block >= first) & (block < end):
            # outside the image both are 0
            in_unit = truth * RATIO if BYTES else truth
            difference = own_a - in_unit
            error = clamp(own_a, 0.0, 1.0) - in_unit
            if MASKED:
                difference = tl.where(own_b < 0, difference, 0.0)
                error = tl.where(own_b < 0, error, 0.0)
                counted += per_lane((own_b < 0).to(tl.float32))
            l1 += per_lane(tl.abs(difference))
            l1_clamped += per_lane(tl.abs(error))
            squares += per_lane(error * error)
        own_p, own_q = centred(own_a, truth, a_middle, b_middle, BYTES)
        p, q = centred(a, to_truth(b, a, BYTES, MASKED), a_middle, b_middle, BYTES)
        p_mean, p_left, p_here = blur(own_p, p, p_left, p_here, weights, VECTOR)
        # the next block, early enough and yet when registers are free
        x = (block + 1) * SIDE
        inside = (x + column < P) & (block < end)
        own_a = tl.load(colors_ptr + x + own_at, mask=inside & own_rows, other=0.0)
        own_b = load_target(target_ptr, x, own_y, column, own_at, inside & own_rows, W, MASKED)
        a = tl.load(colors_ptr + x + at, mask=inside & rows, other=0.0)
        b = load_target(target_ptr, x, y, column, at, inside & rows, W, MASKED)
        q_mean, q_left, q_here = blur(own_q, q, q_left, q_here, weights, VECTOR)
        p_var, pp_left, pp_here = blur(own_p * own_p, p * p, pp_left, pp_here, weights, VECTOR)
        q_var, qq_left, qq_here = blur(own_q * own_q, q * q, qq_left, qq_here, weights, VECTOR)
        if block > first:
            x = (block - 1) * SIDE
            out_inside = (y0 + out_row < H) & (x + out_column < P)
            if MASKED:
                out_y = y0 + out_row
                out_inside &= load_counts(target_ptr, x, out_y, out_column, out_inside, W)
            p_var -= p_mean * p_mean
            q_var -= q_mean * q_mean
            p_mean += p_middle
            q_mean += q_middle
            q_square = q_mean * q_mean
            means = p_mean * p_mean + (q_square + DOUBLE_C1)
            variances = p_var + (q_var + DOUBLE_C2)
            # where nothing counts both quotients are 0, with all that follows
            both = tl.where(to_product(out_inside), rcp(means * variances), 0.0)
            by_means, by_variances = both * variances, both * means
            e = q_square * by_means
            f = q_var * by_variances
            dssim += per_lane(from_product(e + f - 2.0 * e * f, 4))
            if GRADIENT:
                g = (1.0 - 2.0 * e) * by_variances
                h = (1.0 - 2.0 * f) * by_means
                gf = g * f
                he = h * e
                v_q_square = gf - g
                v_mean = p_mean * he - (p_mean - 1.0) * gf + q_mean * ((he - h) - v_q_square)
                plane = ((H + 1) // 2).to(tl.int64) * pitch * 4
                out = maps_ptr + (y0 // 2).to(tl.int64) * pitch * 4 + x * 4
                store_map(out, v_mean, H - y0, pitch - x, pitch)
                store_map(out + plane, gf, H - y0, pitch - x, pitch)
                store_map(out + 2 * plane, v_q_square, H - y0, pitch - x, pitch)
    out = partials_ptr + program
    tl.store(out, 2.0 * tl.sum(dssim))
    tl.store(out + n, tl.sum(l1))
    tl.store(out + 2 * n, tl.sum(l1_clamped))
    tl.store(out + 3 * n, tl.sum(squares))
    if MASKED:
        tl.store(out + 4 * n, tl.sum(counted))


@triton.jit
def _finish(partials_ptr, values_ptr, scale, lambda_dssim, n, MASKED: tl.constexpr):
    """Sums of partials, in a fixed order, to the five values; scale is 1 / (3 H W)."""
    dssim = tl.zeros([BLOCK], tl.float32)
    l1, l1_clamped, squares, counted = dssim, dssim, dssim, dssim
    for first in range(0, n, BLOCK):
        i = first + tl.arange(0, BLOCK)
        dssim += tl.load(partials_ptr + i, mask=i < n, other=0.0)
        l1 += tl.load(partials_ptr + n + i, mask=i < n, other=0.0)
        l1_clamped += tl.load(partials_ptr + 2 * n + i, mask=i < n, other=0.0)
        squares += tl.load(partials_ptr + 3 * n + i, mask=i < n, other=0.0)
        if MASKED:
            counted += tl.load(partials_ptr + 4 * n + i, mask=i < n, other=0.0)
    mean_dssim, mean_l1 = tl.sum(dssim) * scale, tl.sum(l1) * scale
    tl.store(values_ptr, (1.0 - lambda_dssim) * mean_l1 + lambda_dssim * mean_dssim)
    tl.store(values_ptr + 1, mean_l1)
    tl.store(values_ptr + 2, 1.0 - mean_dssim)
    if MASKED:
        scale = 1.0 / tl.maximum(tl.sum(counted), 1.0)
    tl.store(values_ptr + 3, tl.sum(l1_clamped) * scale)
    tl.store(values_ptr + 4, tl.sum(squares) * scale)


@triton.jit(do_not_specialize=["H", "W", "bands", "blocks", "n"])
def _ssim_gradient_kernel(
    colors_ptr,  # [H, 3W]
    target_ptr,  # [H, 3W] or [H, W]
    weights_ptr,  # [5, 2, 16, 16]
    maps_ptr,  # [3, ceil(H/2), map_pitch, 2, 2]
    partials_ptr,  # [4, n]
    values_ptr,  # [5] out
    v_colors_ptr,  # [H, 3W] out
    scale,
    lambda_dssim,
    H,
    W,
    bands,
    blocks,
    n,
    BYTES: tl.constexpr,
    MASKED: tl.constexpr,
    GRADIENT: tl.constexpr,
    ALIGN: tl.constexpr,
):
    program = tl.program_id(0)
    # the first program has no part of the image
    if program == 0:
        _finish(partials_ptr, values_ptr, scale, lambda_dssim, n, MASKED)
    elif GRADIENT:
        P = pitch_of(W, ALIGN)
        y0, first, end = part_of(program - 1, bands, blocks, P)
        weights = all_weights(weights_ptr)
        k, column, last = place_of_map()
        pitch, pairs = map_pitch(W), (H + 1) // 2
        # own pairs of rows, and 4 above and below, of which 3 count
        own_pair, pair = y0 // 2 + k, y0 // 2 + k - 4 + 8 * (k // 4)
        own_rows, rows = own_pair < pairs, (pair >= 0) & (pair < pairs) & (k >= 1) & (k < 7)
        own_at = own_pair * (pitch * 4) + column * 4 + last
        at = pair * (pitch * 4) + column * 4 + last
        plane = pairs.to(tl.int64) * pitch * 4
        out_row, out_column = place_of_product(ALIGN)
        out_at = (y0 + out_row) * P + out_column

        m_left = tl.zeros([SIDE, SIDE], tl.float32)
        m_here, p_left, p_here, q_left, q_here = m_left, m_left, m_left, m_left, m_left
        for block in tl.range(first - 1, end + 1, num_stages=1):
            x = block * SIDE
            inside = (x + column >= 0) & (x + column < pitch)
            own_in, in_ = inside & own_rows, inside & rows
            here = maps_ptr + x * 4
            v_mean, m_left, m_here = blur_map(
                here, own_at, own_in, at, in_, m_left, m_here, weights
            )
            v_p_square, p_left, p_here = blur_map(
                here + plane, own_at, own_in, at, in_, p_left, p_here, weights
            )
            v_q_square, q_left, q_here = blur_map(
                here + 2 * plane, own_at, own_in, at, in_, q_left, q_here, weights
            )
            x -= SIDE
            out_inside = (y0 + out_row < H) & (x + out_column < P) & (block > first)
            a = tl.load(colors_ptr + x + out_at, mask=out_inside, other=0.0)
            out_y = y0 + out_row
            stored = load_target(target_ptr, x, out_y, out_column, out_at, out_inside, W, MASKED)
            b = to_truth(stored, a, BYTES, MASKED)
            # b / 255 rounded as a division is, for all 256
            b = b + (256.0 * b) * REST if BYTES else b
            q = a - b
            v = from_product(v_mean, ALIGN) + (a + b - 1.0) * from_product(v_p_square, ALIGN)
            v += q * from_product(v_q_square, ALIGN)
            v_l1 = (1.0 - lambda_dssim) * scale
            sign = tl.where(q > 0.0, v_l1, tl.where(q < 0.0, -v_l1, 0.0))
            v = sign - (4.0 * lambda_dssim * scale) * v
            if MASKED:
                v = tl.where(stored < 0, v, 0.0)
            tl.store(v_colors_ptr + x + out_at, v, mask=out_inside)


@functools.cache
def _programs_on(device: torch.device, warps: int) -> int:
    """Programs of so many warps per SM that a device runs at once."""
    if device.type != "cuda":
        return 1  # the interpreter
    return warps * torch.cuda.get_device_properties(device).multi_processor_count


def _segments(H: int, W: int, programs: int) -> tuple[int, int]:
    """Blocks of columns per program, and segments of a band, for about so many programs."""
    blocks = -(-3 * W // 16)
    per_program = -(-blocks // max(1, programs // -(-H // BAND)))
    return per_program, -(-blocks // per_program)


def photometric(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3 or 4]
    lambda_dssim: float,
    gradient: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:  # [5], [H, W, 3], [4 or 5, segments, bands]
    """Values, if wanted the gradient, and the values' sums over parts of bands of 16 rows."""
    H, W, _ = colors.shape
    device = colors.device
    masked = target.shape[2] == 4
    constants = {
        "BYTES": target.dtype == torch.uint8,
        "MASKED": masked,
        "GRADIENT": gradient,
        "ALIGN": 4 if W % 4 == 0 else 2 if W % 2 == 0 else 1,
    }
    weights, bands = weights_on(device), -(-H // BAND)
    blocks, segments = _segments(H, W, _programs_on(device, MAPS_WARPS))
    n, shape = bands * segments, (4 + masked, segments, bands)
    target = target.view(torch.int32) if masked else target
    values = torch.empty(5, device=device)
    partials = torch.empty((4 + masked) * n, device=device)
    maps, v_colors = None, None
    if gradient:
        maps = torch.empty(48 * -(-H // 2) * -(-3 * W // 4), dtype=torch.float16, device=device)
        v_colors = torch.empty_like(colors)
    memory, size = (colors, target, weights, maps, partials), (H, W, bands, blocks, n)
    constants |= {"num_warps": 1, "maxnreg": MAPS_REGISTERS}
    launch(_ssim_maps_kernel, (n,), *memory, *size, **constants)
    blocks, segments = _segments(H, W, _programs_on(device, GRADIENT_WARPS))
    grid = (1 + bands * segments if gradient else 1,)
    factors, size = (1.0 / (3 * H * W), lambda_dssim), (H, W, bands, blocks, n)
    constants |= {"maxnreg": GRADIENT_REGISTERS}
    launch(_ssim_gradient_kernel, grid, *memory, values, v_colors, *factors, *size, **constants)
    return values, v_colors, partials.view(shape)


def photometric_values(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3 or 4]
    lambda_dssim: float,
) -> Tensor:  # [5]
    """The values of photometric_gradient alone."""
    return photometric(colors.detach(), target, lambda_dssim, False)[0]


def photometric_gradient(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3 or 4]
    lambda_dssim: float,
) -> tuple[Tensor, Tensor]:  # [5], [H, W, 3]
    """kernels.photometric_gradient of checked, contiguous tensors."""
    values, v_colors, _ = photometric(colors.detach(), target, lambda_dssim, True)
    assert v_colors is not None
    return values, v_colors


class _PhotometricLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, colors: Tensor, target: Tensor, lambda_dssim: float) -> Tensor:
        values, v_colors, _ = photometric(colors, target, lambda_dssim, ctx.needs_input_grad[0])
        ctx.save_for_backward(v_colors)
        return values[0]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, v: Tensor
    ) -> tuple[Tensor | None, None, None]:
        (v_colors,) = ctx.saved_tensors
        return v_colors * v, None, None


def photometric_loss(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3 or 4]
    lambda_dssim: float,
) -> Tensor:  # []
    """The loss with its gradient, which is formed in the forward and scaled in the backward."""
    return _PhotometricLoss.apply(colors, target, lambda_dssim)
