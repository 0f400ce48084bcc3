"""The public rasterizer: checks its arguments once per kind of call and calls a backend."""

import itertools
from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple, Protocol, SupportsIndex

import torch
from torch import Tensor

from .arguments import Capacity, RasterInputs, RenderSettings, without_column
from .backend import uses_triton
from .constants import EPS2D, FAR_PLANE, MAX_SH_DEGREE, NEAR_PLANE, TILE_SIZE
from .gsplat_forms import Form, rasterize_form
from .lenses import LENS_WORDS, PINHOLE, Lenses, lenses_from
from .reference.rasterization import rasterize as rasterize_reference
from .runtime.cache import Table, caches
from .validation import check, check_same

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
CAMERA_MODELS = ("pinhole", "fisheye", "equirectangular")

# gsplat's keywords that are not ours, and the values at which they change nothing here.
_ANY_BOOL, _ANY_INT = (True, False), (int,)
_GSPLAT_KEYWORDS: dict[str, tuple[object, ...]] = {
    "tile_size": _ANY_INT,
    "channel_chunk": _ANY_INT,
    "sparse_grad": (False,),
    "distributed": (False,),
    "camera_model": CAMERA_MODELS,
    "segmented": _ANY_BOOL,
    "with_eval3d": (False,),
    "global_z_order": _ANY_BOOL,
    "ftheta_coeffs": (None,),
    "rolling_shutter": (None, "GLOBAL"),
    "viewmats_rs": (None,),
}


