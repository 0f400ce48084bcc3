r"""EWA projection of 3D Gaussians to ellipses on the image.

    t      = R_view mean + t_view                     camera space, OpenCV axes
    mean2d = (fx tx/tz + cx, fy ty/tz + cy)           pixels, pixel centres at +0.5
    J      = [[fx/tz, 0, -fx u/tz], [0, fy/tz, -fy v/tz]]
    cov2d  = J R_view cov3d R_view^T J^T + eps2d I    cov3d = R S S R^T
    conic  = cov2d^-1                                 upper triangle A, B, C

u = tx/tz and v = ty/tz are clamped to the field of view plus 0.3 tan(fov/2) on each side; the
gradient is that of the clamp. See EWA Volume Splatting (Zwicker et al. 2001), equation 31.

The support of a Gaussian is the ellipse where alpha >= 1/255, i.e. d^T conic d <= 2 ln(255 o); its
half extents are sqrt(2 ln(255 o) cov2d_xx) and sqrt(2 ln(255 o) cov2d_yy).

Lenses that bend lines go through the unscented transform instead (unscented.py), which takes the
place of the first four lines; depth is the distance where a lens is a fisheye or a panorama.
"""

import functools
import logging
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arguments import RasterInputs, RenderSettings
from ..constants import ALPHA_MIN, FOV_MARGIN, MOST_ANGLE, REACH
from ..lenses import PINHOLE, LensKind, angles_beyond, depths_of, project_points
from ..lenses.kinds import EDGE
from .masks import sample_masks
from .sorting import sort_by_depth
from .spherical_harmonics import spherical_harmonics
from .unscented import unscented

logger = logging.getLogger("splatrim")

# Extents grow by this much, so that rounding never loses a pixel of the support.
EXTENT_SLACK = 1e-3


class Projection(NamedTuple):
    """M Gaussians as one camera sees them."""

    means2d: Tensor  # [M, 2] pixels
    depths: Tensor  # [M] camera z, or the distance: `lenses.depths_of`
    conics: Tensor  # [M, 3] upper triangle
    covars2d: Tensor  # [M, 3] blurred, upper triangle
    opacities: Tensor  # [M] after the antialiasing compensation
    radii: Tensor  # [M, 2] int32 half extents in pixels, 0 = culled


class View(NamedTuple):
    """The V Gaussians that one camera sees, from front to back."""

    ids: Tensor  # [V] int64 rows of the inputs
    projected: Projection  # of these rows
    colors: Tensor | None  # [V, D], None where only depth is rendered
    masks: Tensor | None  # [V]
    radii: Tensor  # [N, 2] int32, of all

    def spread(self, values: Tensor) -> Tensor:
        """Rows of the visible Gaussians among all N; zeros for the others."""
        N = self.radii.shape[0]
        return values.new_zeros(N, *values.shape[1:]).index_copy(0, self.ids, values)


class Records(NamedTuple):
    """What every camera sees of N Gaussians."""

    views: list[View]
    means2d: Tensor  # [C, N, 2]; images hang on it, so that its .grad is what they say together
    masks: Tensor | None  # [N] as given or as drawn
    nonfinite: Tensor  # [N] bool: Gaussians with NaN or infinite parameters, which are culled
    width: int
    height: int


def quats_to_rotmats(quats: Tensor) -> Tensor:
    """Rotation matrices [M, 3, 3] of quaternions [M, 4] (w, x, y, z), used as they are."""
    w, x, y, z = quats.unbind(-1)
    first = (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y))
    second = (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x))
    third = (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))
    return torch.stack([*first, *second, *third], dim=-1).reshape(*quats.shape[:-1], 3, 3)


