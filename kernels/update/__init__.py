"""What a step does beside rendering: Adam, gradient norms, noise, repeated mask draws, poses.

These functions check their arguments once and call a backend.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..backend import uses_triton
from ..reference import gradient_norms as reference_norms
from ..reference import langevin as reference_langevin
from ..reference import masks as reference_masks
from ..reference import poses as reference_poses
from ..reference import row_rates as reference_row_rates
from ..reference import step_report as reference_step_report
from ..validation import check


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
        v_means2d: Gradients of image positions, in pixels, float32, of any strides; as all floats
            here also float64 with the reference. [C, N, 2]
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
    _check_floats(backend, v_means2d, gradients=gradients, views=views)
    if radii.dtype != torch.int32 or v_means2d.dtype != gradients.dtype:
        raise ValueError(
            f"expected radii int32 and v_means2d float32, got {radii.dtype} and {v_means2d.dtype}"
        )
    if skip is not None and (skip.numel() != 1 or skip.dtype != torch.int32):
        raise ValueError(f"skip: expected one int32, got {list(skip.shape)} {skip.dtype}")
    run: ModuleType = reference_norms
    if uses_triton(backend, v_means2d):
        from . import gradient_norms as run
    run.add_gradient_norms(v_means2d, radii, gradients, views, width, height, skip)


def count_views(radii: Tensor, *, backend: str = "auto") -> Tensor:  # [C, N, 2] -> [N]
    """How many of C cameras see each Gaussian, float32: those where both its radii are positive.

    Args:
        radii: Half extents of every Gaussian in pixels, int32. [C, N, 2]
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".

    Raises:
        ValueError: the shape or type is not as above.
    """
    check(radii=(radii, "C N 2"))
    if radii.dtype != torch.int32:
        raise ValueError(f"radii: expected int32, got {radii.dtype}")
    run: ModuleType = reference_norms
    if uses_triton(backend, radii):
        from . import gradient_norms as run
    return run.count_views(radii)


@torch.no_grad()
def add_langevin_noise(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    ids: Tensor,  # [N]
    *,
    seed: Tensor,  # [2]
    lr: Tensor,  # [1]
    noise_lr: float,
    steepness: float = 100.0,
    threshold: float = 0.005,
    skip: Tensor | None = None,  # [1] or []
    backend: str = "auto",
) -> None:
    """Move means at random by their covariance, the faint ones; see
    kernels/update/langevin.py.

    Nothing waits for the device, and CUDA graphs can capture it. A Gaussian's noise depends on
    seed and id alone.

    Args:
        means: Positions, changed in place, float32. [N, 3]
        quats: Rotations wxyz of any length but 0. [N, 4]
        scales: Logarithms of scales. [N, 3]
        opacities: Logits of opacities. [N]
        ids: Name of every Gaussian, int32. [N]
        seed: Low and high word, int32, on the device. [2]
        lr: Learning rate of the means, float32, on the device. [1]
        noise_lr: Multiplies it, per squared scene unit.
        steepness: k of the gate sigmoid(-k (opacity - threshold)).
        threshold: Opacity at which half of the noise is let through.
        skip: int32 on the device; if it is not 0, no mean moves.
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".

    Raises:
        ValueError: shapes or types are not as above.
    """
    dims = check(means=(means, "N 3"), quats=(quats, "N 4"), scales=(scales, "N 3"))
    check(dims, opacities=(opacities, "N"), ids=(ids, "N"), seed=(seed, "2"), lr=(lr, "1"))
    _check_floats(backend, opacities, means=means, quats=quats, scales=scales, opacities=opacities)
    _check_floats(backend, lr, lr=lr)
    for name, x in (("ids", ids), ("seed", seed)):
        if x.dtype != torch.int32 or not x.is_contiguous():
            raise ValueError(f"{name}: expected contiguous int32, got {x.dtype}")
    if skip is not None and (skip.numel() != 1 or skip.dtype != torch.int32):
        raise ValueError(f"skip: expected one int32, got {list(skip.shape)} {skip.dtype}")
    _backend(backend, means).add_langevin_noise(
        means, quats, scales, opacities, ids, seed, lr, noise_lr, steepness, threshold, skip
    )


@torch.no_grad()
def add_regularizer_gradients(
    opacities: Tensor,  # [N]
    scales: Tensor,  # [N, 3]
    v_opacities: Tensor,  # [N]
    v_scales: Tensor,  # [N, 3]
    *,
    lambda_opacity: float,
    lambda_scale: float,
    shares: Tensor | None = None,  # [N]
    backend: str = "auto",
) -> None:
    """Add the gradients of lambda_opacity mean(opacity) + lambda_scale mean(scale).

    Args:
        opacities: Logits of opacities, float32. [N]
        scales: Logarithms of scales. [N, 3]
        v_opacities: Gradient of the logits, changed in place. [N]
        v_scales: Gradient of the logarithms, changed in place. [N, 3]
        lambda_opacity: Weight of the mean opacity.
        lambda_scale: Weight of the mean scale over Gaussians and axes.
        shares: Weights of the Gaussians in these means, float32, in place of 1 / N each. [N]
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".

    Raises:
        ValueError: shapes or types are not as above.
    """
    dims = check(opacities=(opacities, "N"), scales=(scales, "N 3"))
    check(dims, v_opacities=(v_opacities, "N"), v_scales=(v_scales, "N 3"))
    _check_floats(
        backend,
        opacities,
        opacities=opacities,
        scales=scales,
        v_opacities=v_opacities,
        v_scales=v_scales,
    )
    if shares is not None:
        check(dims, shares=(shares, "N"))
        _check_floats(backend, shares, shares=shares)
    _backend(backend, opacities).add_regularizer_gradients(
        opacities, scales, v_opacities, v_scales, lambda_opacity, lambda_scale, shares
    )


@torch.no_grad()
def count_row_steps(
    steps: Tensor,  # [N]
    observations: Tensor,  # [N, P]
    *,
    betas: tuple[float, float],
    skip: Tensor | None = None,  # [1] or []
    backend: str = "auto",
) -> Tensor:  # [N, 2]
    """Count a step of Adam for the rows that are observed, and give the `rows` of `FusedAdam`.

    Nothing waits for the device, and CUDA graphs can capture it.

    Args:
        steps: Numbers of steps so far, int32, changed in place. [N]
        observations: How often each of P parts of a row is seen, float32; a row is if one is.
            [N, P]
        betas: Decay of the moments.
        skip: int32 on the device; if it is not 0, no row is seen.
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".

    Returns:
        1 / (1 - beta1^t) and sqrt(1 - beta2^t) of a row's steps t where it is seen, 0 and 0
        elsewhere, float32. [N, 2]

    Raises:
        ValueError: shapes or types are not as above.
    """
    check(steps=(steps, "N"), observations=(observations, "N P"))
    _check_floats(backend, observations, observations=observations)
    if steps.dtype != torch.int32 or not steps.is_contiguous():
        raise ValueError(f"steps: expected contiguous int32, got {steps.dtype}")
    if skip is not None and (skip.numel() != 1 or skip.dtype != torch.int32):
        raise ValueError(f"skip: expected one int32, got {list(skip.shape)} {skip.dtype}")
    run: ModuleType = reference_row_rates
    if uses_triton(backend, steps):
        from . import row_rates as run
    return run.count_row_steps(steps, observations, betas, skip)


@torch.no_grad()
def report_step(
    counts: Tensor,  # [2]
    limits: Tensor,  # [2]
    serial: Tensor,  # [1]
    *,
    missing: Tensor | None = None,  # [1]
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # [4], [1]
    """Whether a step fits its buffers; nothing waits for the device. All are int32.

    Args:
        counts: Rows and entries that it has. [2]
        limits: Those that there is room for. [2]
        serial: Its number. [1]
        missing: What else found no room. [1]
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".

    Returns:
        Rows, entries, what is missing and the number [4]; 1 where not all fits, else 0 [1].
    """
    run: ModuleType = reference_step_report
    if uses_triton(backend, counts):
        from . import step_report as run
    return run.report_step(counts, limits, missing, serial)


@torch.no_grad()
def add_losses(
    sums: Tensor,  # [4]
    loss: Tensor,  # [1]
    others: Tensor,  # [2]
    n_images: int,
    *,
    skip: Tensor | None = None,  # [1]
    backend: str = "auto",
) -> None:
    """Add a step's losses, and how many images it had, to sums in place; float32.

    Args:
        sums: Of the loss, of the two others, of images. [4]
        loss: Of the step. [1]
        others: Two more figures of it. [2]
        n_images: How many images it had.
        skip: int32 on the device; if it is not 0, nothing is added. [1]
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".
    """
    run: ModuleType = reference_step_report
    if uses_triton(backend, sums):
        from . import step_report as run
    run.add_losses(sums, loss, others, n_images, skip)


def _check_floats(backend: str, like: Tensor, **tensors: Tensor) -> None:
    """All of the type of `like`: float32, or float64 with the reference."""
    is_exact = like.dtype == torch.float64 and not uses_triton(backend, like)
    dtype = torch.float64 if is_exact else torch.float32
    for name, x in tensors.items():
        if x.dtype != dtype or not x.is_contiguous():
            raise ValueError(f"{name}: expected contiguous {dtype}, got {x.dtype}")


def _backend(backend: str, x: Tensor) -> ModuleType:
    if uses_triton(backend, x):
        from . import langevin

        return langevin
    return reference_langevin


def sampled_in_any(
    mask_logits: Tensor,  # [N] or [N, 2] (keep, drop)
    seeds: Sequence[int],
    ids: Tensor,  # [N] int32
    *,
    backend: str = "auto",
) -> Tensor:  # [N] bool
    """Which Gaussians have a mask of 1 in at least one of several draws.

    Args:
        mask_logits: Of existing, or of keeping and dropping, float32. [N] or [N, 2]
        seeds: One per draw, as `sample_masks` takes them; at least one.
        ids: Names of the Gaussians in the draws. [N]
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".

    Raises:
        ValueError: shapes disagree, no seed is given, or the backend is unknown.
    """
    n = len(mask_logits)
    if mask_logits.shape not in ((n,), (n, 2)) or ids.shape != (n,):
        shapes = f"{list(mask_logits.shape)}, {list(ids.shape)}"
        raise ValueError(f"mask_logits and ids: expected [N] or [N 2], and [N], got {shapes}")
    if not seeds:
        raise ValueError("seeds: expected at least one")
    run: ModuleType = reference_masks
    if uses_triton(backend, mask_logits):
        from . import sampled_masks as run
    return run.sampled_in_any(mask_logits, seeds, ids)


@torch.no_grad()
def step_poses(
    deltas: Tensor,  # [n + 1, 3, 4]
    exp_avg: Tensor,  # [n, 6]
    exp_avg_sq: Tensor,  # [n, 6]
    steps: Tensor,  # [n]
    rows: Tensor,  # [C]
    viewmats: Tensor,  # [C, 4, 4]
    v_viewmats: Tensor,  # [C, 4, 4]
    *,
    rate: Tensor,  # [1]
    unit: float,
    centred: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-15,
    skip: Tensor | None = None,  # [1] or []
    backend: str = "auto",
) -> None:
    """Take Adam's step of the poses of the images that were rendered; see kernels/update/poses.py.

    Nothing waits for the device with the Triton backend, and CUDA graphs can capture it.

    Args:
        deltas: What moves every image's given world-to-camera matrix, in camera space, changed in
            place; the last is that of cameras without a row, and stays. [n + 1, 3, 4]
        exp_avg: First moments, of translation and rotation, changed in place. [n, 6]
        exp_avg_sq: Second moments, changed in place. [n, 6]
        steps: Numbers of steps that images took, changed in place. [n]
        rows: Of the cameras, int32; those that are none of 0 to n - 1 are left out. [C]
        viewmats: Their world-to-camera matrices as they were rendered. [C, 4, 4]
        v_viewmats: Gradients of these. [C, 4, 4]
        rate: Learning rate, radians, on the device. [1]
        unit: Length that counts like a radian, in world units.
        centred: Whether to take the mean of all motions out of what moves.
        betas: Adam's.
        eps: Adam's.
        skip: int32 on the device; if it is not 0, nothing changes.
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".

    Raises:
        ValueError: shapes or types are not as above.
    """
    dims = check(exp_avg=(exp_avg, "n 6"), exp_avg_sq=(exp_avg_sq, "n 6"), steps=(steps, "n"))
    check(deltas=(deltas, "m 3 4"), rate=(rate, "1"))
    if len(deltas) != dims["n"] + 1:
        raise ValueError(f"deltas: expected [{dims['n'] + 1} 3 4], got {list(deltas.shape)}")
    check(rows=(rows, "C"), viewmats=(viewmats, "C 4 4"), v_viewmats=(v_viewmats, "C 4 4"))
    floats = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "steps": steps, "rate": rate}
    floats |= {"viewmats": viewmats, "v_viewmats": v_viewmats}
    _check_floats(backend, deltas, deltas=deltas, **floats)
    if rows.dtype != torch.int32:
        raise ValueError(f"rows: expected int32, got {rows.dtype}")
    if skip is not None and (skip.numel() != 1 or skip.dtype != torch.int32):
        raise ValueError(f"skip: expected one int32, got {list(skip.shape)} {skip.dtype}")
    run: ModuleType = reference_poses
    if uses_triton(backend, deltas):
        from . import poses as run
    run.step_poses(
        deltas, exp_avg, exp_avg_sq, steps, rows, viewmats, v_viewmats, rate, float(unit),
        centred, betas, eps, skip,
    )  # fmt: skip