def rasterization(
    means: Tensor,  # [N, 3]
    quats: Tensor | None,  # [N, 4]
    scales: Tensor | None,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, D], [C, N, D] or, with sh_degree, [N, K, 3], [C, N, K, 3]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    near_plane: float = NEAR_PLANE,
    far_plane: float = FAR_PLANE,
    radius_clip: float = 0.0,
    eps2d: float = EPS2D,
    sh_degree: int | None = None,
    packed: bool = False,
    tile_size: int = TILE_SIZE,
    backgrounds: Tensor | None = None,  # [C, D]
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Tensor | None = None,  # [N, 3, 3]
    *,
    masks: Tensor | None = None,  # [N] or [N, 1]
    mask_logits: Tensor | None = None,  # [N], [N, 1] or [N, 2]
    mask_seed: int | Tensor = 0,  # or [2] int32
    mask_ids: Tensor | None = None,  # [N] int32
    masks_by_camera: bool = False,
    contributions: bool = False,
    deterministic: bool = False,
    precision: str = "default",
    backend: str = "auto",
    colors_rest: Tensor | None = None,  # [N, K - 1, 3]
    raw: bool = False,
    capacity: Capacity | None = None,
    with_ut: bool = False,
    radial_coeffs: Tensor | None = None,  # [C, 6], of fisheyes [C, 4]
    tangential_coeffs: Tensor | None = None,  # [C, 2]
    thin_prism_coeffs: Tensor | None = None,  # [C, 4]
    lenses: Lenses | None = None,
    **gsplat_keywords: object,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render N Gaussians into C cameras, differentiably in every float argument but lenses.

    All tensors share one device and one dtype, float32 (or float64 with the reference). They may
    all have leading batch dimensions, as means [..., N, 3] and viewmats [..., C, 4, 4]; results
    then have them too, and are those of one call per element. Arguments come in gsplat's order.

    Args:
        means: Centres in the world.
        quats: Rotations (w, x, y, z) of any length but zero; normalised inside.
        scales: Standard deviations along the axes, in world units.
        opacities: In [0, 1].
        colors: D channels per Gaussian, the same or its own in every camera; with `sh_degree`,
            spherical harmonics of at least that degree, the same or its own in every camera, which
            become RGB + 0.5, at least 0.
        viewmats: World to camera, OpenCV axes (x right, y down, z forward).
        Ks: Intrinsics in pixels; the centre of the first pixel is at (0.5, 0.5). No skew.
        width: Of the images, in pixels.
        height: Of the images, in pixels.
        near_plane: Gaussians whose centre is not beyond this depth are culled.
        far_plane: Gaussians whose centre is not before this depth are culled.
        radius_clip: Gaussians whose half extents in a camera are both at most so many pixels are
            culled there. Costs two calls per camera, one of them without gradients.
        eps2d: Added to the projected covariances' diagonal, in square pixels.
        sh_degree: 0 to 3 if `colors` are spherical harmonics.
        packed: `info` has a row for each of V visible pairs of camera and Gaussian, which waits
            for the device: radii, means2d, depths, conics, opacities and tiles_per_gauss are [V,
            ...], batch_ids, camera_ids and gaussian_ids name the pairs. Unlike gsplat's, the
            default is False; images are the same.
        tile_size: Without effect, as channel_chunk and segmented: tiles are TILE_SIZE wide.
        backgrounds: Colour behind everything; depth has none.
        render_mode: "RGB" colours, "D" depth sum(w z), "ED" expected depth sum(w z) / sum(w), or
            colours with depth as last channel.
        rasterize_mode: "antialiased" scales opacities by sqrt(det / det_blurred).
        absgrad: Backward also sums absolute values per pixel into `info["means2d"].absgrad`.
        sparse_grad: Not supported, as distributed.
        camera_model: "pinhole", "fisheye" or "equirectangular". Pinholes without distortion project
            by EWA, all others by the unscented transform (reference/unscented.py), whose ellipses
            and gradients are exact for what is drawn; depth is the distance in fisheyes and
            panorama. A panorama has Ks of fx = W / 2 pi, fy = H / pi, cx = W / 2, cy = H / 2, and
            cuts Gaussians at its left and right border.
        covars: Covariances in the world, in place of quats and scales, which are not looked at.
        masks: Factor on each Gaussian's alpha after the 1/255 test, with a gradient also at 0.
        mask_logits: Draw hard masks instead: 1 with probability sigmoid(logit), or sigmoid of the
            difference (keep, drop); straight-through gradient.
        mask_seed: One integer per draw; or its two words (low and high 32 bits, each as a signed
            number) in a tensor [2] int32 on the device, which a captured CUDA graph reads anew.
        mask_ids: Names the Gaussians in the draw, so that it does not depend on their order;
            default the row.
        masks_by_camera: Draw masks for each camera, the first of which has the draw that all have
            otherwise; info["masks"] are then their means.
        contributions: Also return contrib_max, contrib_sum, contrib_count and contrib_top.
        deterministic: Gradients do not depend on the order in which threads run.
        precision: "default" gradients (RMS error about 2e-4 per tensor), or "exact" to float32
            rounding with the Triton backend.
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".
        colors_rest: SH coefficients above degree 0, with `colors` [N, 1, 3] the rest of them.
        raw: `scales` are logarithms and `opacities` logits; exp and sigmoid are fused.
        capacity: How many records and list entries to make room for, in place of what was learnt
            from earlier calls (Triton backend). Nothing is copied to the host or waited for, so
            that the call and its backward can be captured in a CUDA graph. `info["counts"]` [2]
            int32 on the device says how many rows and entries the scene has: images and gradients
            are right only where both are within the capacity. Entries of rows beyond it are not
            counted.
        with_ut: Pinholes without distortion go through the unscented transform, too.
        radial_coeffs: k1 to k6 of OpenCV's rational model, or k1 to k4 of its fisheyes. These three
            are read by the host in every call, for where the lens ends; `lenses` saves that.
        tangential_coeffs: p1, p2; in a fisheye they act on the angles, as COLMAP has it.
        thin_prism_coeffs: s1 to s4 of OpenCV.
        lenses: Instead of these four (`kernels.lenses_of`); `camera_model` counts no more.
        gsplat_keywords: gsplat's further keywords, at values that change nothing.

    Returns:
        colors [C, H, W, D] (depth last), alphas [C, H, W, 1], and a dictionary with width, height,
        tile_size, tile_width, tile_height, n_cameras, n_batches, radii [C, N, 2] int32 (half
        extents in pixels, 0 = culled), means2d [C, N, 2] (retains .grad), depths [C, N], conics
        [C, N, 3], opacities [C, N] (as blended, 0 = culled), tiles_per_gauss [C, N], n_isects,
        n_nonfinite (Gaussians culled for NaN or infinite parameters), masks [N] (or None),
        isect_ids [n_isects] int64, flatten_ids, isect_offsets [C, tile_height, tile_width] (made
        when read: reference/tile_keys.py), gaussian_ids, camera_ids and batch_ids (None unless
        packed), and on request contrib_max, contrib_sum, contrib_count, contrib_top [N], over all
        cameras.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
        NotImplementedError: a keyword of gsplat at a value that is not supported.
        TypeError: an unknown keyword.
    """
    if gsplat_keywords or sparse_grad or distributed or camera_model != "pinhole":
        named = {"sparse_grad": sparse_grad, "distributed": distributed}
        _check_gsplat_keywords({**named, "camera_model": camera_model, **gsplat_keywords})
    if type(width) is not int or type(height) is not int or width < 1 or height < 1:
        width, height = _size("width", width), _size("height", height)
    plain = radial_coeffs is tangential_coeffs is thin_prism_coeffs is None
    if with_ut or camera_model != "pinhole" or not plain:
        if lenses is not None:
            raise ValueError("lenses: expected none beside with_ut, camera_model and coefficients")
        lenses = lenses_from(
            camera_model, Ks, width, height, radial_coeffs, tangential_coeffs, thin_prism_coeffs
        )
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(
            f"rasterize_mode: expected 'classic' or 'antialiased', got {rasterize_mode!r}"
        )
    if precision not in ("default", "exact"):
        raise ValueError(f"precision: expected 'default' or 'exact', got {precision!r}")
    settings = RenderSettings(
        width, height, float(near_plane), float(far_plane), float(eps2d), sh_degree, render_mode,
        rasterize_mode == "antialiased", raw, True, absgrad, contributions, deterministic,
        precision == "exact", PINHOLE if lenses is None else lenses.kind, masks_by_camera,
    )  # fmt: skip
    if covars is not None:
        quats = scales = None
    has_batch = getattr(means, "ndim", 2) > 2
    if not has_batch:
        masks, mask_logits = without_column(masks), without_column(mask_logits)
    words, seed = (mask_seed, 0) if isinstance(mask_seed, Tensor) else (None, int(mask_seed))
    inputs = RasterInputs(
        means, quats, scales, opacities, colors, viewmats, Ks, colors_rest, covars, backgrounds,
        masks, mask_logits, mask_ids, words, None if lenses is None else lenses.words, seed,
    )  # fmt: skip
    by_camera = sh_degree is not None and getattr(colors, "ndim", 3) == 4
    if packed or radius_clip > 0.0 or has_batch or by_camera:
        if capacity is not None:
            raise ValueError("capacity: expected none with batches, packing or a radius clip")
        form = Form(tuple(means.shape[:-2]), float(radius_clip), bool(packed))
        return rasterize_form(partial(rasterize_plain, backend=backend), inputs, settings, form)
    return rasterize_plain(inputs, settings, capacity, backend)


def rasterize_plain(
    inputs: RasterInputs,
    settings: RenderSettings,
    capacity: Capacity | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render the plain form."""
    kind = _kind_of(inputs, settings, backend)
    return kind.rasterize(inputs, settings, capacity, kind.name)