def projection(
    means: Tensor,  # [M, 3]
    quats: Tensor,  # [M, 4]
    scales: Tensor,  # [M, 3]
    opacities: Tensor,  # [M]
    viewmat: Tensor,  # [4, 4]
    K: Tensor,  # [3, 3]
    width: int,
    height: int,
    *,
    near_plane: float,
    far_plane: float,
    eps2d: float,
    antialiased: bool = False,
    covars: Tensor | None = None,  # [M, 3, 3]
    normalize_quats: bool = True,
    lens: LensKind = PINHOLE,
    lens_words: Tensor | None = None,  # [LENS_WORDS]
) -> Projection:
    """Project Gaussians into one camera.

    Rows that are culled have radii 0 and meaningless, possibly non-finite, other entries: select
    the visible rows under `torch.no_grad()` and project those again for gradients.

    Args:
        covars: World covariances in place of quats and scales.
        normalize_quats: Divide quaternions by their norm first.
        lens: What is known of the lens; only "pinhole" takes `covars`.
        lens_words: The lens, unless it is a pinhole.
    """
    t = means @ viewmat[:3, :3].T + viewmat[:3, 3]
    if normalize_quats:
        quats = F.normalize(quats, dim=-1, eps=0.0)
    kept = torch.ones(len(t), dtype=torch.bool, device=t.device)
    if lens_words is None:
        depths = t[:, 2]
        half = None if covars is not None else quats_to_rotmats(quats) * scales[:, None, :]
        means2d, xx, xy, yy, det = _ewa(t, half, covars, viewmat, K, width, height)
    else:
        assert covars is None
        depths, axes = depths_of(lens.family, t), quats_to_rotmats(quats) * scales[:, None, :]
        means2d, xx, xy, yy, det = unscented(
            t,
            viewmat[:3, :3] @ axes,
            lambda points: project_points(lens.family, K, lens_words, points),
            turn=2 * torch.pi * K[0, 0] if lens.family == "equirectangular" else None,
        )
        with torch.no_grad():
            kept = _may_reach(lens, lens_words, t, scales)
    det_blurred = det + eps2d * (xx + yy) + eps2d * eps2d
    xx, yy = xx + eps2d, yy + eps2d
    conics = torch.stack([yy, -xy, xx], dim=-1) / det_blurred[:, None]

    if antialiased:
        positive = det > 0
        ratio = torch.where(positive, det, 1.0) / torch.where(positive, det_blurred, 1.0)
        opacities = opacities * torch.where(positive, ratio.sqrt(), 0.0)

    with torch.no_grad():
        reach = 2 * torch.log(opacities / ALPHA_MIN).clamp_min(0)
        extents = torch.stack([(reach * xx).sqrt(), (reach * yy).sqrt()], dim=-1)
        pixels = torch.ceil(extents * (1 + EXTENT_SLACK) + EXTENT_SLACK)
        size = means2d.new_tensor([width, height])
        kept &= (depths > near_plane) & (depths < far_plane)
        # Comparisons with NaN are false, so these also cull whatever overflowed.
        kept &= (det_blurred > 0) & (xx > 0) & (yy > 0) & (opacities >= ALPHA_MIN)
        kept &= ((means2d + pixels > 0) & (means2d - pixels < size)).all(-1)
        kept &= torch.isfinite(conics).all(-1) & torch.isfinite(extents).all(-1)
        # Half extents beyond any image are all the same to everyone.
        pixels = pixels.nan_to_num(0.0).clamp(0, 2**30)
        radii = torch.where(kept[:, None], pixels, 0.0).to(torch.int32)
    covars2d = torch.stack([xx, xy, yy], dim=-1)
    return Projection(means2d, depths, conics, covars2d, opacities, radii)


