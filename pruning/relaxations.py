r"""Continuous stand-ins for a yes-or-no decision, so that it can be trained.

Gumbel-Sigmoid (Jang et al., ICLR 2017, https://arxiv.org/abs/1611.01144, and Maddison et al., ICLR
2017, https://arxiv.org/abs/1611.00712, for two classes):

    y(x) = sigmoid((x + g) / tau),    g ~ Logistic(0, 1), the difference of two Gumbel variables
    dy/dx = y (1 - y) / tau
    P(y(x) <= q) = sigmoid(tau logit(q) - x), so P(y(x) >= 1/2) = sigmoid(x) for every tau

Straight through (Bengio et al. 2013, https://arxiv.org/abs/1308.3432; with this threshold in Lee et
al., Compact 3D Gaussian Representation, CVPR 2024, https://arxiv.org/abs/2311.13681):

    y(x) = 1 if sigmoid(x) > eps else 0,    dy/dx = s (1 - s) with s = sigmoid(x)

Noise is counted by the Gaussian's id and the seed, so that it does not depend on which others there
are, in what order, or on the device.
"""

import torch
from torch import Tensor

from kernels import logistic_noise


def gumbel_sigmoid(
    logits: Tensor,  # [N]
    temperature: float,
    seed: int,
    ids: Tensor,  # [N] int32
) -> Tensor:  # [N] in 0..1
    """A differentiable draw of N yes-or-no decisions.

    Args:
        logits: Their log-odds. [N]
        temperature: tau above; the lower, the nearer to 0 or 1.
        seed: One integer per draw.
        ids: Names the Gaussians in the draw. [N]
    """
    noise = logistic_noise(seed, ids, logits.dtype)
    return torch.sigmoid((logits + noise) / temperature)


def straight_through(
    logits: Tensor,  # [N]
    threshold: float,
) -> Tensor:  # [N], each 0 or 1
    """Whether sigmoid(logits) > threshold, with the gradient of the sigmoid."""
    soft = torch.sigmoid(logits)
    # The difference is exactly 0, so that a mask is exactly 0 or 1.
    return (soft.detach() > threshold).to(logits.dtype) + (soft - soft.detach())