class Rasterize(Protocol):
    """`rasterize` of a backend."""

    def __call__(
        self,
        inputs: RasterInputs,
        settings: RenderSettings,
        capacity: Capacity | None,
        kind: Hashable,
    ) -> tuple[Tensor, Tensor, dict[str, Any]]: ...


class _Kind(NamedTuple):
    """Calls that were found valid: checking takes longer than a small scene's kernels."""

    rasterize: Rasterize
    name: int  # stands for all that makes the kind: quicker to compare


_kinds = caches.add(Table[Hashable, _Kind]())
_names = itertools.count()


def _kind_of(inputs: RasterInputs, settings: RenderSettings, backend: str) -> _Kind:
    try:
        return _kinds[inputs.signature(), settings, backend]
    except (AttributeError, KeyError, TypeError):
        _validate(inputs, settings)
        kind = _Kind(choose_backend(backend, inputs.means), next(_names))
        _kinds[inputs.signature(), settings, backend] = kind
        return kind


def _validate(x: RasterInputs, settings: RenderSettings) -> None:
    """Raise ValueError for the first argument of `rasterization` that cannot be."""
    if settings.render_mode not in RENDER_MODES:
        raise ValueError(
            f"render_mode: expected one of {RENDER_MODES}, got {settings.render_mode!r}"
        )
    dims = check(means=(x.means, "N 3"))
    if x.covars is None:
        check(dims, quats=(x.quats, "N 4"), scales=(x.scales, "N 3"))
    else:
        check(dims, covars=(x.covars, "N 3 3"))
    dims = check(
        dims, opacities=(x.opacities, "N"), viewmats=(x.viewmats, "C 4 4"), Ks=(x.Ks, "C 3 3")
    )
    if dims["C"] == 0:
        raise ValueError("viewmats: expected at least one camera, got [0, 4, 4]")
    dims["D"] = _check_colors(x.colors, x.colors_rest, settings.sh_degree, dims)
    if x.backgrounds is not None:
        check(dims, backgrounds=(x.backgrounds, "C D"))
    _check_masks(x, dims)
    _check_lenses(x, settings, dims)
    floats = x._asdict()
    for name in ("mask_ids", "mask_words", "mask_seed"):
        del floats[name]
    check_same("means", **floats)
    for name, given in (("mask_ids", x.mask_ids), ("mask_seed", x.mask_words)):
        if given is not None and given.device != x.means.device:
            raise ValueError(f"{name}: expected on {x.means.device} as means, got {given.device}")
    if x.mask_words is not None:
        check(mask_seed=(x.mask_words, "2"))
        if x.mask_words.dtype != torch.int32:
            raise ValueError(f"mask_seed: expected an integer or int32, got {x.mask_words.dtype}")


