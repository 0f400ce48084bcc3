r"""What Markov chain Monte Carlo adds to a step: noise on means, and gradients of two regularisers.

Kheradmand et al., "3D Gaussian Splatting as Markov Chain Monte Carlo" (NeurIPS 2024,
https://arxiv.org/abs/2404.09591), equations 8 and 10. After the optimizer's step

    mean += noise_lr lr  sigmoid(-k (o - t))  Sigma eta         eta ~ N(0, I)
    Sigma = R diag(s^2) R^T

moves the faint (o near t or below) along their own extent, and all others hardly. Before it, for
lambda_o mean(o) and lambda_s mean(s), the latter over all axes,

    v_opacity += lambda_o / N  o (1 - o)        v_scale += lambda_s / (3 N)  s

on logits and log-scales; given shares w, which add up to 1, w stands for 1 / N in each row. eta
comes from four uniform numbers of Philox4x32-10 (counter = id, key =
seed) by Box and Muller: sqrt(-2 log u0) times cos and sin of 2 pi u1, and sqrt(-2 log u2) times
cos of 2 pi u3, with u0 and u2 clamped to [2^-24, 1). Cosine and sine are polynomials within an
eighth turn: the general ones reduce arguments of any size, at a cost.

    means, scales [N, 3]    quats [N, 4]    opacities [N]    all raw, float32    ids [N] int32

A lane owns a Gaussian. Seed and learning rate lie in memory, so that a CUDA graph can be replayed
with others. Where `skip` is not 0, no mean moves.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..device.linalg import Vec3, add3, combine3, dot3, load3, quat_to_rotmat, scale3, store3
from ..device.masks import UNIFORM_MIN, load_seed
from ..runtime.launch import launch

BLOCK = 256  # Gaussians per program


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def _cos_sin(turns):
    """cos and sin of 2 pi turns, turns in [0, 1): Taylor within an eighth turn, error 4e-7."""
    quarter = tl.floor(4.0 * turns + 0.5)
    x = (turns - 0.25 * quarter) * 6.283185307179586
    y = x * x
    c = 1.0 + y * (-1 / 2 + y * (1 / 24 + y * (-1 / 720 + y * (1 / 40320))))
    s = x * (1.0 + y * (-1 / 6 + y * (1 / 120 + y * (-1 / 5040 + y * (1 / 362880)))))
    odd = (quarter == 1.0) | (quarter == 3.0)
    first, second = tl.where(odd, s, c), tl.where(odd, c, s)
    first = tl.where((quarter == 1.0) | (quarter == 2.0), -first, first)
    return first, tl.where((quarter == 2.0) | (quarter == 3.0), -second, second)


@triton.jit
def _normals(seed_low, seed_high, ids):
    """Three standard normal numbers of every Gaussian."""
    seed = (seed_high.to(tl.int64) << 32) | (seed_low.to(tl.int64) & 0xFFFFFFFF)
    u0, u1, u2, u3 = tl.rand4x(seed, ids)
    r0 = tl.sqrt(-2.0 * tl.log(tl.maximum(u0, UNIFORM_MIN)))
    r2 = tl.sqrt(-2.0 * tl.log(tl.maximum(u2, UNIFORM_MIN)))
    c1, s1 = _cos_sin(u1)
    c3, _ = _cos_sin(u3)
    return Vec3(r0 * c1, r0 * s1, r2 * c3)


@triton.jit(do_not_specialize=["N"])
def _langevin_kernel(
    means_ptr,  # [N, 3] in and out
    quats_ptr,  # [N, 4]
    scales_ptr,  # [N, 3]
    opacities_ptr,  # [N]
    ids_ptr,  # [N]
    seed_ptr,  # [2]
    lr_ptr,  # [1]
    skip_ptr,  # [1] or None
    N,
    noise_lr,
    steepness,
    threshold,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    if skip_ptr is not None:
        inside = inside & (tl.load(skip_ptr) == 0)
    n = n.to(tl.int64)
    opacity = _sigmoid(tl.load(opacities_ptr + n, mask=inside, other=0.0))
    size = noise_lr * tl.load(lr_ptr) * _sigmoid(-steepness * (opacity - threshold))
    seed_low, seed_high = load_seed(seed_ptr, 0, 0)
    noise = _normals(seed_low, seed_high, tl.load(ids_ptr + n, mask=inside, other=0))
    w = tl.load(quats_ptr + 4 * n, mask=inside, other=1.0)
    q = load3(quats_ptr + 4 * n + 1, inside)
    inverse = 1.0 / tl.sqrt(w * w + dot3(q, q))
    axes = quat_to_rotmat(w * inverse, q.x * inverse, q.y * inverse, q.z * inverse)
    s = load3(scales_ptr + 3 * n, inside)
    x = tl.exp(2.0 * s.x) * dot3(axes.c0, noise)
    y = tl.exp(2.0 * s.y) * dot3(axes.c1, noise)
    z = tl.exp(2.0 * s.z) * dot3(axes.c2, noise)
    shift = add3(combine3(x, axes.c0, y, axes.c1), scale3(z, axes.c2))
    mean = load3(means_ptr + 3 * n, inside)
    store3(means_ptr + 3 * n, add3(mean, scale3(size, shift)), inside)


@triton.jit(do_not_specialize=["N"])
def _regularizer_kernel(
    opacities_ptr,  # [N]
    scales_ptr,  # [N, 3]
    v_opacities_ptr,  # [N] in and out
    v_scales_ptr,  # [N, 3] in and out
    shares_ptr,  # [N] or None
    N,
    weight_opacity,  # lambda_o / N, or lambda_o with shares
    weight_scale,  # lambda_s / (3 N), or lambda_s / 3
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    opacity = _sigmoid(tl.load(opacities_ptr + n, mask=inside, other=0.0))
    v = tl.load(v_opacities_ptr + n, mask=inside, other=0.0)
    weight = weight_opacity
    if shares_ptr is not None:
        weight *= tl.load(shares_ptr + n, mask=inside, other=0.0)
    tl.store(v_opacities_ptr + n, v + weight * opacity * (1.0 - opacity), mask=inside)
    for axis in tl.static_range(3):
        i = n + axis * N.to(tl.int64)  # thirds of memory, whatever the rows: coalesced
        s = tl.exp(tl.load(scales_ptr + i, mask=inside, other=0.0))
        v = tl.load(v_scales_ptr + i, mask=inside, other=0.0)
        weight = weight_scale
        if shares_ptr is not None:
            weight *= tl.load(shares_ptr + i // 3, mask=inside, other=0.0)
        tl.store(v_scales_ptr + i, v + weight * s, mask=inside)


def add_langevin_noise(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    ids: Tensor,
    seed: Tensor,
    lr: Tensor,
    noise_lr: float,
    steepness: float,
    threshold: float,
    skip: Tensor | None,
) -> None:
    N = len(means)
    memory = (means, quats, scales, opacities, ids, seed, lr, skip)
    numbers = (N, noise_lr, steepness, threshold)
    launch(_langevin_kernel, (-(-N // BLOCK),), *memory, *numbers, BLOCK=BLOCK)


def add_regularizer_gradients(
    opacities: Tensor,
    scales: Tensor,
    v_opacities: Tensor,
    v_scales: Tensor,
    lambda_opacity: float,
    lambda_scale: float,
    shares: Tensor | None,
) -> None:
    N = len(opacities)
    memory = (opacities, scales, v_opacities, v_scales, shares)
    over = max(N, 1) if shares is None else 1
    numbers = (N, lambda_opacity / over, lambda_scale / (3 * over))
    launch(_regularizer_kernel, (-(-N // BLOCK),), *memory, *numbers, BLOCK=BLOCK)
