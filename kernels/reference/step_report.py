"""What a captured step tells of itself: whether it fits its buffers, and its losses."""

import torch
from torch import Tensor


def report_step(
    counts: Tensor,  # [2] int32
    limits: Tensor,  # [2] int32
    missing: Tensor | None,  # [1] int32
    serial: Tensor,  # [1] int32
) -> tuple[Tensor, Tensor]:  # [4], [1] int32
    skip = (counts > limits).any().view(1)
    if missing is None:
        missing = torch.zeros_like(serial)
    return torch.cat([counts, missing, serial]), (skip | (missing > 0)).int()


def add_losses(
    sums: Tensor,  # [4], in and out
    loss: Tensor,  # [1]
    others: Tensor,  # [2]
    n_images: int,
    skip: Tensor | None,  # [1] int32
) -> None:
    row = torch.cat([loss, others, torch.full_like(loss, n_images)])
    sums += row if skip is None else torch.where(skip == 0, row, 0.0)
