"""Orders: Gaussians from front to back, fragments by pixel."""

import torch
from torch import Tensor


def sort_by_depth(depths: Tensor, visible: Tensor) -> Tensor:
    """Indices [V] of the visible ones among depths [M], nearest first; ties by ascending index."""
    indices = torch.nonzero(visible).squeeze(1)
    return indices[torch.sort(depths[indices], stable=True).indices]


def sort_by_pixel(pixels: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Pixels [P] below n of fragments in ascending order, and that order [P]; stable for depth."""
    order = stable_order(pixels, n)
    return pixels.index_select(0, order), order


def stable_order(keys: Tensor, n: int) -> Tensor:
    """Indices [P] that put integer keys [P] in [0, n) in ascending order; stable."""
    if n <= 1 << 16 and not keys.is_cuda:  # numpy sorts 16 bits by digits, torch few keys slowly
        digits = keys.numpy().astype("uint16")
        return torch.from_numpy(digits.argsort(kind="stable"))
    return torch.sort(keys.to(torch.int32), stable=True).indices
