"""Poses of views that were not trained on, where training has moved the others.

The scene may have turned, moved and grown together with the training cameras. `aligned_cameras`
takes cameras along by the similarity x -> s R x + t that best takes the training cameras' centres
from before to after (Umeyama, "Least-squares estimation of transformation parameters between two
point patterns", PAMI 1991):

    y x^T = U S V^T,  R = U E V^T with E = diag(1, 1, det(U V^T)),  s = tr(S E) / sum |x|^2

summed over centres, x before and y after, both less their means. `fit_poses` then lowers the
photometric loss of every view by its own pose alone, the model frozen: as is usual where poses are
learnt, since a pose that is a little off costs decibels that say nothing about the model. The
views' images are used for it, which a result must say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import photometric_gradient

from ..data.camera import Camera
from ..losses import total
from ..model.model import Model
from ..model.poses import PoseTable, with_pose
from ..model.renderer import render
from ..model.view import view_of
from .views import Images

STEPS = 100  # per view
RATE, LEFT = 2e-3, 0.01  # at first, and the share of it at the end
LAMBDA_DSSIM = 0.2
FLAT = 1e-6  # of the spread of centres: below it they are on a line


def similarity(before: Tensor, after: Tensor) -> tuple[float, Tensor, Tensor]:
    """Scale, rotation and translation that best take points to points.

    Args:
        before: At least three points that are not on a line, float64. [N, 3]
        after: Where they are to go. [N, 3]

    Returns:
        s [], R [3, 3] and t [3] of after = s R before + t; of fewer points, or points on a line,
        the translation of their mean alone.
    """
    centre, goal = before.mean(0), after.mean(0)
    x, y = before - centre, after - goal
    spread = torch.linalg.svdvals(x) if len(x) >= 3 else torch.zeros(3, dtype=x.dtype)
    if not float(spread[1]) > FLAT * float(spread[0]):
        return 1.0, torch.eye(3, dtype=x.dtype), goal - centre
    U, S, Vt = torch.linalg.svd(y.T @ x)
    signs = torch.ones(3, dtype=x.dtype)
    signs[2] = torch.linalg.det(U @ Vt).sign()
    R = U @ (signs[:, None] * Vt)
    s = float((S * signs).sum() / x.square().sum())
    return s, R, goal - s * R @ centre


def aligned_cameras(
    cameras: Sequence[Camera], before: Sequence[Camera], after: Sequence[Camera]
) -> list[Camera]:
    """Cameras taken along as `after` has moved from `before`."""
    if not cameras:
        return []
    centres = [torch.stack([_centre(camera) for camera in those]) for those in (before, after)]
    s, R, t = similarity(*centres)
    moved = []
    for camera in cameras:
        viewmat = camera.viewmat.double()
        rotation = viewmat[:3, :3] @ R.T
        centre = s * R @ _centre(camera) + t
        viewmat = torch.eye(4, dtype=torch.float64)
        viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ centre
        moved.append(with_pose(camera, viewmat))
    return moved


@torch.enable_grad()
def fit_poses(
    model: Model,
    cameras: Sequence[Camera],
    images: Images,
    background: Tensor,  # [3]
    *,
    indices: Sequence[int],
    unit: float,
    steps: int = STEPS,
) -> list[Camera]:
    """Move every camera to where the frozen model fits its image best.

    Args:
        model: The model.
        cameras: From where to begin.
        images: Ground truth.
        background: Colour behind the Gaussians. [3]
        indices: The cameras' images in `images`.
        unit: Length that counts like a radian, in world units: the scene's extent.
        steps: Of Adam, per view.

    Returns:
        The cameras at their new places. Where nothing of the model is in view they stay.
    """
    fitted: list[Camera] = []
    images.prefetch([*indices[:2]])
    for position, (camera, index) in enumerate(zip(cameras, indices, strict=True)):
        images.prefetch([*indices[position + 1 : position + 3]])
        table = PoseTable([camera.image_name]).to(background.device)
        table.learns = True
        target, given = images[index], view_of(camera, background.device, 0)
        for k in range(steps):
            view = table.moved(given)
            with torch.no_grad():
                splats = model.splats(view).detached()
            out = render(splats, view, background=background)
            values, v_colors = photometric_gradient(out.colors.detach(), target, LAMBDA_DSSIM)
            total(values[0], [v_colors], [out.colors]).backward()
            rate = background.new_tensor([RATE * math.exp(k / steps * math.log(LEFT))])
            if not table.step(view, rate=rate, unit=unit):
                break
        fitted += table.moved_cameras([camera])
    return fitted


def _centre(camera: Camera) -> Tensor:  # [3] float64
    viewmat = camera.viewmat.double()
    return -viewmat[:3, :3].T @ viewmat[:3, 3]
