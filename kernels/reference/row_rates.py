"""Steps of Adam that every row has taken, counted on, and what their rates are multiplied by."""

import torch
from torch import Tensor


def count_row_steps(
    steps: Tensor,  # [N] int32, in and out
    observations: Tensor,  # [N, parts]
    betas: tuple[float, float],
    skip: Tensor | None,  # one int32
) -> Tensor:  # [N, 2] float32
    seen = (observations > 0).any(1)
    if skip is not None:
        seen &= skip.reshape(1) == 0
    steps += seen
    t = steps.double()
    rates = torch.stack([1.0 / (1.0 - betas[0] ** t), (1.0 - betas[1] ** t).sqrt()], -1)
    return torch.where(seen[:, None], rates, 0.0).float()
