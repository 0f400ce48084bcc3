"""What densifiers need to know of a rendering: checks arguments once and calls a backend."""

from typing import Any

import torch
from torch import Tensor

from ._checks import check, uses_triton
from .reference import statistics as reference


def add_gradient_norms(
    v_means2d: Tensor,  # [C, N, 2]
    radii: Tensor,  # [C, N, 2]
    gradients: Tensor,  # [N]
    views: Tensor,  # [N]
    *,
    width: int,
    height: int,
    skip: Tensor | None = None,  # [1] or []
    backend: str = "auto",
) -> None:
    """Add the norms of image-space gradients, in NDC, and the number of views that see a Gaussian.

    Nothing waits for the device, and CUDA graphs can capture it.

    Args:
        v_means2d: Gradients of image positions, in pixels, float32, of any strides. [C, N, 2]
        radii: Half extents of every Gaussian in pixels, int32; it is seen where both are positive.
            [C, N, 2]
        gradients: Sums of norms, changed in place, float32. [N]
        views: Numbers of views, changed in place, float32. [N]
        width: Of the images, in pixels.
        height: Of the images, in pixels.
        skip: int32 on the device; if it is not 0, nothing is added.
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".

    Raises:
        ValueError: shapes or types are not as above.
    """
    dims = check(v_means2d=(v_means2d, "C N 2"), radii=(radii, "C N 2"))
    check(dims, gradients=(gradients, "N"), views=(views, "N"))
    for name, x in (("gradients", gradients), ("views", views)):
        if x.dtype != torch.float32 or not x.is_contiguous():
            raise ValueError(f"{name}: expected contiguous float32, got {x.dtype}")
    if radii.dtype != torch.int32 or v_means2d.dtype != torch.float32:
        raise ValueError(
            f"expected radii int32 and v_means2d float32, got {radii.dtype} and {v_means2d.dtype}"
        )
    if skip is not None and (skip.numel() != 1 or skip.dtype != torch.int32):
        raise ValueError(f"skip: expected one int32, got {list(skip.shape)} {skip.dtype}")
    run: Any = reference
    if uses_triton(backend, v_means2d):
        from . import statistics as run
    run.add_gradient_norms(v_means2d, radii, gradients, views, width, height, skip)
