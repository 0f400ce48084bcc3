"""The public photometric loss and SSIM: check their arguments once and call a backend.

    loss = (1 - lambda) L1 + lambda (1 - SSIM)      Kerbl et al. (2023), equation 7

kernels/photometric/kernel.py is the Triton backend, kernels/reference/photometric.py the PyTorch
one.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..backend import uses_triton
from ..reference import photometric as reference


def photometric_gradient(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3 or 4]
    lambda_dssim: float = 0.2,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # [5], [H, W, 3]
    """The photometric loss and its gradient, without autograd.

    With the Triton backend nothing waits for the GPU, two launches do all, the results are the same
    bit for bit from run to run, and a CUDA graph can hold the call. Colours beyond +-30 count as
    that for SSIM there. NaN in an image makes the loss and a part of the gradient NaN.

    Args:
        colors: A rendering, not clamped, channels last; float32 or float64. [H, W, 3]
        target: Its ground truth: uint8, or of the rendering's type in 0..1. [H, W, 3]
            With a fourth channel, which is uint8 with the Triton backend, pixels count where that
            is above the half: the others have no gradient, and what the target hides there has no
            influence, as the rendering takes its place. [H, W, 4]
        lambda_dssim: Share of D-SSIM, 0 to 1; L1 has the rest.
        backend: "triton" (CUDA, float32), "reference" (PyTorch, anywhere) or "auto".

    Returns:
        The loss, L1, SSIM (both means over pixels and channels; where a pixel does not count, 0 and
        1), and L1 and mean square error of the colours clamped to 0..1, over pixels that count; and
        the loss's gradient. [5], [H, W, 3]

    Raises:
        ValueError: shapes, types or devices disagree, or there is no pixel.
    """
    run, colors, target = _prepare(backend, colors, target)
    return run.photometric_gradient(colors, target, float(lambda_dssim))


BAND = 16
"""Bands of an image that `photometric_rows` takes begin at multiples of so many rows."""
REACH = 10
"""Rows beyond its own that a row's gradient depends on: two windows of SSIM follow each other."""


def photometric_rows(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3]
    lambda_dssim: float,
    *,
    first: int,
    last: int,
    n_rows: int,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # [5], [H, W, 3]
    """What a band of rows contributes to `photometric_gradient` of the image that it is cut from.

    Args:
        colors: A window of a rendering: the band and, where the image goes on, at least REACH rows
            beyond it. [H, W, 3]
        target: The same window of the ground truth.
        lambda_dssim: Share of D-SSIM.
        first: The band's first row within the window, a multiple of BAND.
        last: The row after its last one; a multiple of BAND, or H.
        n_rows: Rows of the whole image.
        backend: As in `photometric_gradient`.

    Returns:
        The band's parts of the five values, which sum to those of the image over its bands; and the
        gradient of the image's loss in the band's rows, zero in the others. [5], [H, W, 3]

    Raises:
        ValueError: as `photometric_gradient`, or the band is not as above.
    """
    run, colors, target = _prepare(backend, colors, target)
    if target.shape[2] == 4:
        raise ValueError("target: a band of rows can have no mask")
    H = len(colors)
    ends = last % BAND == 0 or last == H
    if first % BAND or not (ends and 0 <= first < last <= H <= n_rows):
        raise ValueError(f"rows {first} to {last} of {H}: expected a band of whole {BAND} rows")
    if run is not reference:
        from . import rows as run  # pyright: ignore[reportMissingImports]
    return run.photometric_rows(colors, target, float(lambda_dssim), first, last, n_rows)


def photometric_values(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3 or 4]
    lambda_dssim: float = 0.2,
    *,
    backend: str = "auto",
) -> Tensor:  # [5]
    """The values of `photometric_gradient` alone, for less."""
    run, colors, target = _prepare(backend, colors, target)
    return run.photometric_values(colors, target, float(lambda_dssim))


def photometric_loss(
    colors: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3 or 4]
    lambda_dssim: float = 0.2,
    *,
    backend: str = "auto",
) -> Tensor:  # []
    """The loss of `photometric_gradient`, differentiable in the colours.

    The reference is differentiable in a floating target too.
    """
    run, colors, target = _prepare(backend, colors, target)
    return run.photometric_loss(colors, target, float(lambda_dssim))


def structural_similarity(
    a: Tensor,  # [H, W, D] in 0..1
    b: Tensor,  # [H, W, D] in 0..1
    *,
    counted: Tensor | None = None,  # [H, W] bool
) -> Tensor:  # []
    """Mean structural similarity, differentiable in both images.

    Images of three channels on a GPU that need no gradient go through the Triton kernel.

    Args:
        a: An image, float32 or float64, values in 0..1. [H, W, D]
        b: The other. [H, W, D]
        counted: Which pixels count: the mean is over those whose windows have such pixels alone,
            or where there is none of these over all that count; NaN where nothing counts. [H, W]

    Returns:
        The mean over pixels and channels: 1 for equal images.

    Raises:
        ValueError: shapes or types disagree.
    """
    if a.dim() != 3 or a.shape != b.shape:
        raise ValueError(f"ssim: expected two images [H W D], got {list(a.shape)}, {list(b.shape)}")
    if not a.is_floating_point() or a.dtype != b.dtype:
        raise ValueError(f"ssim: expected images of one float type, got {a.dtype} and {b.dtype}")
    if counted is not None:
        if counted.shape != a.shape[:2] or counted.dtype != torch.bool:
            raise ValueError(
                f"counted: expected bool {list(a.shape[:2])}, got {list(counted.shape)}"
            )
        return reference.ssim_of_counted(a, b, counted)
    grad = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    if a.shape[2] == 3 and not grad and uses_triton("auto", a) and a.device == b.device:
        return photometric_values(a, b)[2]
    return reference.ssim(a, b)


def _prepare(backend: str, colors: Tensor, target: Tensor) -> tuple[ModuleType, Tensor, Tensor]:
    """The module of a backend, and the images as it takes them."""
    shapes = colors.shape, (*colors.shape[:2], 4)
    if colors.dim() != 3 or colors.shape[2] != 3 or target.shape not in shapes:
        raise ValueError(
            f"colors, target: expected two images [H W 3], got {list(colors.shape)} and "
            f"{list(target.shape)}"
        )
    if colors.numel() == 0:
        raise ValueError(f"colors: expected at least one pixel, got {list(colors.shape)}")
    if colors.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"colors: expected float32 or float64, got {colors.dtype}")
    if target.dtype not in (torch.uint8, colors.dtype):
        raise ValueError(f"target: expected uint8 or {colors.dtype}, got {target.dtype}")
    if target.device != colors.device:
        raise ValueError(f"target: expected on {colors.device} as colors, got on {target.device}")
    if backend == "auto" and target.requires_grad:
        backend = "reference"  # the kernel has no gradient for the target
    if not uses_triton(backend, colors):
        return reference, colors, target
    if colors.dtype != torch.float32:
        raise ValueError(f"backend 'triton': expected float32, got {colors.dtype}")
    if target.requires_grad:
        raise ValueError("backend 'triton': the target can have no gradient")
    if target.shape[2] == 4 and target.dtype != torch.uint8:
        raise ValueError(f"backend 'triton': expected a masked target in uint8, got {target.dtype}")
    # Triton is not everywhere, and nothing else needs it.
    from . import kernel as triton_ssim  # pyright: ignore[reportMissingImports]

    return triton_ssim, colors.contiguous(), target.contiguous()