def _ewa(
    t: Tensor,  # [M, 3] camera space
    axes: Tensor | None,  # [M, 3, 3] R S, in place of
    covars: Tensor | None,  # [M, 3, 3]
    viewmat: Tensor,
    K: Tensor,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [M, 2], [M] four times
    """Mean, xx, xy, yy and determinant of the image of Gaussians, without blur."""
    R_view = viewmat[:3, :3]
    x, y, z = t.unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    xz, yz = x / z, y / z
    means2d = torch.stack([fx * xz + cx, fy * yz + cy], dim=-1)

    margin_x = FOV_MARGIN * 0.5 * width / fx
    margin_y = FOV_MARGIN * 0.5 * height / fy
    u = torch.clamp(xz, -cx / fx - margin_x, (width - cx) / fx + margin_x)
    v = torch.clamp(yz, -cy / fy - margin_y, (height - cy) / fy + margin_y)
    # Rows of J R_view: the third row of R_view enters with the clamped slopes.
    jr_x = (fx / z)[:, None] * (R_view[0] - u[:, None] * R_view[2])
    jr_y = (fy / z)[:, None] * (R_view[1] - v[:, None] * R_view[2])
    jr = torch.stack([jr_x, jr_y], dim=1)  # [M, 2, 3]

    if axes is not None:
        half = torch.bmm(jr, axes)  # cov2d = half half^T
        hx, hy = half.unbind(1)
        xx, xy, yy = (hx * hx).sum(-1), (hx * hy).sum(-1), (hy * hy).sum(-1)
        # Lagrange's identity: xx yy - xy^2 without its cancellation.
        det = torch.linalg.cross(hx, hy).square().sum(-1)
    else:
        assert covars is not None
        full = torch.bmm(torch.bmm(jr, covars), jr.transpose(1, 2))
        xx, yy = full[:, 0, 0], full[:, 1, 1]
        xy = 0.5 * (full[:, 0, 1] + full[:, 1, 0])
        det = xx * yy - xy * xy
    return means2d, xx, xy, yy, det


def _may_reach(lens: LensKind, words: Tensor, t: Tensor, scales: Tensor) -> Tensor:  # [M] bool
    """Whether Gaussians may reach the image, by their angle: a lens's continuation goes all round.

    A Gaussian reaches asin(REACH s / |t|) at most, which is below pi / 2 times its argument, and is
    culled where the image's farthest direction is farther; where it is nearer to the opposite of
    the optical axis than to the image; and in a panorama where the camera is inside of it.
    """
    size = scales.amax(-1) / t.norm(dim=-1)
    if lens.family == "equirectangular":
        return size < 1.0
    beyond = angles_beyond(words, t)
    reach = 0.5 * torch.pi * (REACH * size).clamp_max(1.0)
    opposite = MOST_ANGLE * (torch.pi - words[EDGE])
    return (beyond <= reach) & (beyond <= opposite)


def project(x: RasterInputs, settings: RenderSettings) -> Records:
    """Project Gaussians into every camera, differentiably: the first stage of a rendering.

    Args:
        x: N Gaussians and C cameras, float32 or float64.
        settings: Sizes, planes, activations, spherical harmonics.
    """
    scales, opacities, colors = x.scales, x.opacities, x.colors
    if settings.raw:
        scales, opacities = None if scales is None else scales.exp(), opacities.sigmoid()
    if x.colors_rest is not None:
        colors = torch.cat([colors, x.colors_rest], 1)
    quats = x.quats
    if x.covars is not None:
        scales, quats = x.means.new_zeros(len(x.means), 3), x.means.new_zeros(len(x.means), 4)
    assert quats is not None and scales is not None
    masks, draws = x.masks, [x.masks]
    if x.mask_logits is not None:
        lost = _nonfinite_rows([x.mask_logits])
        logits = _without_rows(x.mask_logits, lost)
        n_draws = len(x.viewmats) if settings.masks_by_camera else 1
        seeds = [_seed(x) ^ (c << 32) for c in range(n_draws)]
        draws = [_without_rows(sample_masks(logits, seed, x.mask_ids), lost) for seed in seeds]
        masks = torch.stack(draws).sum(0) / n_draws
    per_camera_colors = settings.sh_degree is None and colors.dim() == 3
    if per_camera_colors:
        colors = colors.transpose(0, 1)  # [N, C, D]

    tensors = [x.means, quats, scales, opacities, colors]
    optional = [t for t in (masks, x.covars, x.mask_logits) if t is not None]
    broken = _nonfinite_rows([*tensors, *optional])
    # Asking costs a synchronisation on CUDA, where the caller reads info["n_nonfinite"] instead.
    if not broken.is_cuda and broken.any():
        _warn_once("some Gaussians have NaN or infinite parameters and are not drawn")
    means, quats, scales, opacities, colors = (_without_rows(t, broken) for t in tensors)
    used_masks = [None if m is None else _without_rows(m, broken) for m in draws]
    covars = None if x.covars is None else _without_rows(x.covars, broken)
    geometry = _Geometry(means, quats, scales, opacities, covars)

    views = []
    for c, (viewmat, K) in enumerate(zip(x.viewmats, x.Ks, strict=True)):
        words = None if x.lenses is None else x.lenses[c]
        views.append(_view(geometry, broken, viewmat, K, words, settings))
    means2d = torch.stack([view.spread(view.projected.means2d) for view in views])
    for c, view in enumerate(views):
        seen_colors = None
        if settings.has_colors and settings.sh_degree is None:
            source = colors[:, c] if per_camera_colors else colors
            seen_colors = source.index_select(0, view.ids)
        elif settings.has_colors and settings.sh_degree is not None:
            degree = settings.sh_degree
            seen_colors = _sh_colors(degree, means, colors, x.viewmats[c], view.ids)
        own = used_masks[c % len(used_masks)]
        seen_masks = None if own is None else own.index_select(0, view.ids)
        views[c] = view._replace(colors=seen_colors, masks=seen_masks)
    return Records(views, means2d, masks, broken, settings.width, settings.height)


class _Geometry(NamedTuple):
    """Shapes and places of Gaussians."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    covars: Tensor | None

    def rows(self, index: Tensor) -> "_Geometry":
        means, quats, scales, opacities = (t.index_select(0, index) for t in self[:4])
        covars = None if self.covars is None else self.covars.index_select(0, index)
        return _Geometry(means, quats, scales, opacities, covars)


def _view(
    geometry: _Geometry,
    broken: Tensor,
    viewmat: Tensor,
    K: Tensor,
    lens_words: Tensor | None,
    settings: RenderSettings,
) -> View:
    """Project without gradients to see what is visible, and that again with gradients."""

    def projected(g: _Geometry) -> Projection:
        s = settings
        return projection(
            *g[:4], viewmat, K, s.width, s.height, near_plane=s.near_plane, far_plane=s.far_plane,
            eps2d=s.eps2d, antialiased=s.antialiased, covars=g.covars,
            normalize_quats=s.normalize_quats, lens=s.lens, lens_words=lens_words,
        )  # fmt: skip

    with torch.no_grad():
        everything = projected(geometry)
        radii = everything.radii * ~broken[:, None]
        index = sort_by_depth(everything.depths, (radii > 0).all(-1))
    return View(index, projected(geometry.rows(index)), None, None, radii)


def _seed(x: RasterInputs) -> int:
    if x.mask_words is None:
        return x.mask_seed
    low, high = x.mask_words.tolist()
    return (high << 32) | (low & 0xFFFFFFFF)


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


def _sh_colors(
    degree: int, means: Tensor, coeffs: Tensor, viewmat: Tensor, index: Tensor
) -> Tensor:
    center = -viewmat[:3, :3].T @ viewmat[:3, 3]
    dirs = means.index_select(0, index) - center
    return spherical_harmonics(degree, dirs, coeffs.index_select(0, index))
