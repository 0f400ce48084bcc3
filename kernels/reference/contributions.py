"""What every Gaussian contributes to the images: the scores that pruners are made of.

The weight of a Gaussian in a pixel is that of its colour, mask * alpha * T. Per Gaussian:

    contrib_max    largest weight in any pixel
    contrib_sum    sum of weights
    contrib_count  pixels in which the weight is above 0
    contrib_top    pixels in which no other Gaussian weighs more (the nearest one of equals)
"""

import torch
from torch import Tensor


class Contributions:
    """Accumulates rows of weights; several cameras add up (contrib_max: maximum)."""

    def __init__(self, n: int, like: Tensor) -> None:
        self.max = torch.zeros(n, dtype=like.dtype, device=like.device)
        self.sum = torch.zeros_like(self.max)
        self.count = torch.zeros(n, dtype=torch.int64, device=like.device)
        self.top = torch.zeros_like(self.count)

    def add(
        self,
        weights: Tensor,  # [B, K], one row per pixel, front to back; 0 where there is nothing
        gaussians: Tensor,  # [B, K] int64 indices below n, anything where the weight is 0
    ) -> None:
        used = weights > 0
        index, weight = gaussians[used], weights[used]
        self.max.scatter_reduce_(0, index, weight, "amax")
        self.sum.index_add_(0, index, weight)
        self.count += torch.bincount(index, minlength=self.count.shape[0])
        best, place = weights.max(1)
        top = gaussians.gather(1, place[:, None]).squeeze(1)[best > 0]
        self.top += torch.bincount(top, minlength=self.top.shape[0])

    def info(self) -> dict[str, Tensor]:
        return {
            "contrib_max": self.max,
            "contrib_sum": self.sum,
            "contrib_count": self.count,
            "contrib_top": self.top,
        }
