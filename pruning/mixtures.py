"""Gaussians as a mixture: what replacing two by one costs, and which one that is.

A Gaussian of opacity o and covariance P counts with its mass m = t A, of the optical depth
t = -ln(1 - o) and the area A = det(P)^(1/3) that it covers, up to a factor. Two become one with the
same mass, mean and covariance (moment matching), and with colours weighted by mass:

    m = m_1 + m_2    mu = sum m_i mu_i / m    P = sum m_i (P_i + (mu_i - mu)(mu_i - mu)^T) / m

so that two in one place blend as before, o = 1 - (1 - o_1)(1 - o_2), and two side by side have
their mean depth. The cost is the bound of Runnalls, "Kullback-Leibler approach to Gaussian mixture
reduction" (IEEE Transactions on Aerospace and Electronic Systems 43(3), 2007), and a colour term:

    (m ln det P - m_1 ln det P_1 - m_2 ln det P_2) / 2 + color_weight m_1 m_2 / m |c_1 - c_2|^2

Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SH_C0 = 0.28209479177387814  # the constant spherical harmonic
LARGEST_OPACITY = 0.99  # beyond it the rasterizer draws no more


class Mixture:
    """N Gaussians with their masses.

    Args:
        params: means [N,3], quats [N,4], scales [N,3] (log), opacities [N] (logits), sh0 [N,1,3]
            and shN [N,K,3].
    """

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        values = {name: x.detach().double() for name, x in params.items()}
        self.means = values["means"]
        log_scales = values["scales"]
        axes = rotation_matrices(values["quats"]) * log_scales.exp()[:, None, :]
        self.covariances = axes @ axes.mT  # [N, 3, 3]
        self.log_dets = 2.0 * log_scales.sum(-1)  # [N]
        opacities = values["opacities"].sigmoid().clamp_max(LARGEST_OPACITY)
        self.masses = -torch.log1p(-opacities) * (self.log_dets / 3.0).exp()  # [N]
        self.sh = torch.cat([values["sh0"], values["shN"]], 1)  # [N, K + 1, 3]

    def merged(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Masses [M], means [M,3] and covariances [M,3,3] of the rows a and b as one."""
        mass = self.masses[a] + self.masses[b]
        share = (self.masses[b] / mass.clamp_min(torch.finfo(mass.dtype).tiny))[:, None]
        step = self.means[b] - self.means[a]
        means = self.means[a] + share * step
        spread = share[..., None] * (1.0 - share[..., None]) * step[:, :, None] * step[:, None, :]
        within = torch.lerp(self.covariances[a], self.covariances[b], share[..., None])
        return mass, means, within + spread

    def costs(self, a: Tensor, b: Tensor, color_weight: float) -> Tensor:  # [M], [M] -> [M]
        """What merging the rows a and b costs."""
        mass, _, covariances = self.merged(a, b)
        m_a, m_b = self.masses[a], self.masses[b]
        bound = mass * torch.logdet(covariances)
        bound = 0.5 * (bound - m_a * self.log_dets[a] - m_b * self.log_dets[b])
        color = SH_C0 * (self.sh[a, 0] - self.sh[b, 0])
        harmonic = m_a * m_b / mass.clamp_min(torch.finfo(mass.dtype).tiny)
        return bound + color_weight * harmonic * color.square().sum(-1)

    def parameters(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """The raw parameters of the rows a and b as one, by the names that models have. [M, ...]"""
        mass, means, covariances = self.merged(a, b)
        variances, axes = torch.linalg.eigh(covariances)
        variances = variances.clamp_min(torch.finfo(torch.float32).tiny)
        # a turn, and no mirror
        axes = axes * torch.linalg.det(axes)[:, None, None].sign()
        depth = mass / (variances.log().sum(-1) / 3.0).exp()
        opacities = -torch.expm1(-depth)
        share = (self.masses[b] / mass.clamp_min(torch.finfo(mass.dtype).tiny))[:, None, None]
        sh = torch.lerp(self.sh[a], self.sh[b], share)
        values = {
            "means": means,
            "quats": quaternions(axes),
            "scales": 0.5 * variances.log(),
            "opacities": opacities.clamp(1e-6, LARGEST_OPACITY).logit(),
            "sh0": sh[:, :1],
            "shN": sh[:, 1:],
        }
        return {name: x.float() for name, x in values.items()}


def rotation_matrices(quats: Tensor) -> Tensor:  # [N, 4] wxyz of any length -> [N, 3, 3]
    """Matrices whose columns are the axes."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def quaternions(matrices: Tensor) -> Tensor:  # [N, 3, 3] -> [N, 4] wxyz, of length 1
    """The quaternions of turns: of four forms the one that divides by the largest number.

    The symmetric matrix 4 q q^T has entries that are sums of the matrix's; its row with the largest
    diagonal entry, normalised, is q up to its sign, which does not matter.
    """
    m = matrices
    traces = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    outer = m.new_empty(len(m), 4, 4)
    outer[:, 0, 0] = 1.0 + traces
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        outer[:, i + 1, i + 1] = 1.0 + 2.0 * m[:, i, i] - traces
        outer[:, 0, i + 1] = outer[:, i + 1, 0] = m[:, k, j] - m[:, j, k]
        outer[:, i + 1, j + 1] = outer[:, j + 1, i + 1] = m[:, i, j] + m[:, j, i]
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    rows = outer[torch.arange(len(m), device=m.device), best]
    return torch.nn.functional.normalize(rows, dim=-1)
