r"""Unscented projection of 3D Gaussians through any lens pi, in the form that projection/ uses.

    W = R_view R S, columns W_k          axes of the Gaussian in camera space
    delta = alpha sqrt(3 + kappa),       d_k+- = pi(t +- delta W_k) - pi(t)
    odd_k = (d_k+ - d_k-)/(2 delta),     even_k = (d_k+ + d_k-)/(2 delta),   m = sum_k even_k/delta
    mean2d = pi(t) + m
    cov2d = sum_k odd_k odd_k^T + sum_k even_k even_k^T + (beta - alpha^2) m m^T

which is the textbook's transform (Wan, van der Merwe 2000, "The unscented Kalman filter for
nonlinear estimation") with its weights collected: a sum of squares. Its determinant is the sum over
pairs of the seven columns (odd, even, sqrt(beta - alpha^2) m) of their squared minors.
"""

from collections.abc import Callable

import torch
from torch import Tensor

ALPHA, BETA, KAPPA = 1.0, 2.0, 0.0


def unscented(
    t: Tensor,  # [M, 3] means in camera space
    axes: Tensor,  # [M, 3, 3] columns W_k
    pi: Callable[[Tensor], Tensor],  # [..., 3] -> [..., 2]
    *,
    turn: Tensor | None = None,
    alpha: float = ALPHA,
    beta: float = BETA,
    kappa: float = KAPPA,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [M, 2], [M] four times
    """Mean, xx, xy, yy and determinant of the image of Gaussians, without blur.

    Args:
        t: Means.
        axes: Axes, each as long as its standard deviation.
        pi: The lens.
        turn: Pixels once round, where x is an angle.
        alpha: How far sigma points lie from the mean: sqrt(3 + kappa) alpha standard deviations.
        beta: 2 for Gaussians.
        kappa: 0 by default.
    """
    delta = alpha * (3 + kappa) ** 0.5
    middle = pi(t)[:, None]
    steps = delta * axes.transpose(1, 2)  # [M, 3 axes, 3]
    plus, minus = (pi(t[:, None] + sign * steps) - middle for sign in (1, -1))
    if turn is not None:
        plus, minus = _unwound(plus, turn), _unwound(minus, turn)
    odd, even = (plus - minus) / (2 * delta), (plus + minus) / (2 * delta)
    shift = even.sum(1) / delta
    columns = torch.cat([odd, even, (beta - alpha**2) ** 0.5 * shift[:, None]], 1)  # [M, 7, 2]
    x, y = columns.unbind(-1)
    minors = x[:, :, None] * y[:, None, :] - y[:, :, None] * x[:, None, :]
    det = 0.5 * minors.square().sum((1, 2))
    return middle[:, 0] + shift, (x * x).sum(1), (x * y).sum(1), (y * y).sum(1), det


def _unwound(d: Tensor, turn: Tensor) -> Tensor:
    """Differences the short way round."""
    x, y = d.unbind(-1)
    return torch.stack([x - turn * torch.round(x.detach() / turn), y], -1)
