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
blurred less their mean over the tile's pixels, which changes no variance.

A blur of a tile is two products with a banded matrix, B^T X B, on tensor cores: values and weights
are split in two halves of fp16, and the three larger of four products kept, exact to 2^-21 beside
the tile's largest value. On Hopper a program of four warps reads 64x64 values of one channel and
gives 54x52; elsewhere two warps read 32x32. Instructions of both passes per value of the image, as
compiled: sm_90 with 64 and four warps 360, with eight warps 530, with 32 and two warps 690; sm_80
the same 690, while 64 spills. Multiplying from the left first leaves the second product's operand
in registers. Sums of shifted loads, with the columns' running sums in registers, were reckoned at
350 and at a fifth of the programs, too few for a GPU at 800x533.

    colors [H W 3] float32, target [H W 3] uint8 or float32, both contiguous
    maps [3 3 H P] float32: the blurs' arguments by channel; P is W made even, the padding 0
    partials [4 tiles] float32: sums of 1 - S, |a - b|, and |.| and square of clamp(a, 0, 1) - b
"""

# Triton types its device functions as returning nothing.
# pyright: reportGeneralTypeIssues=false

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import ex2, rcp
from .launch import launch
from .reference.ssim import C1, C2, SIGMA, WINDOW

# A program that reads SIZE x SIZE gives less by ROW_HALO and COLUMN_HALO. One column more than the
# window needs lets reads begin at an even one.
ROW_HALO = tl.constexpr(WINDOW - 1)
COLUMN_HALO = tl.constexpr(WINDOW + 1)
CENTER = tl.constexpr(WINDOW // 2)
DOUBLE_C1 = tl.constexpr(2.0 * C1)
DOUBLE_C2 = tl.constexpr(2.0 * C2)
# a weight is 2^(EXPONENT d^2 + SCALE)
EXPONENT = tl.constexpr(-math.log2(math.e) / (2.0 * SIGMA**2))
SCALE = tl.constexpr(
    -math.log2(sum(math.exp(-((i - WINDOW // 2) ** 2) / (2.0 * SIGMA**2)) for i in range(WINDOW)))
)
REST = tl.constexpr(1.0 / 255.0 - 1.0 / 256.0)
LARGEST = tl.constexpr(63.0)  # colours beyond are cut for S alone: (4 LARGEST)^2 must fit fp16
LARGEST_MAP = tl.constexpr(65000.0)
BLOCK = tl.constexpr(1024)  # partial sums read at once


@triton.jit
def _split(x):
    """High and low half; their sum is x to 2^-22."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _window(SIZE: tl.constexpr):
    """Halves of the [SIZE, SIZE] matrix whose row i holds the window from column i on."""
    i = tl.arange(0, SIZE).to(tl.float32)
    d = i[None, :] - i[:, None] - CENTER
    return _split(ex2(tl.where(tl.abs(d) <= CENTER, d * d * EXPONENT + SCALE, -1000.0)))


@triton.jit
def _blur(x, high, low):
    """Row i and column j of the result are centred at i + CENTER, j + CENTER of x."""
    x_high, x_low = _split(x)
    y = tl.dot(high, x_high, tl.dot(low, x_high, tl.dot(high, x_low)))
    y_high, y_low = _split(y)
    high, low = tl.trans(high), tl.trans(low)
    return tl.dot(y_high, high, tl.dot(y_high, low, tl.dot(y_low, high)))


@triton.jit
def _clamp(x, low, high):
    """NaN stays NaN."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _load_pair(colors_ptr, target_ptr, at, mask, BYTES: tl.constexpr):
    """Rendering and ground truth, both in 0..1."""
    a = tl.load(colors_ptr + at, mask=mask, other=0.0)
    b = tl.load(target_ptr + at, mask=mask, other=0)
    if BYTES:
        # 2^23 + b as bits: conversions from integers are slow
        b = (b.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
        # b / 255 rounded as a division is, for all 256
        b = b * (1.0 / 256.0) + b * REST
    return a, b


@triton.jit
def _place(program, tiles_x, SIZE: tl.constexpr):
    """Channel, first row and first column of a program's part of the result."""
    tile = program // 3
    y = tile // tiles_x * (SIZE - ROW_HALO)
    x = tile % tiles_x * (SIZE - COLUMN_HALO)
    return program % 3, y, x


@triton.jit
def _pitch(W):
    """W made even, as the compiler can see."""
    return (W + 1) // 2 * 2


