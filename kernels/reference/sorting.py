"""Orders: Gaussians from front to back, fragments by pixel."""

import torch
from torch import Tensor


def sort_by_depth(depths: Tensor, visible: Tensor) -> Tensor:
    """Indices [V] of the visible ones among depths [M], nearest first; ties by ascending index."""
    indices = torch.nonzero(visible).squeeze(1)
    return indices[torch.sort(depths[indices], stable=True).indices]


def sort_by_pixel(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [P] of fragments in ascending order, and that order [P]; stable, as depth needs."""
    values, order = torch.sort(pixels.to(torch.int32), stable=True)
    return values.to(torch.int64), order
