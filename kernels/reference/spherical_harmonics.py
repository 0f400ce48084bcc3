"""View-dependent colour from real spherical harmonics of degree 0 to 3.

The basis and its signs are those of 3D Gaussian Splatting (Kerbl et al. 2023) and of every `.ply`
that follows it. colour = max(sum_k basis_k(direction) coefficient_k + 0.5, 0), with zero gradient
where the maximum cuts.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SH_C0 = 0.28209479177387814  # sqrt(1 / 4 pi)
SH_C1 = 0.4886025119029199  # sqrt(3 / 4 pi)
SH_C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
SH_C3 = (
    0.5900435899266435,
    2.890611442640554,
    0.4570457994644658,
    0.3731763325901154,
    1.445305721320277,
)


def sh_basis(dirs: Tensor, degree: int) -> Tensor:
    """Values [M, (degree + 1)^2] of the basis in unit directions [M, 3]."""
    x, y, z = dirs.unbind(-1)
    basis = [torch.full_like(x, SH_C0)]
    if degree >= 1:
        basis += [-SH_C1 * y, SH_C1 * z, -SH_C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        basis += [
            SH_C2[0] * x * y,
            -SH_C2[0] * y * z,
            SH_C2[1] * (2 * zz - xx - yy),
            -SH_C2[0] * x * z,
            SH_C2[2] * (xx - yy),
        ]
        if degree >= 3:
            basis += [
                -SH_C3[0] * y * (3 * xx - yy),
                SH_C3[1] * x * y * z,
                -SH_C3[2] * y * (4 * zz - xx - yy),
                SH_C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
                -SH_C3[2] * x * (4 * zz - xx - yy),
                SH_C3[4] * z * (xx - yy),
                -SH_C3[0] * x * (xx - 3 * yy),
            ]
    return torch.stack(basis, dim=-1)


def spherical_harmonics(
    degree: int,
    dirs: Tensor,  # [M, 3], any length
    coeffs: Tensor,  # [M, K, 3] with K >= (degree + 1)^2
) -> Tensor:
    """Colours [M, 3]; coefficients beyond the degree are ignored and get zero gradients."""
    basis = sh_basis(F.normalize(dirs, dim=-1), degree)
    colors = torch.bmm(basis[:, None], coeffs[:, : basis.shape[1]]).squeeze(1)
    return (colors + 0.5).clamp_min(0)
