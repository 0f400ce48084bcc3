"""Kernels of the loss of rendered depths: see kernels/depth/__init__.py for the equations.

With D accumulated depth and A alpha of a pixel, r = A / D is its disparity. From the loss's v and
s = v weight / n_c sign(r - 1/d):

    v_A = s / D,   v_D = - s A / D^2,   and 0 where D is 0

A lane owns a known depth. No pixel is in an image twice, so that nothing is added up in memory:
partial sums of programs make the loss, and gradients are stored where zeros have been.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.autograd import apply, once_differentiable
from ..runtime.launch import empty, launch, zeros

BLOCK = 256  # known depths per program


@triton.jit
def _load(
    depths_ptr, alphas_ptr, rows_ptr, offsets_ptr, pixels_ptr, disparities_ptr, weight_ptr,
    n, area, stride_rows: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Places in the images, which lanes have one, depth, alpha, 1/d and the weight of each."""
    c = tl.program_id(1)
    row = tl.load(rows_ptr + c * stride_rows)
    is_known = (row >= 0) & (row < n)
    first = tl.load(offsets_ptr + row, mask=is_known, other=0)
    end = tl.load(offsets_ptr + row + 1, mask=is_known, other=0)
    k = first + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = k < end
    pixel = tl.load(pixels_ptr + k, mask=inside, other=0)
    at = c.to(tl.int64) * area + pixel
    depth = tl.load(depths_ptr + at, mask=inside, other=0.0)
    alpha = tl.load(alphas_ptr + at, mask=inside, other=0.0)
    known = tl.load(disparities_ptr + k, mask=inside, other=0.0)
    weight = tl.load(weight_ptr) / tl.maximum(end - first, 1).to(tl.float32)
    return at, inside, depth, alpha, known, weight


@triton.jit(do_not_specialize=["n", "area"])
def _depth_loss_kernel(
    depths_ptr,  # [C, area]
    alphas_ptr,  # [C, area]
    rows_ptr,  # [C, stride_rows]
    offsets_ptr,  # [n + 1]
    pixels_ptr,  # [S]
    disparities_ptr,  # [S]
    weight_ptr,  # [1]
    sums_ptr,  # [C, programs] out
    n,
    area,
    stride_rows: tl.constexpr,
    BLOCK: tl.constexpr,
):
    _, inside, depth, alpha, known, weight = _load(
        depths_ptr, alphas_ptr, rows_ptr, offsets_ptr, pixels_ptr, disparities_ptr, weight_ptr,
        n, area, stride_rows, BLOCK,
    )  # fmt: skip
    seen = inside & (depth > 0.0)
    disparity = tl.where(seen, alpha / tl.where(seen, depth, 1.0), 0.0)
    sums = tl.sum(tl.where(inside, weight * tl.abs(disparity - known), 0.0), 0)
    tl.store(sums_ptr + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), sums)


@triton.jit(do_not_specialize=["n", "area"])
def _depth_gradient_kernel(
    depths_ptr,  # [C, area]
    alphas_ptr,  # [C, area]
    rows_ptr,  # [C, stride_rows]
    offsets_ptr,  # [n + 1]
    pixels_ptr,  # [S]
    disparities_ptr,  # [S]
    weight_ptr,  # [1]
    v_loss_ptr,  # [1]
    v_depths_ptr,  # [C, area] out, zeros before
    v_alphas_ptr,  # [C, area] out, zeros before
    n,
    area,
    stride_rows: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at, inside, depth, alpha, known, weight = _load(
        depths_ptr, alphas_ptr, rows_ptr, offsets_ptr, pixels_ptr, disparities_ptr, weight_ptr,
        n, area, stride_rows, BLOCK,
    )  # fmt: skip
    seen = inside & (depth > 0.0)
    inverse = 1.0 / tl.where(seen, depth, 1.0)
    difference = alpha * inverse - known
    s = tl.where(difference > 0.0, 1.0, tl.where(difference < 0.0, -1.0, 0.0))
    s *= weight * tl.load(v_loss_ptr)
    tl.store(v_alphas_ptr + at, s * inverse, mask=seen)
    tl.store(v_depths_ptr + at, -s * alpha * inverse * inverse, mask=seen)


class _DepthLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, depths: Tensor, alphas: Tensor, *known: Any) -> Tensor:
        *tensors, most, weight = known
        rows, offsets = tensors[:2]
        grid = (max(-(-most // BLOCK), 1), len(rows))
        sums = empty((len(rows) * grid[0],), torch.float32, depths.device)
        numbers = len(offsets) - 1, depths[0].numel()
        memory = (depths, alphas, *tensors, weight)
        launch(
            _depth_loss_kernel, grid, *memory, sums, *numbers,
            stride_rows=rows.stride(0), BLOCK=BLOCK,
        )  # fmt: skip
        ctx.save_for_backward(*memory)
        ctx.grid, ctx.numbers = grid, numbers
        return sums.sum()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, v_loss: Tensor
    ) -> tuple[Tensor | None, ...]:
        memory = ctx.saved_tensors
        depths, rows = memory[0], memory[2]
        v_depths, v_alphas = (zeros(depths.shape, torch.float32, depths.device) for _ in range(2))
        launch(
            _depth_gradient_kernel, ctx.grid, *memory, v_loss.contiguous(), v_depths, v_alphas,
            *ctx.numbers, stride_rows=rows.stride(0), BLOCK=BLOCK,
        )  # fmt: skip
        return v_depths, v_alphas, *[None] * 6


def depth_loss(
    depths: Tensor,
    alphas: Tensor,
    rows: Tensor,
    offsets: Tensor,
    pixels: Tensor,
    disparities: Tensor,
    most: int,
    weight: Tensor,
) -> Tensor:
    images = depths.contiguous(), alphas.contiguous()
    return apply(_DepthLoss, *images, rows, offsets, pixels, disparities, most, weight)