@triton.jit(do_not_specialize=["H", "W", "tiles_x", "n"])
def _ssim_maps_kernel(
    colors_ptr,  # [H, W, 3]
    target_ptr,  # [H, W, 3]
    maps_ptr,  # [3, 3, H, P] out
    partials_ptr,  # [4, n] out
    H,
    W,
    tiles_x,
    n,
    BYTES: tl.constexpr,
    GRADIENT: tl.constexpr,
    SIZE: tl.constexpr,
):
    ROWS: tl.constexpr = SIZE - ROW_HALO
    COLUMNS: tl.constexpr = SIZE - COLUMN_HALO
    program = tl.program_id(0)
    channel, y0, x0 = _place(program, tiles_x, SIZE)
    i = tl.arange(0, SIZE)
    y = y0 - CENTER + i
    x = x0 - CENTER + i
    inside = ((y >= 0) & (y < H))[:, None] & ((x >= 0) & (x < W))[None, :]
    at = (y * (3 * W))[:, None] + (x * 3 + channel)[None, :]
    a, b = _load_pair(colors_ptr, target_ptr, at, inside, BYTES)
    rows, columns = (i >= CENTER) & (i < CENTER + ROWS), (i >= CENTER) & (i < CENTER + COLUMNS)
    own = rows[:, None] & columns[None, :]
    # outside the image both are 0
    l1 = tl.sum(tl.where(own, tl.abs(a - b), 0.0))
    error = tl.where(own, _clamp(a, 0.0, 1.0) - b, 0.0)
    tl.store(partials_ptr + n + program, l1)
    tl.store(partials_ptr + 2 * n + program, tl.sum(tl.abs(error)))
    tl.store(partials_ptr + 3 * n + program, tl.sum(error * error))

    a = _clamp(a, -LARGEST, LARGEST)
    b = _clamp(b, -LARGEST, LARGEST) if not BYTES else b
    high, low = _window(SIZE)
    height = tl.minimum(y0 + (SIZE - CENTER), H) - tl.maximum(y0 - CENTER, 0)
    width = tl.minimum(x0 + (SIZE - CENTER), W) - tl.maximum(x0 - CENTER, 0)
    share = 1.0 / (height * width).to(tl.float32)
    p = a + b
    p_middle = tl.sum(p) * share
    p -= p_middle
    p_mean = _blur(p, high, low)
    p_var = _blur(p * p, high, low) - p_mean * p_mean
    q = a - b
    q_middle = tl.sum(q) * share
    q -= q_middle
    q_mean = _blur(q, high, low)
    q_var = _blur(q * q, high, low) - q_mean * q_mean

    y = y0 + i
    x = x0 + i
    inside = ((y < H) & (i < ROWS))[:, None] & ((x < W) & (i < COLUMNS))[None, :]
    p_mean += p_middle
    q_mean += q_middle
    q_square = q_mean * q_mean
    means = p_mean * p_mean + (q_square + DOUBLE_C1)
    variances = p_var + (q_var + DOUBLE_C2)
    # outside the image both quotients are 0, with all that follows
    both = tl.where(inside, rcp(means * variances), 0.0)
    by_means, by_variances = both * variances, both * means
    e = q_square * by_means
    f = q_var * by_variances
    tl.store(partials_ptr + program, 2.0 * tl.sum(e + f - 2.0 * e * f))
    if GRADIENT:
        g = (1.0 - 2.0 * e) * by_variances
        h = (1.0 - 2.0 * f) * by_means
        gf = g * f
        he = h * e
        v_q_square = gf - g
        v_mean = p_mean * he - (p_mean - 1.0) * gf + q_mean * ((he - h) - v_q_square)
        P = _pitch(W)
        plane = H.to(tl.int64) * P
        out = maps_ptr + channel * plane + (y * P)[:, None] + x[None, :]
        inside = ((y < H) & (i < ROWS))[:, None] & ((x < P) & (i < COLUMNS))[None, :]
        tl.store(out, _clamp(v_mean, -LARGEST_MAP, LARGEST_MAP), mask=inside)
        tl.store(out + 3 * plane, gf, mask=inside)
        tl.store(out + 6 * plane, v_q_square, mask=inside)


@triton.jit
def _total(partials_ptr, n):
    """The sum of partials, in a fixed order."""
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n, BLOCK):
        i = first + tl.arange(0, BLOCK)
        sums += tl.load(partials_ptr + i, mask=i < n, other=0.0)
    return tl.sum(sums)


@triton.jit
def _finish(partials_ptr, values_ptr, scale, lambda_dssim, n):
    """Sums of partials to the five values; scale is 1 / (3 H W)."""
    dssim = _total(partials_ptr, n) * scale
    l1 = _total(partials_ptr + n, n) * scale
    tl.store(values_ptr, (1.0 - lambda_dssim) * l1 + lambda_dssim * dssim)
    tl.store(values_ptr + 1, l1)
    tl.store(values_ptr + 2, 1.0 - dssim)
    tl.store(values_ptr + 3, _total(partials_ptr + 2 * n, n) * scale)
    tl.store(values_ptr + 4, _total(partials_ptr + 3 * n, n) * scale)


