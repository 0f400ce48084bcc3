"""Colours as a photograph has them: exposure, white balance, a lens that darkens its corners.

kernels/light/kernel.py is the Triton backend, kernels/reference/light.py the PyTorch one, where the
equations stand.
"""

import torch
from torch import Tensor

from ..backend import uses_triton
from ..reference import light as reference
from ..reference.light import AFFINE, LENS_NUMBERS, PPISP, neutral_rows
from ..validation import check, check_same

__all__ = ["LENS_NUMBERS", "corrected", "neutral_rows"]


def corrected(
    colors: Tensor,  # [H, W, 3]
    rows: Tensor,  # [I, 12] or [I, 9]
    index: Tensor,  # [1]
    *,
    lenses: Tensor | None = None,  # [L, 15]
    lens_of: Tensor | None = None,  # [I]
    regularised: bool = False,
    backend: str = "auto",
) -> Tensor:  # [H, W, 3]
    """The colours of a rendering as its photograph shows them; differentiable in all floats.

    With the Triton backend nothing waits for the device, three launches do both ways, results are
    the same bit for bit from run to run, and a CUDA graph can hold the call.

    Args:
        colors: A rendering, channels last; float32, or with the reference float64. [H, W, 3]
        rows: Numbers of each image: 12 are an affine map, 9 exposure and colour. [I, 12] or [I, 9]
        index: Which image it is, on the device, int32 or int64. [1]
        lenses: With 9 numbers: those of each lens. [L, 15]
        lens_of: The lens of each image, int32. [I]
        regularised: Add the regulariser's gradients to those of rows and lenses.
        backend: "triton" (CUDA, float32), "reference" (PyTorch, anywhere) or "auto".

    Raises:
        ValueError: shapes, types or devices disagree.
    """
    check(colors=(colors, "H W 3"), index=(index, "1"))
    dims = check(rows=(rows, "I K"))
    if dims["K"] not in (AFFINE, PPISP):
        raise ValueError(f"rows: expected [I {AFFINE}] or [I {PPISP}], got {list(rows.shape)}")
    if (dims["K"] == PPISP) != (lenses is not None and lens_of is not None):
        raise ValueError(f"lenses, lens_of: expected both with rows of {PPISP}, and none else")
    if lenses is not None and lens_of is not None:
        check(dims, lenses=(lenses, f"L {LENS_NUMBERS}"), lens_of=(lens_of, "I"))
        if lens_of.dtype != torch.int32:
            raise ValueError(f"lens_of: expected int32, got {lens_of.dtype}")
    if index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"index: expected int32 or int64, got {index.dtype}")
    check_same("colors", colors=colors, rows=rows, lenses=lenses)
    if not uses_triton(backend, colors):
        return reference.corrected(colors, rows, index, lenses, lens_of, regularised)
    if colors.dtype != torch.float32:
        raise ValueError(f"backend 'triton': expected float32, got {colors.dtype}")
    from . import kernel  # pyright: ignore[reportMissingImports]

    return kernel.corrected(colors.contiguous(), rows, index, lenses, lens_of, regularised)
