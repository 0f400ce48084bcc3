r"""Which anchors a camera sees: one lane per anchor.

kernels/reference/decoder.py has the equations; a program reads six of an anchor's nine numbers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constants import EPS2D, FOV_MARGIN
from ..reference.decoder import SIGMAS
from ..runtime.launch import empty, launch

BLOCK = 256  # anchors per program


@triton.jit
def _spread(r0, r1, r2, v0, v1, v2):
    """Sum of squares under the variances along the axes."""
    return r0 * r0 * v0 + r1 * r1 * v1 + r2 * r2 * v2


@triton.jit(do_not_specialize=["N", "width", "height"])
def _seen_kernel(
    anchors_ptr,  # [N, 3]
    scales_ptr,  # [N, 6]
    viewmat_ptr,  # [4, 4]
    K_ptr,  # [3, 3]
    seen_ptr,  # [N] bool out
    N,
    width,
    height,
    near,
    MARGIN: tl.constexpr,
    SIGMAS: tl.constexpr,
    EPS2D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    a = tl.load(anchors_ptr + 3 * n, mask=inside, other=0.0)
    b = tl.load(anchors_ptr + 3 * n + 1, mask=inside, other=0.0)
    c = tl.load(anchors_ptr + 3 * n + 2, mask=inside, other=0.0)
    v0 = tl.exp(2.0 * tl.load(scales_ptr + 6 * n, mask=inside, other=0.0))
    v1 = tl.exp(2.0 * tl.load(scales_ptr + 6 * n + 1, mask=inside, other=0.0))
    v2 = tl.exp(2.0 * tl.load(scales_ptr + 6 * n + 2, mask=inside, other=0.0))
    r00, r01, r02 = tl.load(viewmat_ptr), tl.load(viewmat_ptr + 1), tl.load(viewmat_ptr + 2)
    r10, r11, r12 = tl.load(viewmat_ptr + 4), tl.load(viewmat_ptr + 5), tl.load(viewmat_ptr + 6)
    r20, r21, r22 = tl.load(viewmat_ptr + 8), tl.load(viewmat_ptr + 9), tl.load(viewmat_ptr + 10)
    x = r00 * a + r01 * b + r02 * c + tl.load(viewmat_ptr + 3)
    y = r10 * a + r11 * b + r12 * c + tl.load(viewmat_ptr + 7)
    z = r20 * a + r21 * b + r22 * c + tl.load(viewmat_ptr + 11)
    fx, cx = tl.load(K_ptr), tl.load(K_ptr + 2)
    fy, cy = tl.load(K_ptr + 4), tl.load(K_ptr + 5)
    depth = tl.maximum(z, near)
    mx, my = MARGIN * 0.5 * width / fx, MARGIN * 0.5 * height / fy
    tx = tl.minimum(tl.maximum(x / depth, -cx / fx - mx), (width - cx) / fx + mx)
    ty = tl.minimum(tl.maximum(y / depth, -cy / fy - my), (height - cy) / fy + my)
    fx, fy = fx / depth, fy / depth
    j0, j1, j2 = (r00 - tx * r20) * fx, (r01 - tx * r21) * fx, (r02 - tx * r22) * fx
    k0, k1, k2 = (r10 - ty * r20) * fy, (r11 - ty * r21) * fy, (r12 - ty * r22) * fy
    xx = _spread(j0, j1, j2, v0, v1, v2) + EPS2D
    yy = _spread(k0, k1, k2, v0, v1, v2) + EPS2D
    xy = j0 * k0 * v0 + j1 * k1 * v1 + j2 * k2 * v2
    half = 0.5 * (xx - yy)
    largest = 0.5 * (xx + yy) + tl.sqrt(half * half + xy * xy)
    radius = tl.ceil(SIGMAS * tl.sqrt(largest))
    u, v = fx * x + cx, fy * y + cy
    seen = (z > near) & (u + radius >= 1.0) & (u - radius < width)
    seen = seen & (v + radius >= 1.0) & (v - radius < height)
    tl.store(seen_ptr + n, seen, mask=inside)


def seen_anchors(
    anchors: Tensor,
    scales: Tensor,
    viewmat: Tensor,
    K: Tensor,
    width: int,
    height: int,
    near: float,
) -> Tensor:  # [N] bool
    n = len(anchors)
    seen = empty((n,), torch.bool, anchors.device)
    tensors = (x.detach().contiguous() for x in (anchors, scales, viewmat, K))
    launch(
        _seen_kernel,
        (-(-n // BLOCK),),
        *tensors,
        seen,
        n,
        width,
        height,
        float(near),
        MARGIN=FOV_MARGIN,
        SIGMAS=SIGMAS,
        EPS2D=EPS2D,
        BLOCK=BLOCK,
    )
    return seen
