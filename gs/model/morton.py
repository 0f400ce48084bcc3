"""Z-order: an order of points in which neighbours in memory are neighbours in space (Morton 1966).

Each axis is cut into 1024 cells between the 1st and the 99th percentile, so that a few points far
away do not take the cells of all others; points outside belong to the outermost cells. The bits of
the three cell numbers, interleaved, are the place on the curve.
"""

import torch
from torch import Tensor

from .gaussians import Gaussians
from .rows import gather_rows

BITS = 10  # per axis: three of them fit in an int32
TAIL = 0.01  # share of points beyond each end of the cells
SAMPLE = 1 << 16  # points, at least and where there are so many, that tell where the ends are


def morton_order(means: Tensor) -> Tensor:  # [N, 3] -> [N] int64
    """Rows in the order of their places on the curve; equal ones by ascending row.

    Nothing waits for the device. Coordinates that are not finite count as the largest.
    """
    n = len(means)
    if n == 0:
        return torch.zeros(0, dtype=torch.int64, device=means.device)
    sample = means[:: max(n // SAMPLE, 1)]
    beyond = int(TAIL * (len(sample) - 1))
    low = sample.kthvalue(1 + beyond, 0).values
    high = sample.kthvalue(len(sample) - beyond, 0).values
    cells = (means - low) / (high - low) * 2**BITS
    cells = cells.nan_to_num(nan=2.0**BITS).clamp(0, 2**BITS - 1).to(torch.int32)  # [N, 3]
    x, y, z = _spread(cells).unbind(-1)
    return torch.sort(x | (y << 1) | (z << 2), stable=True).indices


def reorder(gaussians: Gaussians, optimizer: torch.optim.Optimizer | None) -> None:
    """Sort a model along the curve, with optimizer state and buffers; ids follow their rows."""
    order = morton_order(gaussians.params["means"].detach())
    gather_rows(gaussians, optimizer, order, n_kept=len(order))


def _spread(x: Tensor) -> Tensor:  # int32 below 2^10
    """Move bit i to bit 3 i."""
    x = (x | (x << 16)) & 0x030000FF
    x = (x | (x << 8)) & 0x0300F00F
    x = (x | (x << 4)) & 0x030C30C3
    return (x | (x << 2)) & 0x09249249
