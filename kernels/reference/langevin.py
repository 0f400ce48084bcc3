"""Noise of Markov chain Monte Carlo on means, and gradients of its two regularisers."""

import math

import torch
from torch import Tensor

from ..constants import UNIFORM_MIN
from .masks import philox4, to_uniform
from .projection import quats_to_rotmats


def normals(seed: int, ids: Tensor) -> Tensor:
    """Standard normal numbers [N, 3] of the Gaussians `ids` [N], by Box and Muller.

    They depend on seed and id alone, and but for rounding not on the device.
    """
    u0, u1, u2, u3 = (to_uniform(word) for word in philox4(seed, ids))
    r0, r2 = ((-2.0 * u.clamp_min(UNIFORM_MIN).log()).sqrt() for u in (u0, u2))
    turn = 2.0 * math.pi
    return torch.stack([r0 * (turn * u1).cos(), r0 * (turn * u1).sin(), r2 * (turn * u3).cos()], -1)


def add_langevin_noise(
    means: Tensor,  # [N, 3], in and out
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    ids: Tensor,  # [N] int32
    seed: Tensor,  # [2] int32
    lr: Tensor,  # [1]
    noise_lr: float,
    steepness: float,
    threshold: float,
    skip: Tensor | None,  # one int32
) -> None:
    low, high = seed.tolist()
    noise = normals((high << 32) | (low & 0xFFFFFFFF), ids).to(means)
    gates = torch.sigmoid(-steepness * (torch.sigmoid(opacities) - threshold))
    axes = quats_to_rotmats(torch.nn.functional.normalize(quats, dim=-1))  # [N, 3, 3]
    along = torch.einsum("nij,ni->nj", axes, noise) * torch.exp(2.0 * scales)
    shift = (noise_lr * lr * gates)[:, None] * torch.einsum("nij,nj->ni", axes, along)
    if skip is not None:
        shift = torch.where(skip.reshape(1, 1) == 0, shift, 0.0)
    means += shift


def add_regularizer_gradients(
    opacities: Tensor,  # [N]
    scales: Tensor,  # [N, 3]
    v_opacities: Tensor,  # [N], in and out
    v_scales: Tensor,  # [N, 3], in and out
    lambda_opacity: float,
    lambda_scale: float,
    shares: Tensor | None,  # [N]
) -> None:
    o, n = torch.sigmoid(opacities), max(len(opacities), 1)
    if shares is None:
        v_opacities += lambda_opacity / n * o * (1.0 - o)
        v_scales += lambda_scale / (3 * n) * torch.exp(scales)
    else:
        v_opacities += lambda_opacity * shares * o * (1.0 - o)
        v_scales += lambda_scale / 3 * shares[:, None] * torch.exp(scales)
