"""All stages in order: the reference behind `kernels.rasterization(backend="reference")`."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..constants import EPS2D, FAR_PLANE, NEAR_PLANE, TILE_SIZE
from .binning import gaussian_spans, split_rows, tiles_per_gauss
from .blending import buckets, composite, contributing_fragments
from .contributions import Contributions
from .masks import sample_masks
from .projection import Projection, projection
from .sorting import sort_by_depth
from .spherical_harmonics import spherical_harmonics

logger = logging.getLogger("splatrim")

# An image with more fragments than this is blended in bands of rows, and backward computes every
# band again: a fragment costs about 100 bytes in either pass.
MAX_FRAGMENTS = 6_000_000


class _Visible(NamedTuple):
    """The V Gaussians that one camera sees, from front to back."""

    ids: Tensor  # [V] int64 rows of the inputs
    projected: Projection  # of these rows
    radii: Tensor  # [N, 2] int32, of all


def rasterize(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, D], [C, N, D] or [N, K, 3]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    *,
    near_plane: float = NEAR_PLANE,
    far_plane: float = FAR_PLANE,
    eps2d: float = EPS2D,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,  # [C, D]
    render_mode: str = "RGB",
    antialiased: bool = False,
    absgrad: bool = False,
    masks: Tensor | None = None,  # [N]
    mask_logits: Tensor | None = None,  # [N] or [N, 2]
    mask_seed: int = 0,
    mask_ids: Tensor | None = None,  # [N] int32
    contributions: bool = False,
    deterministic: bool = False,
    covars: Tensor | None = None,  # [N, 3, 3]
    normalize_quats: bool = True,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render without validating; `kernels.rasterization` documents arguments and results.

    Args:
        covars: World covariances in place of quats and scales.
        normalize_quats: False uses quaternions as they are.
    """
    N, C = means.shape[0], viewmats.shape[0]
    if mask_logits is not None:
        lost = _nonfinite_rows([mask_logits])
        masks = sample_masks(_without_rows(mask_logits, lost), mask_seed, mask_ids)
        masks = _without_rows(masks, lost)
    per_camera_colors = sh_degree is None and colors.dim() == 3
    if per_camera_colors:
        colors = colors.transpose(0, 1)  # [N, C, D]

    required, optional = (means, quats, scales, opacities, colors), (masks, covars)
    broken = _nonfinite_rows([t for t in (*required, *optional, mask_logits) if t is not None])
    # Asking costs a synchronisation on CUDA, where the caller reads info["n_nonfinite"] instead.
    if not broken.is_cuda and broken.any():
        _warn_once("some Gaussians have NaN or infinite parameters and are not drawn")
    means, quats, scales, opacities, colors = (_without_rows(t, broken) for t in required)
    used_masks, covars = (None if t is None else _without_rows(t, broken) for t in optional)
    geometry = (means, quats, scales, opacities, covars)

    project = functools.partial(
        projection,
        near_plane=near_plane,
        far_plane=far_plane,
        eps2d=eps2d,
        antialiased=antialiased,
        normalize_quats=normalize_quats,
    )
    cameras = list(zip(viewmats, Ks, strict=True))
    seen = [_visible(geometry, broken, V, K, width, height, project) for V, K in cameras]
    # Images hang on this stack, so that its .grad is what the images of all cameras say.
    means2d = torch.stack([_spread(v.projected.means2d, v.ids, N) for v in seen])
    if means2d.requires_grad:
        means2d.retain_grad()
    abs_v_means2d = torch.zeros_like(means2d) if absgrad else None
    if abs_v_means2d is not None:
        means2d.absgrad = abs_v_means2d  # pyright: ignore[reportAttributeAccessIssue]

    scores = Contributions(N, means) if contributions else None
    images, transmittances = [], []
    for c, visible in enumerate(seen):
        features = []
        if "RGB" in render_mode:
            if sh_degree is None:
                source = colors[:, c] if per_camera_colors else colors
                features.append(source.index_select(0, visible.ids))
            else:
                features.append(_sh_colors(sh_degree, means, colors, viewmats[c], visible.ids))
        if "D" in render_mode:
            features.append(visible.projected.depths[:, None])
        image, remaining = _blend(
            visible,
            means2d[c].index_select(0, visible.ids),
            torch.cat(features, dim=1),
            None if used_masks is None else used_masks.index_select(0, visible.ids),
            width,
            height,
            scores,
            deterministic,
            None if abs_v_means2d is None else abs_v_means2d[c],
        )
        images.append(image)
        transmittances.append(remaining)
    image = torch.stack(images).reshape(C, height, width, -1)
    remaining = torch.stack(transmittances).reshape(C, height, width, 1)
    result = _finish(image, remaining, backgrounds, render_mode)

    radii = torch.stack([v.radii for v in seen])
    tiles = tiles_per_gauss(means2d.detach(), radii, width, height, TILE_SIZE)
    info: dict[str, Any] = {
        "width": width,
        "height": height,
        "tile_size": TILE_SIZE,
        "radii": radii,
        "means2d": means2d,
        "depths": torch.stack([_spread(v.projected.depths, v.ids, N) for v in seen]),
        "conics": torch.stack([_spread(v.projected.conics, v.ids, N) for v in seen]),
        "tiles_per_gauss": tiles,
        "n_isects": tiles.sum(),
        "n_nonfinite": broken.sum(),
        "masks": masks,
    }
    if scores is not None:
        info |= scores.info()
    return result, 1 - remaining, info


