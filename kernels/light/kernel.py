r"""Light on colours, forward and backward: three launches.

Equations stand in kernels/reference/light.py. A program of the first two takes BLOCK pixels; that
of the backward writes sums over them, which the third launch (gradients.py) turns into gradients of
rows and lenses.

    colors, out, and their gradients [H W 3] float32    rows [I 12] or [I 9]    lenses [L 15]
    partials [12 or 24, n] float32: affine v_E; ppisp v_e, v_lens, v_M row by row but for M_33
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import light as reference
from ..runtime.autograd import apply, once_differentiable
from ..runtime.launch import launch
from .gradients import SUMS, light_gradients
from .homography import homography

BLOCK = 512  # pixels per program
# of the backward pass, whose sums need no other warp
BWD_BLOCK, BWD_WARPS = 256, 1
AFFINE = tl.constexpr(reference.AFFINE)
PPISP_NUMBERS = tl.constexpr(reference.PPISP)
LENS = tl.constexpr(reference.LENS_NUMBERS)
EPS = tl.constexpr(reference.EPS)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load_colors(ptr, pixel, inside):
    return (
        tl.load(ptr + 3 * pixel, mask=inside, other=0.0),
        tl.load(ptr + 3 * pixel + 1, mask=inside, other=0.0),
        tl.load(ptr + 3 * pixel + 2, mask=inside, other=0.0),
    )


@triton.jit
def _store_colors(ptr, pixel, inside, red, green, blue):
    tl.store(ptr + 3 * pixel, red, mask=inside)
    tl.store(ptr + 3 * pixel + 1, green, mask=inside)
    tl.store(ptr + 3 * pixel + 2, blue, mask=inside)


@triton.jit
def _place(pixel, H, W):
    """uv of pixels."""
    size = tl.maximum(H, W).to(tl.float32)
    y = pixel // W
    u = ((pixel - y * W).to(tl.float32) + 0.5 - 0.5 * W.to(tl.float32)) / size
    return u, (y.to(tl.float32) + 0.5 - 0.5 * H.to(tl.float32)) / size


@triton.jit
def _falloff(lens_ptr, C: tl.constexpr, u, v):
    """What a channel of a lens lets through, before it is cut to 0..1; and dx, dy, q."""
    dx = u - tl.load(lens_ptr + 5 * C)
    dy = v - tl.load(lens_ptr + 5 * C + 1)
    q = dx * dx + dy * dy
    a1, a2 = tl.load(lens_ptr + 5 * C + 2), tl.load(lens_ptr + 5 * C + 3)
    share = 1.0 + q * (a1 + q * (a2 + q * tl.load(lens_ptr + 5 * C + 4)))
    return share, dx, dy, q


@triton.jit
def _cut(share):
    return tl.minimum(tl.maximum(share, 0.0), 1.0)


@triton.jit(do_not_specialize=["H", "W"])
def _light_kernel(
    colors_ptr,  # [H, W, 3]
    rows_ptr,  # [I, 12] or [I, 9]
    lenses_ptr,  # [L, 15] or None
    lens_of_ptr,  # [I] or None
    index_ptr,  # [1]
    out_ptr,  # [H, W, 3] out
    H,
    W,
    PPISP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < H * W
    index = tl.load(index_ptr)
    red, green, blue = _load_colors(colors_ptr, pixel, inside)
    if PPISP:
        row_ptr = rows_ptr + index * PPISP_NUMBERS
        lens_ptr = lenses_ptr + tl.load(lens_of_ptr + index) * LENS
        gain = tl.exp2(tl.load(row_ptr))
        u, v = _place(pixel, H, W)
        red *= gain * _cut(_falloff(lens_ptr, 0, u, v)[0])
        green *= gain * _cut(_falloff(lens_ptr, 1, u, v)[0])
        blue *= gain * _cut(_falloff(lens_ptr, 2, u, v)[0])
        m11, m12, m13, m21, m22, m23, m31, m32 = homography(row_ptr + 1)
        all_ = red + green + blue
        h3 = m31 * red + m32 * green + all_
        s = all_ / (h3 + EPS)
        x = (m11 * red + m12 * green + m13 * all_) * s
        y = (m21 * red + m22 * green + m23 * all_) * s
        _store_colors(out_ptr, pixel, inside, x, y, h3 * s - x - y)
    else:
        e = rows_ptr + index * AFFINE
        x = red * tl.load(e) + green * tl.load(e + 4) + blue * tl.load(e + 8) + tl.load(e + 3)
        y = red * tl.load(e + 1) + green * tl.load(e + 5) + blue * tl.load(e + 9) + tl.load(e + 7)
        z = red * tl.load(e + 2) + green * tl.load(e + 6) + blue * tl.load(e + 10)
        _store_colors(out_ptr, pixel, inside, x, y, z + tl.load(e + 11))


@triton.jit
def _lens_vjp(lens_ptr, C: tl.constexpr, u, v, x, v_y, sums_ptr, n):
    """The gradient of what comes to a channel, given that of what it lets through."""
    share, dx, dy, q = _falloff(lens_ptr, C, u, v)
    v_share = tl.where((share >= 0.0) & (share <= 1.0), v_y * x, 0.0)
    a1, a2 = tl.load(lens_ptr + 5 * C + 2), tl.load(lens_ptr + 5 * C + 3)
    v_q = v_share * (a1 + q * (2.0 * a2 + 3.0 * q * tl.load(lens_ptr + 5 * C + 4)))
    out = sums_ptr + (1 + 5 * C) * n
    tl.store(out, tl.sum(-2.0 * dx * v_q))
    tl.store(out + n, tl.sum(-2.0 * dy * v_q))
    tl.store(out + 2 * n, tl.sum(v_share * q))
    tl.store(out + 3 * n, tl.sum(v_share * q * q))
    tl.store(out + 4 * n, tl.sum(v_share * q * q * q))
    return v_y * _cut(share)


@triton.jit(do_not_specialize=["H", "W", "n"])
def _light_bwd_kernel(
    colors_ptr,  # [H, W, 3]
    v_out_ptr,  # [H, W, 3]
    rows_ptr,  # [I, 12] or [I, 9]
    lenses_ptr,  # [L, 15] or None
    lens_of_ptr,  # [I] or None
    index_ptr,  # [1]
    v_colors_ptr,  # [H, W, 3] out
    partials_ptr,  # [12 or 24, n] out
    H,
    W,
    n,
    PPISP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    pixel = program * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < H * W
    index, sums = tl.load(index_ptr), partials_ptr + program
    red, green, blue = _load_colors(colors_ptr, pixel, inside)
    v1, v2, v3 = _load_colors(v_out_ptr, pixel, inside)
    if PPISP:
        row_ptr = rows_ptr + index * PPISP_NUMBERS
        lens_ptr = lenses_ptr + tl.load(lens_of_ptr + index) * LENS
        gain = tl.exp2(tl.load(row_ptr))
        u, v = _place(pixel, H, W)
        x_red, x_green, x_blue = red * gain, green * gain, blue * gain
        red = x_red * _cut(_falloff(lens_ptr, 0, u, v)[0])
        green = x_green * _cut(_falloff(lens_ptr, 1, u, v)[0])
        blue = x_blue * _cut(_falloff(lens_ptr, 2, u, v)[0])
        m11, m12, m13, m21, m22, m23, m31, m32 = homography(row_ptr + 1)
        all_ = red + green + blue
        h1 = m11 * red + m12 * green + m13 * all_
        h2 = m21 * red + m22 * green + m23 * all_
        h3 = m31 * red + m32 * green + all_
        inverse = 1.0 / (h3 + EPS)
        s = all_ * inverse
        v1 -= v3
        v2 -= v3
        v_s = v1 * h1 + v2 * h2 + v3 * h3
        v1, v2, v3 = v1 * s, v2 * s, v3 * s - v_s * s * inverse
        v_all = v_s * inverse + v1 * m13 + v2 * m23 + v3
        tl.store(sums + 16 * n, tl.sum(v1 * red))
        tl.store(sums + 17 * n, tl.sum(v1 * green))
        tl.store(sums + 18 * n, tl.sum(v1 * all_))
        tl.store(sums + 19 * n, tl.sum(v2 * red))
        tl.store(sums + 20 * n, tl.sum(v2 * green))
        tl.store(sums + 21 * n, tl.sum(v2 * all_))
        tl.store(sums + 22 * n, tl.sum(v3 * red))
        tl.store(sums + 23 * n, tl.sum(v3 * green))
        v_red = v1 * m11 + v2 * m21 + v3 * m31 + v_all
        v_green = v1 * m12 + v2 * m22 + v3 * m32 + v_all
        v_red = _lens_vjp(lens_ptr, 0, u, v, x_red, v_red, sums, n)
        v_green = _lens_vjp(lens_ptr, 1, u, v, x_green, v_green, sums, n)
        v_blue = _lens_vjp(lens_ptr, 2, u, v, x_blue, v_all, sums, n)
        tl.store(sums, tl.sum(v_red * x_red + v_green * x_green + v_blue * x_blue) * LN2)
        _store_colors(v_colors_ptr, pixel, inside, v_red * gain, v_green * gain, v_blue * gain)
    else:
        e = rows_ptr + index * AFFINE
        tl.store(sums, tl.sum(red * v1))
        tl.store(sums + n, tl.sum(red * v2))
        tl.store(sums + 2 * n, tl.sum(red * v3))
        tl.store(sums + 3 * n, tl.sum(v1))
        tl.store(sums + 4 * n, tl.sum(green * v1))
        tl.store(sums + 5 * n, tl.sum(green * v2))
        tl.store(sums + 6 * n, tl.sum(green * v3))
        tl.store(sums + 7 * n, tl.sum(v2))
        tl.store(sums + 8 * n, tl.sum(blue * v1))
        tl.store(sums + 9 * n, tl.sum(blue * v2))
        tl.store(sums + 10 * n, tl.sum(blue * v3))
        tl.store(sums + 11 * n, tl.sum(v3))
        x = v1 * tl.load(e) + v2 * tl.load(e + 1) + v3 * tl.load(e + 2)
        y = v1 * tl.load(e + 4) + v2 * tl.load(e + 5) + v3 * tl.load(e + 6)
        z = v1 * tl.load(e + 8) + v2 * tl.load(e + 9) + v3 * tl.load(e + 10)
        _store_colors(v_colors_ptr, pixel, inside, x, y, z)


class _Corrected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, colors: Tensor, rows: Tensor, index: Tensor, *more: Any) -> Tensor:
        lenses, lens_of, ctx.regularised = more
        out = torch.empty_like(colors)
        H, W, _ = colors.shape
        memory = colors, rows, lenses, lens_of, index
        options = {"PPISP": lenses is not None, "BLOCK": BLOCK}
        launch(_light_kernel, (-(-H * W // BLOCK),), *memory, out, H, W, **options)
        ctx.save_for_backward(*memory)
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, v_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        colors, rows, lenses, lens_of, index = memory = ctx.saved_tensors
        H, W, _ = colors.shape
        n, kind = -(-H * W // BWD_BLOCK), rows.shape[1]
        v_colors = torch.empty_like(colors)
        partials = torch.empty(SUMS[kind], n, device=colors.device)
        options = {"PPISP": lenses is not None, "BLOCK": BWD_BLOCK}
        both = colors, v_out.contiguous(), *memory[1:], v_colors, partials
        launch(_light_bwd_kernel, (n,), *both, H, W, n, num_warps=BWD_WARPS, **options)
        tables = rows, lenses, lens_of, index
        v_rows, v_lenses = light_gradients(partials, *tables, regularised=ctx.regularised)
        return v_colors, v_rows, None, v_lenses, None, None


def corrected(
    colors: Tensor,
    rows: Tensor,
    index: Tensor,
    lenses: Tensor | None,
    lens_of: Tensor | None,
    regularised: bool,
) -> Tensor:
    """kernels.corrected of checked tensors."""
    tables = (None if x is None else x.contiguous() for x in (lenses, lens_of))
    more = index.to(torch.int32), *tables
    return apply(_Corrected, colors, rows.contiguous(), *more, regularised)
