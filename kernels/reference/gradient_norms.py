"""Image-space gradients of Gaussians, summed over the views that see them."""

import torch
from torch import Tensor


def count_views(radii: Tensor) -> Tensor:  # [C, N, 2] -> [N] float32
    return (radii > 0).all(-1).sum(0).float()


def add_gradient_norms(
    v_means2d: Tensor,  # [C, N, 2]
    radii: Tensor,  # [C, N, 2]
    gradients: Tensor,  # [N], in and out
    views: Tensor,  # [N], in and out
    width: int,
    height: int,
    skip: Tensor | None,  # one int32
) -> None:
    half_size = v_means2d.new_tensor([0.5 * width, 0.5 * height])
    norms = (v_means2d * half_size).norm(dim=-1)  # [C, N]
    visible = (radii > 0).all(-1)  # [C, N]
    if skip is not None:
        visible &= skip.reshape(1, 1) == 0
    gradients += torch.where(visible, norms, 0.0).sum(0)
    views += visible.sum(0)