def _nonfinite_rows(tensors: list[Tensor]) -> Tensor:
    """Which Gaussians [N] have a parameter that is NaN or infinite."""
    bad = [~torch.isfinite(t.detach()) for t in tensors]
    return torch.stack([b.flatten(1).any(1) if b.dim() > 1 else b for b in bad]).any(0)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _without_rows(tensor: Tensor, broken: Tensor) -> Tensor:
    """Zeros in the broken rows, with zero gradients there."""
    if not (broken.is_cuda or broken.any()):
        return tensor
    return torch.where(broken.reshape(-1, *[1] * (tensor.dim() - 1)), 0.0, tensor)


def _visible(
    geometry: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    broken: Tensor,
    viewmat: Tensor,
    K: Tensor,
    width: int,
    height: int,
    project: Callable[..., Projection],
) -> _Visible:
    """Project without gradients to see what is visible, and that again with gradients."""
    means, quats, scales, opacities, covars = geometry
    with torch.no_grad():
        args = (means, quats, scales, opacities, viewmat, K, width, height)
        everything = project(*args, covars=covars)
        radii = everything.radii * ~broken[:, None]
        index = sort_by_depth(everything.depths, (radii > 0).all(-1))
    means, quats, scales, opacities = (t.index_select(0, index) for t in args[:4])
    covars = None if covars is None else covars.index_select(0, index)
    args = (means, quats, scales, opacities, viewmat, K, width, height)
    return _Visible(index, project(*args, covars=covars), radii)


def _sh_colors(
    degree: int, means: Tensor, coeffs: Tensor, viewmat: Tensor, index: Tensor
) -> Tensor:
    center = -viewmat[:3, :3].T @ viewmat[:3, 3]
    dirs = means.index_select(0, index) - center
    return spherical_harmonics(degree, dirs, coeffs.index_select(0, index))


def _spread(values: Tensor, index: Tensor, n: int) -> Tensor:
    """Rows of the visible Gaussians among all N; zeros for the others."""
    return values.new_zeros(n, *values.shape[1:]).index_copy(0, index, values)


def _blend(
    visible: _Visible,
    means2d: Tensor,  # [V, 2]
    features: Tensor,  # [V, D]
    masks: Tensor | None,  # [V]
    width: int,
    height: int,
    scores: Contributions | None,
    deterministic: bool,
    absgrad: Tensor | None,  # [N, 2]
) -> tuple[Tensor, Tensor]:
    """Features [H W, D] and remaining transmittance [H W] of one image."""
    conics, opacities = visible.projected.conics, visible.projected.opacities
    covars2d = visible.projected.covars2d
    target = None if scores is None else (scores, visible.ids)
    with torch.no_grad():
        spans = gaussian_spans(means2d, covars2d, conics, opacities, width, height)
        bands = split_rows(spans, height, MAX_FRAGMENTS)
    on_v_means2d = None
    if absgrad is not None:
        on_v_means2d = functools.partial(_add_absolute, absgrad, visible.ids)
    pixels, sums, remaining = [], [], []
    for band in bands:
        args = (band, means2d, conics, opacities, masks, width, height)
        fragments = contributing_fragments(*args, contributions=target)
        rows = buckets(fragments, dummy=means2d.shape[0])
        options = (width, deterministic, on_v_means2d)
        inputs = (rows, means2d, conics, opacities, features, masks, *options)
        if len(bands) > 1 and torch.is_grad_enabled():
            part = checkpoint(composite, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            part = composite(*inputs)
        pixels += [row.pixels for row in rows]
        sums.append(part[0])
        remaining.append(part[1])
    where = torch.cat(pixels)
    image = features.new_zeros(width * height, features.shape[1])
    rest = features.new_ones(width * height)
    return (
        image.index_copy(0, where, torch.cat(sums)),
        rest.index_copy(0, where, torch.cat(remaining)),
    )


def _add_absolute(absgrad: Tensor, ids: Tensor, index: Tensor, v_means2d: Tensor) -> None:
    total = absgrad.new_zeros(ids.shape[0] + 1, 2).index_add_(0, index, v_means2d.abs())
    absgrad.index_add_(0, ids, total[:-1])


def _finish(
    image: Tensor,  # [C, H, W, D]
    remaining: Tensor,  # [C, H, W, 1]
    backgrounds: Tensor | None,  # [C, D]
    render_mode: str,
) -> Tensor:
    """Put the background behind the colours and divide expected depths by alpha."""
    parts = []
    colors = image[..., :-1] if "D" in render_mode else image
    if "RGB" in render_mode:
        if backgrounds is not None:
            colors = colors + remaining * backgrounds[:, None, None, :]
        parts.append(colors)
    if "D" in render_mode:
        depth = image[..., -1:]
        if "ED" in render_mode:
            alpha = 1 - remaining
            empty = alpha <= 0
            depth = torch.where(empty, 0.0, depth / torch.where(empty, 1.0, alpha))
        parts.append(depth)
    return torch.cat(parts, dim=-1)
