r"""A step of camera poses: from the gradients of world-to-camera matrices to refined motions.

Image k is rendered from V = D_k V0, its given matrix moved in camera space by a rigid D_k. For

    D_k <- Exp(xi) D_k,   xi = (tau, w):      v_tau = v_t,   v_w = sum_j R_j x v_R,j + t x v_t

at xi = 0, over the columns R_j of V's rotation, and t. As
D_k takes the step at once, xi is 0 again and the gradient exact in every step. Adam (Kingma and Ba
2015, algorithm 1) makes xi of it, the moments and the number t of steps being those of image k
alone, which no other image's step touches:

    m <- m + (1 - beta1) (g - m),  v <- beta2 v + (1 - beta2) g^2
    xi = - rate m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)       tau in `unit`s

    Exp(xi) = [R | V tau],  R = I + a W + b W^2,  V = I + b W + c W^2,  W = [w]x,  s = |w|^2
    a = sin|w| / |w|,  b = (1 - cos|w|) / s,  c = (|w| - sin|w|) / |w|^3, by their series: steps are
    far below a radian. Then the first two rows of D_k's rotation are made orthonormal, and the
    third is their cross product, so that rounding does not add up.

Where motions are `centred`, xi is less by the mean of all D_k's small motions, (t_k, w_k): what all
cameras share in their own spaces the scene follows almost without a change of any image, so nothing
but chance would say where it goes. It falls by a factor of e while every image comes once.

A program owns a camera of the step. Where an image is there more than once, the first program takes
the sum of the gradients. The rate lies in memory, so that a CUDA graph can be replayed with others.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.linalg import (
    Vec3,
    add3,
    combine3,
    cross3,
    dot3,
    load3,
    normalize3,
    scale3,
    store3,
)
from ..runtime.launch import launch

BLOCK = 64  # images at a time, of the mean


@triton.jit
def _column(ptr, k):
    """Column k of a matrix whose rows are four floats long."""
    return Vec3(tl.load(ptr + k), tl.load(ptr + 4 + k), tl.load(ptr + 8 + k))


@triton.jit
def _motion_gradient(V, v_V):
    """v_tau and v_w of a camera, from pointers to its matrix and that one's gradient."""
    v_t = _column(v_V, 3)
    v_w = cross3(_column(V, 3), v_t)
    for k in tl.static_range(3):
        v_w = add3(v_w, cross3(_column(V, k), _column(v_V, k)))
    return v_t, v_w


@triton.jit
def _adam(m_ptr, v_ptr, g, beta1, beta2, bias1, bias2, eps, inside):
    """Moments of three numbers after a step, stored, and the direction of the step."""
    m, v = load3(m_ptr, inside), load3(v_ptr, inside)
    m = combine3(beta1, m, 1.0 - beta1, g)
    v = combine3(beta2, v, 1.0 - beta2, Vec3(g.x * g.x, g.y * g.y, g.z * g.z))
    store3(m_ptr, m, inside)
    store3(v_ptr, v, inside)
    return Vec3(
        m.x / bias1 / (tl.sqrt(v.x / bias2) + eps),
        m.y / bias1 / (tl.sqrt(v.y / bias2) + eps),
        m.z / bias1 / (tl.sqrt(v.z / bias2) + eps),
    )


@triton.jit
def _turn(w, a, b, x):
    """x + a w x x + b w x (w x x)."""
    wx = cross3(w, x)
    return add3(x, combine3(a, wx, b, cross3(w, wx)))


@triton.jit(do_not_specialize=["n"])
def _mean_motion_kernel(
    deltas_ptr,  # [n + 1, 3, 4]
    mean_ptr,  # [6] out
    n,
    BLOCK: tl.constexpr,
):
    """Means of translations and of small rotations, a program each number."""
    number = tl.program_id(0)
    # w is half of (D_21 - D_12, D_02 - D_20, D_10 - D_01)
    plus = tl.where(number < 3, number * 4 + 3, tl.where(number == 3, 9, (number - 4) * 2 + 2))
    minus = tl.where(number == 3, 6, tl.where(number == 4, 8, 1))
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n, BLOCK):
        row = first + tl.arange(0, BLOCK)
        x = tl.load(deltas_ptr + row * 12 + plus, mask=row < n, other=0.0)
        y = tl.load(deltas_ptr + row * 12 + minus, mask=row < n, other=0.0)
        total += tl.where(number < 3, x, 0.5 * (x - y))
    tl.store(mean_ptr + number, tl.sum(total) / n)