def choose_backend(backend: str, means: Tensor) -> Rasterize:
    """The function `rasterize` of a backend; "auto" takes Triton for float32 on CUDA."""
    if not uses_triton(backend, means):
        return rasterize_reference
    if means.dtype != torch.float32:
        raise ValueError(f"backend 'triton': expected float32, got {means.dtype}")
    # Triton is not everywhere, and nothing else needs it.
    from .pipeline import rasterize  # pyright: ignore[reportMissingImports]

    return rasterize


def _size(name: str, value: object) -> int:
    if not isinstance(value, SupportsIndex) or value.__index__() < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return value.__index__()


def _check_colors(
    colors: Tensor, rest: Tensor | None, sh_degree: int | None, dims: dict[str, int]
) -> int:
    """The number of colour channels."""
    if sh_degree is None:
        if rest is not None:
            raise ValueError("colors_rest: given without sh_degree")
        spec = "C N D" if isinstance(colors, Tensor) and colors.dim() == 3 else "N D"
        return check(dims, colors=(colors, spec))["D"]
    if sh_degree not in range(MAX_SH_DEGREE + 1):
        raise ValueError(f"sh_degree: expected 0 to {MAX_SH_DEGREE}, got {sh_degree!r}")
    if rest is None:
        bands = check(dims, colors=(colors, "N K 3"))["K"]
    else:
        check(dims, colors=(colors, "N 1 3"))
        bands = 1 + check(dims, colors_rest=(rest, "N K 3"))["K"]
    if bands < (sh_degree + 1) ** 2:
        raise ValueError(
            f"colors: sh_degree={sh_degree} needs {(sh_degree + 1) ** 2} coefficients, got {bands}"
        )
    return 3


def _check_masks(x: RasterInputs, dims: dict[str, int]) -> None:
    """Masks [N] and logits [N] or [N, 2], of which at most one is given."""
    if x.masks is not None and x.mask_logits is not None:
        raise ValueError("masks and mask_logits: give only one of them")
    if x.masks is not None:
        check(dims, masks=(x.masks, "N"))
    if x.mask_logits is not None:
        pair = getattr(x.mask_logits, "ndim", 1) == 2
        check(dims, mask_logits=(x.mask_logits, "N 2" if pair else "N"))
    if x.mask_ids is not None:
        check(dims, mask_ids=(x.mask_ids, "N"))
        if x.mask_ids.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"mask_ids: expected int32, got {x.mask_ids.dtype}")
        if x.mask_logits is None:
            raise ValueError("mask_ids: given without mask_logits")


def _check_lenses(x: RasterInputs, settings: RenderSettings, dims: dict[str, int]) -> None:
    """A vector for each camera where lenses bend lines, and Gaussians by their axes."""
    if (x.lenses is None) != (settings.lens.family == "pinhole"):
        raise ValueError(f"lenses: expected vectors of the kind {settings.lens}, or none")
    if x.lenses is not None:
        found = check(dims, lenses=(x.lenses, "C W"))["W"]
        if found != LENS_WORDS:
            raise ValueError(f"lenses: expected [C {LENS_WORDS}], got {list(x.lenses.shape)}")
        if x.covars is not None:
            raise ValueError("covars: expected none where lenses bend lines; give quats and scales")


def _check_gsplat_keywords(keywords: dict[str, object]) -> None:
    for name, value in keywords.items():
        if name not in _GSPLAT_KEYWORDS:
            raise TypeError(f"rasterization() got an unexpected keyword argument {name!r}")
        neutral = _GSPLAT_KEYWORDS[name]
        if neutral is _ANY_INT:
            accepted = isinstance(value, int)
        else:
            # gsplat's enumerations are known by the name of the value.
            value = value if isinstance(value, Tensor) else getattr(value, "name", value)
            accepted = any(value is v or (v is not None and value == v) for v in neutral)
        if not accepted:
            raise NotImplementedError(f"rasterization: {name}={value!r} is not supported")
