"""The public rasterizer: checks its arguments once and calls a backend."""

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from .backend import uses_triton
from .constants import EPS2D, FAR_PLANE, MAX_SH_DEGREE, NEAR_PLANE
from .reference.rasterization import rasterize as rasterize_reference
from .validation import check, check_same

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")

# gsplat's keywords that are not ours, and the values at which they change nothing here.
_ANY_BOOL, _ANY_INT = (True, False), int
_GSPLAT_KEYWORDS: dict[str, Any] = {
    "radius_clip": (0.0,),
    "packed": _ANY_BOOL,
    "tile_size": _ANY_INT,
    "sparse_grad": (False,),
    "channel_chunk": _ANY_INT,
    "distributed": (False,),
    "camera_model": ("pinhole",),
    "segmented": _ANY_BOOL,
    "covars": (None,),
    "with_ut": (False,),
    "with_eval3d": (False,),
    "global_z_order": _ANY_BOOL,
    "radial_coeffs": (None,),
    "tangential_coeffs": (None,),
    "thin_prism_coeffs": (None,),
    "ftheta_coeffs": (None,),
    "rolling_shutter": (None, "GLOBAL"),
    "viewmats_rs": (None,),
}


def rasterization(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, D], [C, N, D] or, with sh_degree, [N, K, 3]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    near_plane: float = NEAR_PLANE,
    far_plane: float = FAR_PLANE,
    *,
    eps2d: float = EPS2D,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,  # [C, D]
    render_mode: str = "RGB",
    rasterize_mode: str = "classic",
    absgrad: bool = False,
    masks: Tensor | None = None,  # [N] or [N, 1]
    mask_logits: Tensor | None = None,  # [N], [N, 1] or [N, 2]
    mask_seed: int | Tensor = 0,  # or [2] int32
    mask_ids: Tensor | None = None,  # [N] int32
    contributions: bool = False,
    deterministic: bool = False,
    precision: str = "default",
    backend: str = "auto",
    **gsplat_keywords: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render N Gaussians into C pinhole cameras, differentiably in every float argument.

    All tensors share one device and one dtype, float32 (or float64 with the reference).

    Args:
        means: Centres in the world.
        quats: Rotations (w, x, y, z) of any length but zero; normalised inside.
        scales: Standard deviations along the axes, in world units.
        opacities: In [0, 1].
        colors: D channels per Gaussian, the same or its own in every camera; with `sh_degree`,
            spherical harmonics of at least that degree, which become RGB + 0.5, at least 0.
        viewmats: World to camera, OpenCV axes (x right, y down, z forward).
        Ks: Intrinsics in pixels; the centre of the first pixel is at (0.5, 0.5). No skew.
        width: Of the images, in pixels.
        height: Of the images, in pixels.
        near_plane: Gaussians whose centre is not beyond this depth are culled.
        far_plane: Gaussians whose centre is not before this depth are culled.
        eps2d: Added to the projected covariances' diagonal, in square pixels.
        sh_degree: 0 to 3 if `colors` are spherical harmonics.
        backgrounds: Colour behind everything; depth has none.
        render_mode: "RGB" colours, "D" depth sum(w z), "ED" expected depth sum(w z) / sum(w), or
            colours with depth as last channel.
        rasterize_mode: "antialiased" scales opacities by sqrt(det / det_blurred).
        absgrad: Backward also sums absolute values per pixel into `info["means2d"].absgrad`.
        masks: Factor on each Gaussian's alpha after the 1/255 test, with a gradient also at 0.
        mask_logits: Draw hard masks instead: 1 with probability sigmoid(logit), or sigmoid of the
            difference (keep, drop); straight-through gradient.
        mask_seed: One integer per draw; or its two words (low and high 32 bits, each as a signed
            number) in a tensor [2] int32 on the device, which a captured CUDA graph reads anew.
        mask_ids: Names the Gaussians in the draw, so that it does not depend on their order;
            default the row.
        contributions: Also return contrib_max, contrib_sum, contrib_count and contrib_top.
        deterministic: Gradients do not depend on the order in which threads run.
        precision: "default" gradients (RMS error about 2e-4 per tensor), or "exact" to float32
            rounding with the Triton backend.
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".
        gsplat_keywords: gsplat's further keywords, at values that change nothing.

    Returns:
        colors [C, H, W, D] (depth last), alphas [C, H, W, 1], and a dictionary with width, height,
        tile_size, radii [C, N, 2] int32 (half extents in pixels, 0 = culled), means2d [C, N, 2]
        (retains .grad), depths [C, N], conics [C, N, 3], tiles_per_gauss [C, N], n_isects,
        n_nonfinite (Gaussians culled for NaN or infinite parameters), masks [N] (or None), and
        if asked contrib_max, contrib_sum, contrib_count, contrib_top [N], over all cameras.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        NotImplementedError: a keyword of gsplat at a value that is not supported.
        TypeError: an unknown keyword.
    """
    if gsplat_keywords:
        _check_gsplat_keywords(gsplat_keywords)
    if type(width) is not int or type(height) is not int or width < 1 or height < 1:
        width, height = _size("width", width), _size("height", height)
    if precision not in ("default", "exact"):
        raise ValueError(f"precision: expected 'default' or 'exact', got {precision!r}")
    arguments = (
        means, quats, scales, opacities, colors, viewmats, Ks, backgrounds, masks, mask_logits,
        mask_ids, mask_seed if isinstance(mask_seed, Tensor) else None, sh_degree, render_mode,
        rasterize_mode,
    )  # fmt: skip
    signature = tuple([
        x if x is None
        else (x.shape, x.dtype, x.device) if isinstance(x, Tensor)
        else x if isinstance(x, int | str) else type(x)
        for x in arguments
    ])  # fmt: skip
    shapes = _accepted.get(signature)
    if shapes is None:
        _validate(*arguments)
        if len(_accepted) > 256:
            _accepted.clear()
        shapes = _accepted[signature] = next(_names)
    if masks is not None and masks.dim() != 1:
        masks = masks.reshape(-1)
    if mask_logits is not None and mask_logits.dim() == 2 and mask_logits.shape[1] == 1:
        mask_logits = mask_logits.reshape(-1)

    run = choose_backend(backend, means)
    if not isinstance(mask_seed, Tensor):
        mask_seed = int(mask_seed)
    elif run is rasterize_reference:
        low, high = mask_seed.tolist()
        mask_seed = (high << 32) | (low & 0xFFFFFFFF)
    # the reference is always exact
    options: dict[str, Any] = {}
    if run is not rasterize_reference:
        options = {"exact": precision == "exact", "shapes": shapes}
    return run(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height,
        near_plane=near_plane, far_plane=far_plane, eps2d=eps2d, sh_degree=sh_degree,
        backgrounds=backgrounds, render_mode=render_mode,
        antialiased=rasterize_mode == "antialiased", absgrad=absgrad, masks=masks,
        mask_logits=mask_logits, mask_seed=mask_seed, mask_ids=mask_ids,
        contributions=contributions, deterministic=deterministic, **options,
    )  # fmt: skip


# Signatures that were found valid, and a number that stands for each: checking takes longer than a
# small scene's kernels.
_accepted: dict[tuple[Any, ...], int] = {}
_names = itertools.count()


def _validate(
    means: Any,
    quats: Any,
    scales: Any,
    opacities: Any,
    colors: Any,
    viewmats: Any,
    Ks: Any,
    backgrounds: Any,
    masks: Any,
    mask_logits: Any,
    mask_ids: Any,
    mask_seed: Any,
    sh_degree: Any,
    render_mode: Any,
    rasterize_mode: Any,
) -> None:
    """Raise ValueError for the first argument of `rasterization` that cannot be."""
    if render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode: expected one of {RENDER_MODES}, got {render_mode!r}")
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(
            f"rasterize_mode: expected 'classic' or 'antialiased', got {rasterize_mode!r}"
        )
    dims = check(
        means=(means, "N 3"), quats=(quats, "N 4"), scales=(scales, "N 3"),
        opacities=(opacities, "N"), viewmats=(viewmats, "C 4 4"), Ks=(Ks, "C 3 3"),
    )  # fmt: skip
    if dims["C"] == 0:
        raise ValueError("viewmats: expected at least one camera, got [0, 4, 4]")
    dims["D"] = _check_colors(colors, sh_degree, dims)
    if backgrounds is not None:
        check(dims, backgrounds=(backgrounds, "C D"))
    _check_masks(masks, mask_logits, mask_ids, dims)
    check_same(
        "means", means=means, quats=quats, scales=scales, opacities=opacities, colors=colors,
        viewmats=viewmats, Ks=Ks, backgrounds=backgrounds, masks=masks, mask_logits=mask_logits,
    )  # fmt: skip
    for name, x in (("mask_ids", mask_ids), ("mask_seed", mask_seed)):
        if x is not None and x.device != means.device:
            raise ValueError(f"{name}: expected on {means.device} as means, got {x.device}")
    if mask_seed is not None:
        check(mask_seed=(mask_seed, "2"))
        if mask_seed.dtype != torch.int32:
            raise ValueError(f"mask_seed: expected an integer or int32, got {mask_seed.dtype}")


def choose_backend(backend: str, means: Tensor) -> Any:
    """The function `rasterize` of a backend; "auto" takes Triton for float32 on CUDA."""
    if not uses_triton(backend, means):
        return rasterize_reference
    if means.dtype != torch.float32:
        raise ValueError(f"backend 'triton': expected float32, got {means.dtype}")
    return _triton_backend()


@functools.cache
def _triton_backend() -> Any:
    # Triton is not everywhere, and nothing else needs it.
    from .pipeline import rasterize  # pyright: ignore[reportMissingImports]

    return rasterize


def _size(name: str, value: Any) -> int:
    if not hasattr(value, "__index__") or value.__index__() < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return value.__index__()


def _check_colors(colors: Tensor, sh_degree: int | None, dims: dict[str, int]) -> int:
    """The number of colour channels."""
    if sh_degree is None:
        spec = "C N D" if isinstance(colors, Tensor) and colors.dim() == 3 else "N D"
        return check(dims, colors=(colors, spec))["D"]
    if sh_degree not in range(MAX_SH_DEGREE + 1):
        raise ValueError(f"sh_degree: expected 0 to {MAX_SH_DEGREE}, got {sh_degree!r}")
    bands = check(dims, colors=(colors, "N K 3"))["K"]
    if bands < (sh_degree + 1) ** 2:
        raise ValueError(
            f"colors: sh_degree={sh_degree} needs {(sh_degree + 1) ** 2} coefficients, got {bands}"
        )
    return 3


def _check_masks(
    masks: Tensor | None, mask_logits: Tensor | None, mask_ids: Tensor | None, dims: dict[str, int]
) -> None:
    """Masks [N] or [N, 1] and logits [N], [N, 1] or [N, 2], of which at most one is given."""
    if masks is not None and mask_logits is not None:
        raise ValueError("masks and mask_logits: give only one of them")
    if masks is not None:
        check(dims, masks=(masks, "N 1" if getattr(masks, "ndim", 1) == 2 else "N"))
    if mask_logits is not None:
        pair = getattr(mask_logits, "ndim", 1) == 2
        columns = "1" if pair and mask_logits.shape[1] == 1 else "2"
        check(dims, mask_logits=(mask_logits, f"N {columns}" if pair else "N"))
    if mask_ids is not None:
        check(dims, mask_ids=(mask_ids, "N"))
        if mask_ids.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"mask_ids: expected int32, got {mask_ids.dtype}")
        if mask_logits is None:
            raise ValueError("mask_ids: given without mask_logits")


def _check_gsplat_keywords(keywords: dict[str, Any]) -> None:
    for name, value in keywords.items():
        if name not in _GSPLAT_KEYWORDS:
            raise TypeError(f"rasterization() got an unexpected keyword argument {name!r}")
        neutral = _GSPLAT_KEYWORDS[name]
        if neutral is _ANY_INT:
            accepted = isinstance(value, int)
        else:
            # gsplat's enumerations are told by the name of the value.
            value = value if isinstance(value, Tensor) else getattr(value, "name", value)
            accepted = any(value is v or (v is not None and value == v) for v in neutral)
        if not accepted:
            raise NotImplementedError(f"rasterization: {name}={value!r} is not supported")