@triton.jit(do_not_specialize=["H", "W", "tiles_x", "n"])
def _ssim_gradient_kernel(
    colors_ptr,  # [H, W, 3]
    target_ptr,  # [H, W, 3]
    maps_ptr,  # [3, 3, H, P]
    partials_ptr,  # [4, n]
    values_ptr,  # [5] out
    v_colors_ptr,  # [H, W, 3] out
    scale,
    lambda_dssim,
    H,
    W,
    tiles_x,
    n,
    BYTES: tl.constexpr,
    GRADIENT: tl.constexpr,
    SIZE: tl.constexpr,
):
    ROWS: tl.constexpr = SIZE - ROW_HALO
    COLUMNS: tl.constexpr = SIZE - COLUMN_HALO
    program = tl.program_id(0)
    # the first program has no tile
    if program == 0:
        _finish(partials_ptr, values_ptr, scale, lambda_dssim, n)
    elif GRADIENT:
        channel, y0, x0 = _place(program - 1, tiles_x, SIZE)
        i = tl.arange(0, SIZE)
        y = y0 - CENTER + i
        x = x0 - CENTER - 1 + i
        # P and x0 are even, so that values go in pairs
        P = _pitch(W)
        plane = H.to(tl.int64) * P
        inside = ((y >= 0) & (y < H))[:, None] & ((x >= 0) & (x < P))[None, :]
        at = maps_ptr + channel * plane + (y * P)[:, None] + x[None, :]
        high, low = _window(SIZE)
        v_mean = _blur(tl.load(at, mask=inside, other=0.0), high, low)
        v_p_square = _blur(tl.load(at + 3 * plane, mask=inside, other=0.0), high, low)
        v_q_square = _blur(tl.load(at + 6 * plane, mask=inside, other=0.0), high, low)

        y = y0 + i
        x = x0 - 1 + i
        columns = (i >= 1) & (i < 1 + COLUMNS) & (x < W)
        inside = ((y < H) & (i < ROWS))[:, None] & columns[None, :]
        at = (y * (3 * W))[:, None] + (x * 3 + channel)[None, :]
        a, b = _load_pair(colors_ptr, target_ptr, at, inside, BYTES)
        q = a - b
        v = v_mean + (a + b - 1.0) * v_p_square + q * v_q_square
        v_l1 = (1.0 - lambda_dssim) * scale
        sign = tl.where(q > 0.0, v_l1, tl.where(q < 0.0, -v_l1, 0.0))
        tl.store(v_colors_ptr + at, sign - (4.0 * lambda_dssim * scale) * v, mask=inside)


@functools.cache
def _size_on(device: torch.device) -> int:
    if device.type != "cuda":
        return tile_size(9)
    return tile_size(torch.cuda.get_device_capability(device)[0])


def tile_size(major: int) -> int:
    """What a program reads a side, by the compute capability's first digit."""
    return 64 if major == 9 else 32


def photometric(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3]
    lambda_dssim: float,
    gradient: bool,
    size: int | None = None,
) -> tuple[Tensor, Tensor | None]:  # [5], [H, W, 3]
    """Values and, if wanted, the gradient; `size` is tile_size of another capability."""
    H, W, _ = colors.shape
    size = _size_on(colors.device) if size is None else size
    device, bytes_, warps = colors.device, target.dtype == torch.uint8, size // 16
    tiles_x = -(-W // (size - (WINDOW + 1)))
    n = 3 * tiles_x * -(-H // (size - (WINDOW - 1)))
    values = torch.empty(5, device=device)
    partials = torch.empty(4 * n, device=device)
    maps = torch.empty(9 * H * (W + W % 2), device=device) if gradient else None
    v_colors = torch.empty_like(colors) if gradient else None
    launch(
        _ssim_maps_kernel, (n,),
        colors, target, maps, partials, H, W, tiles_x, n,
        num_warps=warps, BYTES=bytes_, GRADIENT=gradient, SIZE=size,
    )  # fmt: skip
    launch(
        _ssim_gradient_kernel, (1 + n if gradient else 1,),
        colors, target, maps, partials, values, v_colors,
        1.0 / (3 * H * W), lambda_dssim, H, W, tiles_x, n,
        num_warps=warps, BYTES=bytes_, GRADIENT=gradient, SIZE=size,
    )  # fmt: skip
    return values, v_colors


def photometric_values(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3]
    lambda_dssim: float,
) -> Tensor:  # [5]
    """The values of photometric_gradient alone."""
    return photometric(colors.detach(), target, lambda_dssim, False)[0]


def photometric_gradient(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3]
    lambda_dssim: float,
) -> tuple[Tensor, Tensor]:  # [5], [H, W, 3]
    """kernels.photometric_gradient of checked, contiguous tensors."""
    values, v_colors = photometric(colors.detach(), target, lambda_dssim, True)
    assert v_colors is not None
    return values, v_colors


class _PhotometricLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, colors: Tensor, target: Tensor, lambda_dssim: float) -> Tensor:
        values, v_colors = photometric(colors, target, lambda_dssim, ctx.needs_input_grad[0])
        ctx.save_for_backward(v_colors)
        return values[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, v: Tensor
    ) -> tuple[Tensor | None, None, None]:
        (v_colors,) = ctx.saved_tensors
        return v_colors * v, None, None


def photometric_loss(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3]
    lambda_dssim: float,
) -> Tensor:  # []
    """The loss with its gradient, which is formed in the forward and scaled in the backward."""
    return _PhotometricLoss.apply(colors, target, lambda_dssim)
