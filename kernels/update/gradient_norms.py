r"""Image-space gradients of Gaussians, summed over the views that see them, in one launch.

    gradients[n] += sum over c of |(W/2 v_x, H/2 v_y)|    views[n] += number of those c

over the cameras c in which both radii of Gaussian n are positive; (v_x, v_y) is the gradient of its
image position in pixels, which W/2 and H/2 turn into NDC (Kerbl et al. 2023, section 5.2).

    v_means2d [C, N, 2] float32, any strides    radii [C, N, 2] int32
    gradients, views [N] float32

A lane owns a Gaussian and walks through the cameras. Where `skip` is not 0, nothing is added.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.launch import empty, launch

BLOCK = 256  # Gaussians per program


@triton.jit(do_not_specialize=["C", "N", "stride_c", "stride_n", "stride_x"])
def _gradient_norms_kernel(
    v_means2d_ptr,  # [C, N, 2]
    radii_ptr,  # [C, N, 2]
    gradients_ptr,  # [N] in and out
    views_ptr,  # [N] in and out
    skip_ptr,  # [1] or None
    C,
    N,
    stride_c,
    stride_n,
    stride_x,
    half_width,
    half_height,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    if skip_ptr is not None:
        inside = inside & (tl.load(skip_ptr) == 0)
    n = n.to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    count = tl.zeros([BLOCK], tl.float32)
    for c in range(C):
        row = c * N + n
        rx = tl.load(radii_ptr + 2 * row, mask=inside, other=0)
        ry = tl.load(radii_ptr + 2 * row + 1, mask=inside, other=0)
        visible = (rx > 0) & (ry > 0)
        v_ptr = v_means2d_ptr + c * stride_c.to(tl.int64) + n * stride_n
        x = tl.load(v_ptr, mask=visible, other=0.0) * half_width
        y = tl.load(v_ptr + stride_x, mask=visible, other=0.0) * half_height
        total += tl.sqrt_rn(x * x + y * y)
        count += tl.where(visible, 1.0, 0.0)
    seen = inside & (count > 0.0)
    old = tl.load(gradients_ptr + n, mask=seen, other=0.0)
    tl.store(gradients_ptr + n, old + total, mask=seen)
    old = tl.load(views_ptr + n, mask=seen, other=0.0)
    tl.store(views_ptr + n, old + count, mask=seen)


@triton.jit(do_not_specialize=["C", "N"])
def _count_views_kernel(
    radii_ptr,  # [C, N, 2]
    views_ptr,  # [N] out
    C,
    N,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    count = tl.zeros([BLOCK], tl.float32)
    for c in range(C):
        row = c * N.to(tl.int64) + n
        rx = tl.load(radii_ptr + 2 * row, mask=inside, other=0)
        ry = tl.load(radii_ptr + 2 * row + 1, mask=inside, other=0)
        count += tl.where((rx > 0) & (ry > 0), 1.0, 0.0)
    tl.store(views_ptr + n, count, mask=inside)


def count_views(radii: Tensor) -> Tensor:
    C, N, _ = radii.shape
    views = empty((N,), torch.float32, radii.device)
    launch(_count_views_kernel, (-(-N // BLOCK),), radii.contiguous(), views, C, N, BLOCK=BLOCK)
    return views


def add_gradient_norms(
    v_means2d: Tensor,
    radii: Tensor,
    gradients: Tensor,
    views: Tensor,
    width: int,
    height: int,
    skip: Tensor | None,
) -> None:
    C, N, _ = v_means2d.shape
    memory = (v_means2d, radii.contiguous(), gradients, views, skip)
    numbers = (C, N, *v_means2d.stride(), 0.5 * width, 0.5 * height)
    launch(_gradient_norms_kernel, (-(-N // BLOCK),), *memory, *numbers, BLOCK=BLOCK)
