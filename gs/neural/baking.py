r"""Anchors baked into Gaussians that need no decoder: means over the views that show an anchor.

Of every anchor up to `views` cameras count, those in which its Gaussians weigh most; the weight w
of a camera is their sum of alpha T there. Offset j, decoded for each, becomes one Gaussian with

    opacity     sum w max(o, 0) / sum w
    log-scales  sum u log s / sum u              u = w max(o, 0): what is not drawn has no say
    rotation    the main eigenvector of sum u q q^T
    colour      spherical harmonics y that minimise sum u |B(d) y - (c - 0.5)|^2 + ridge |y'|^2

with y' all coefficients but the constant ones, d the direction from camera to Gaussian, and the
highest degree of which n views can tell all coefficients apart, (degree + 1)^2 <= n. Gaussians of
an opacity below 1/255 are left out. Lost is what geometry and opacity have of the view, and of
colour what the harmonics cannot follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import Decoded, sh_basis

from ..data.camera import Camera
from ..errors import SplatrimError
from ..model.renderer import render
from ..model.view import NO_EXPOSURE, view_of
from .anchors import MIN_OPACITY, OFF, Anchors

RIDGE = 1e-3
MIN_MEAN_OPACITY = 1.0 / 255.0
MAX_DEGREE = 3
AT_ONCE = 2048  # anchors: their normal equations take 20 MB at k = 10


@torch.no_grad()
def bake(model: Anchors, cameras: Sequence[Camera], *, views: int = 32) -> dict[str, Tensor]:
    """The parameters of 3DGS that stand for the model in all views.

    Args:
        model: As it is exported.
        cameras: Training views.
        views: How many of them count for an anchor, at most.

    Returns:
        As `gs.model.ply.save_ply` takes them, with harmonics of degree 3. On the model's device.

    Raises:
        SplatrimError: no Gaussian is opaque enough in any view.
    """
    weights, seen_from = best_views(model, cameras, views)
    centers = torch.stack(
        [_center(view_of(camera, model.device).viewmats[0]) for camera in cameras]
    )
    parts: list[dict[str, Tensor]] = []
    for first in range(0, len(model), AT_ONCE):
        rows = torch.arange(first, min(first + AT_ONCE, len(model)), device=model.device)
        parts.append(_bake_rows(model, rows, weights[rows], centers[seen_from[rows]]))
    baked = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
    if not baked or not len(baked["means"]):
        raise SplatrimError("no Gaussian of the anchors is seen in any training view")
    return baked


@torch.no_grad()
def best_views(
    model: Anchors, cameras: Sequence[Camera], views: int
) -> tuple[Tensor, Tensor]:  # [N, views] float32, [N, views] int64
    """The cameras that show most of each anchor, and how much: 0 in places that have none."""
    weights = torch.zeros(len(model), views, device=model.device)
    chosen = torch.zeros(len(model), views, dtype=torch.int64, device=model.device)
    for index, camera in enumerate(cameras):
        out = render(model, camera, contributions=True)
        assert out.splats is not None
        sums = out.splats.scatter(out.info["contrib_sum"], len(model)).view(len(model), -1).sum(1)
        least, place = weights.min(1)
        better = (sums > least).nonzero()[:, 0]
        weights[better, place[better]] = sums[better]
        chosen[better, place[better]] = index
    return weights, chosen


def _bake_rows(
    model: Anchors,
    rows: Tensor,  # [n] int64
    weights: Tensor,  # [n, V]
    centers: Tensor,  # [n, V, 3]
) -> dict[str, Tensor]:
    """The Gaussians of some anchors."""
    n, k, n_basis = len(rows), model.parts, (MAX_DEGREE + 1) ** 2
    m = n * k
    total = weights.sum(1, keepdim=True)
    weights = (weights / total.clamp_min(torch.finfo(weights.dtype).tiny)).double()
    n_views = (weights > 0).sum(1)
    # coefficients beyond the degree that the views can tell apart stay 0
    degree = (n_views.clamp_min(1).double().sqrt().floor() - 1).clamp(0, MAX_DEGREE)
    is_told = torch.arange(n_basis, device=rows.device) < ((degree + 1) ** 2)[:, None]
    is_told = is_told.double().repeat_interleave(k, 0)
    zeros = weights.new_zeros
    opacity, said, log_scales = zeros(m), zeros(m), zeros(m, 3)
    turns, normal, right = zeros(m, 4, 4), zeros(m, n_basis, n_basis), zeros(m, n_basis, 3)
    for v in range(weights.shape[1]):
        w = weights[:, v].repeat_interleave(k)
        if not bool((w > 0).any()):
            continue
        relative = model.params["anchors"][rows] - centers[:, v]
        out = _decoded_relative(model, rows, relative)
        drawn = out.opacities.double().clamp_min(0.0)
        u = w * drawn
        opacity += u
        said += u
        log_scales += u[:, None] * out.scales.double().log()
        q = out.quats.double()
        turns += u[:, None, None] * q[:, :, None] * q[:, None]
        directions = torch.nn.functional.normalize(out.means.double(), dim=-1)
        basis = sh_basis(directions, MAX_DEGREE) * is_told
        normal += u[:, None, None] * basis[:, :, None] * basis[:, None]
        right += u[:, None, None] * basis[:, :, None] * (out.colors.double() - 0.5)[:, None]
    keep = (opacity >= MIN_MEAN_OPACITY) & ~model.rows[OFF][rows].flatten()
    said, opacity = said[keep], opacity[keep]
    shares = said[:, None, None]
    normal, right = normal[keep] / shares, right[keep] / shares
    ridge = torch.full((n_basis,), RIDGE, dtype=torch.float64, device=rows.device)
    ridge[0] = 0.0  # a colour that is the same from everywhere is kept exactly
    coefficients = torch.linalg.solve(normal + torch.diag(ridge), right)
    quats = torch.linalg.eigh(turns[keep] / shares).eigenvectors[..., -1]
    stretch = model.params["scales"][rows, None, :3].double().exp()
    anchors, offsets = model.params["anchors"][rows], model.params["offsets"][rows]
    means = (anchors[:, None] + offsets * stretch).flatten(0, 1)[keep]
    return {
        "means": means.float(),
        "quats": quats.float(),
        "scales": (log_scales[keep] / said[:, None]).float(),
        "opacities": opacity.clamp(MIN_OPACITY, 1.0 - MIN_OPACITY).logit().float(),
        "sh0": coefficients[:, :1].float(),
        "shN": coefficients[:, 1:].float(),
    }


def _decoded_relative(model: Anchors, rows: Tensor, relative: Tensor) -> Decoded:
    """Anchors as seen from the origin, each at its own place relative to its own camera."""
    places = torch.zeros_like(model.params["anchors"])
    places[rows] = relative
    nobody = torch.full((1,), NO_EXPOSURE, dtype=torch.int32, device=model.device)
    return model.decoded(rows.int(), relative.new_zeros(3), nobody, places)


def _center(viewmat: Tensor) -> Tensor:  # [4, 4] -> [3]
    return -(viewmat[:3, :3].T @ viewmat[:3, 3])
