"""The loss of rendered depths at pixels where depths are known: checks, and choice of a backend.

    loss = weight sum_c 1/n_c sum_i |1/D_i - 1/d_i|,   D = depth / alpha,   1/0 := 0

over the cameras c of a step and the n_c known depths d_i of each. In disparities a point counts as
much as it moves an image. kernels/depth/kernel.py is the Triton backend,
kernels/reference/depth.py the PyTorch one.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..backend import uses_triton
from ..reference import depth as reference
from ..validation import check


class SparseDepths(NamedTuple):
    """Known depths of n images, packed: those of image k are offsets[k] to offsets[k + 1] - 1."""

    offsets: Tensor
    """[n + 1] int32, ascending from 0."""
    pixels: Tensor
    """Row times width plus column; no pixel twice in an image. [S] int32"""
    disparities: Tensor
    """1 / d. [S] float32"""
    most: int
    """Most that an image has."""


def depth_loss(
    depths: Tensor,  # [C, H, W]
    alphas: Tensor,  # [C, H, W]
    rows: Tensor,  # [C]
    known: SparseDepths,
    weight: Tensor,  # [1]
    *,
    backend: str = "auto",
) -> Tensor:  # []
    """The loss above, differentiable in depths and alphas.

    With the Triton backend nothing waits for the GPU, results are the same from run to run, and a
    CUDA graph can hold the call and its backward.

    Args:
        depths: Accumulated depth, sum(w z), as render_mode "RGB+D" has it last; float32, or with
            the reference float64. [C, H, W]
        alphas: Accumulated alpha, sum(w). [C, H, W]
        rows: Which image each camera is, int32; what is none of them adds nothing. [C]
        known: The images' depths.
        weight: Factor, on the device. [1]
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".

    Raises:
        ValueError: shapes or types are not as above.
    """
    dims = check(depths=(depths, "C H W"), weight=(weight, "1"))
    check(dims, alphas=(alphas, "C H W"), rows=(rows, "C"))
    check(pixels=(known.pixels, "S"), disparities=(known.disparities, "S"))
    dtype = depths.dtype
    for name, x in (("alphas", alphas), ("disparities", known.disparities), ("weight", weight)):
        if x.dtype != dtype:
            raise ValueError(f"{name}: expected {dtype} as depths, got {x.dtype}")
    integers = {"rows": rows, "offsets": known.offsets, "pixels": known.pixels}
    for name, x in integers.items():
        if x.dtype != torch.int32:
            raise ValueError(f"{name}: expected int32, got {x.dtype}")
    run: ModuleType = reference
    if uses_triton(backend, depths):
        if dtype != torch.float32:
            raise ValueError(f"backend 'triton': expected float32, got {dtype}")
        # Triton is not everywhere, and nothing else needs it.
        from . import kernel as run  # pyright: ignore[reportMissingImports]
    numbers = known.offsets, known.pixels, known.disparities, known.most
    return run.depth_loss(depths, alphas, rows, *numbers, weight)
