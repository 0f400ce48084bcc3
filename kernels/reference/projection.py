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
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..constants import ALPHA_MIN, FOV_MARGIN

# Extents grow by this much, so that rounding never loses a pixel of the support.
SLACK = 1e-3


class Projection(NamedTuple):
    """M Gaussians as one camera sees them."""

    means2d: Tensor  # [M, 2] pixels
    depths: Tensor  # [M] camera z
    conics: Tensor  # [M, 3] upper triangle
    covars2d: Tensor  # [M, 3] blurred, upper triangle
    opacities: Tensor  # [M] after the antialiasing compensation
    radii: Tensor  # [M, 2] int32 half extents in pixels, 0 = culled


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
) -> Projection:
    """Project Gaussians into one camera.

    Rows that are culled have radii 0 and meaningless, possibly non-finite, other entries: select
    the visible rows under `torch.no_grad()` and project those again for gradients.

    Args:
        covars: World covariances in place of quats and scales.
        normalize_quats: Divide quaternions by their norm first.
    """
    R_view = viewmat[:3, :3]
    t = means @ R_view.T + viewmat[:3, 3]
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

    if covars is None:
        if normalize_quats:
            quats = F.normalize(quats, dim=-1, eps=0.0)
        half = torch.bmm(jr, quats_to_rotmats(quats) * scales[:, None, :])  # cov2d = half half^T
        hx, hy = half.unbind(1)
        xx, xy, yy = (hx * hx).sum(-1), (hx * hy).sum(-1), (hy * hy).sum(-1)
        # Lagrange's identity: xx yy - xy^2 without its cancellation.
        det = torch.linalg.cross(hx, hy).square().sum(-1)
    else:
        full = torch.bmm(torch.bmm(jr, covars), jr.transpose(1, 2))
        xx, yy = full[:, 0, 0], full[:, 1, 1]
        xy = 0.5 * (full[:, 0, 1] + full[:, 1, 0])
        det = xx * yy - xy * xy
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
        pixels = torch.ceil(extents * (1 + SLACK) + SLACK)
        size = means2d.new_tensor([width, height])
        kept = (z > near_plane) & (z < far_plane)
        # Comparisons with NaN are false, so these also cull whatever overflowed.
        kept &= (det_blurred > 0) & (xx > 0) & (yy > 0) & (opacities >= ALPHA_MIN)
        kept &= ((means2d + pixels > 0) & (means2d - pixels < size)).all(-1)
        kept &= torch.isfinite(conics).all(-1) & torch.isfinite(extents).all(-1)
        # Half extents beyond any image are all the same to everyone.
        pixels = pixels.nan_to_num(0.0).clamp(0, 2**30)
        radii = torch.where(kept[:, None], pixels, 0.0).to(torch.int32)
    covars2d = torch.stack([xx, xy, yy], dim=-1)
    return Projection(means2d, z, conics, covars2d, opacities, radii)
