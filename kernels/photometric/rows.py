"""The photometric loss of a band of rows that is cut from an image; see kernel.py."""

import torch
from torch import Tensor

from .kernel import BAND, photometric


def photometric_rows(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3]
    lambda_dssim: float,
    first: int,
    last: int,
    n_rows: int,
) -> tuple[Tensor, Tensor]:  # [5], [H, W, 3]
    """kernels.photometric_rows of checked, contiguous tensors."""
    _, v_colors, partials = photometric(colors.detach(), target, lambda_dssim, True)
    assert v_colors is not None
    own = partials[:, :, first // BAND : -(-last // BAND)].sum((1, 2))
    dssim, l1, l1_clamped, squares = (own / (n_rows * colors[0].numel())).unbind()
    loss = (1.0 - lambda_dssim) * l1 + lambda_dssim * dssim
    values = torch.stack([loss, l1, (last - first) / n_rows - dssim, l1_clamped, squares])
    if len(colors) != n_rows:
        v_colors *= len(colors) / n_rows
    v_colors[:first].zero_()
    v_colors[last:].zero_()
    return values, v_colors