@triton.jit(do_not_specialize=["n", "C"])
def _step_poses_kernel(
    deltas_ptr,  # [n + 1, 3, 4] in and out
    exp_avg_ptr,  # [n, 6] in and out
    exp_avg_sq_ptr,  # [n, 6] in and out
    steps_ptr,  # [n] in and out
    rows_ptr,  # [C, stride_rows]
    viewmats_ptr,  # [C, 4, 4]
    v_viewmats_ptr,  # [C, 4, 4]
    rate_ptr,  # [1]
    mean_ptr,  # [6] or None
    skip_ptr,  # [1] or None
    n,
    C,
    unit,
    beta1,
    beta2,
    eps,
    stride_rows: tl.constexpr,
):
    own = tl.program_id(0)
    row = tl.load(rows_ptr + own * stride_rows)
    inside = (row >= 0) & (row < n)
    if skip_ptr is not None:
        inside = inside & (tl.load(skip_ptr) == 0)
    v_tau, v_w = _motion_gradient(viewmats_ptr + own * 16, v_viewmats_ptr + own * 16)
    for c in range(C):
        same = tl.load(rows_ptr + c * stride_rows) == row
        inside = inside & ((same == 0) | (c >= own))  # an earlier program has this image
        more_tau, more_w = _motion_gradient(viewmats_ptr + c * 16, v_viewmats_ptr + c * 16)
        share = tl.where(same & (c > own), 1.0, 0.0)
        v_tau = add3(v_tau, scale3(share, more_tau))
        v_w = add3(v_w, scale3(share, more_w))
    if inside == 0:
        return
    t = tl.load(steps_ptr + row) + 1.0
    tl.store(steps_ptr + row, t)
    bias1 = 1.0 - tl.exp2(t * tl.log2(beta1))
    bias2 = 1.0 - tl.exp2(t * tl.log2(beta2))
    m_ptr, v_ptr = exp_avg_ptr + row * 6, exp_avg_sq_ptr + row * 6
    rate = tl.load(rate_ptr)
    tau = _adam(m_ptr, v_ptr, v_tau, beta1, beta2, bias1, bias2, eps, inside)
    w = _adam(m_ptr + 3, v_ptr + 3, v_w, beta1, beta2, bias1, bias2, eps, inside)
    tau, w = scale3(-rate * unit, tau), scale3(-rate, w)
    if mean_ptr is not None:
        tau = combine3(1.0, tau, -1.0, load3(mean_ptr, inside))
        w = combine3(1.0, w, -1.0, load3(mean_ptr + 3, inside))

    s = dot3(w, w)
    a = 1.0 - s / 6.0 * (1.0 - s / 20.0 * (1.0 - s / 42.0))
    b = 0.5 - s / 24.0 * (1.0 - s / 30.0 * (1.0 - s / 56.0))
    c = (1.0 - s / 20.0 * (1.0 - s / 42.0 * (1.0 - s / 72.0))) / 6.0
    D = deltas_ptr + row * 12
    d0, d1, d2 = load3(D, inside), load3(D + 4, inside), load3(D + 8, inside)
    c0 = _turn(w, a, b, Vec3(d0.x, d1.x, d2.x))
    c1 = _turn(w, a, b, Vec3(d0.y, d1.y, d2.y))
    c2 = _turn(w, a, b, Vec3(d0.z, d1.z, d2.z))
    shift = add3(_turn(w, a, b, _column(D, 3)), _turn(w, b, c, tau))
    r0, _ = normalize3(Vec3(c0.x, c1.x, c2.x))
    r1 = Vec3(c0.y, c1.y, c2.y)
    r1, _ = normalize3(combine3(1.0, r1, -dot3(r1, r0), r0))
    store3(D, r0, inside)
    store3(D + 4, r1, inside)
    store3(D + 8, cross3(r0, r1), inside)
    tl.store(D + 3, shift.x)
    tl.store(D + 7, shift.y)
    tl.store(D + 11, shift.z)


def step_poses(
    deltas: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: Tensor,
    rows: Tensor,
    viewmats: Tensor,
    v_viewmats: Tensor,
    rate: Tensor,
    unit: float,
    centred: bool,
    betas: tuple[float, float],
    eps: float,
    skip: Tensor | None,
) -> None:
    C, mean = len(rows), None
    if centred:
        mean = torch.empty(6, device=deltas.device)
        launch(_mean_motion_kernel, (6,), deltas, mean, len(steps), BLOCK=BLOCK, num_warps=1)
    state = (deltas, exp_avg, exp_avg_sq, steps)
    memory = (*state, rows, viewmats, v_viewmats, rate, mean, skip)
    numbers = (len(steps), C, unit, *betas, eps)
    launch(_step_poses_kernel, (C,), *memory, *numbers, stride_rows=rows.stride(0), num_warps=1)
