from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.reference.projection import projection, quats_to_rotmats

W, H = 40, 30
F64 = torch.float64
CLASSIC: dict[str, Any] = {"near_plane": 0.2, "far_plane": 1e10, "eps2d": 0.3}


def project(means: list, scales: list, opacities: list | None = None, **options: Any):
    n = len(means)
    K = torch.tensor([[36.0, 0, 22], [0, 34.0, 13], [0, 0, 1]], dtype=F64)
    return projection(
        torch.tensor(means, dtype=F64),
        options.pop("quats", torch.tensor([[1.0, 0, 0, 0]], dtype=F64).repeat(n, 1)),
        torch.tensor(scales, dtype=F64),
        torch.tensor(opacities or [0.9] * n, dtype=F64),
        torch.eye(4, dtype=F64),
        K,
        W,
        H,
        **(CLASSIC | options),
    )


def test_quats_to_rotmats() -> None:
    quats = torch.randn(20, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    rotmats = quats_to_rotmats(quats / quats.norm(dim=-1, keepdim=True))
    eye = torch.eye(3, dtype=F64).expand(20, 3, 3)
    assert torch.allclose(rotmats @ rotmats.mT, eye, atol=1e-12)
    assert torch.allclose(torch.linalg.det(rotmats), torch.ones(20, dtype=F64))
    # A quarter turn about z takes x to y.
    turn = quats_to_rotmats(torch.tensor([[0.5**0.5, 0, 0, 0.5**0.5]]))[0]
    assert torch.allclose(turn[:, 0], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


def test_covariance_and_conic() -> None:
    quats = torch.randn(1, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    got = project([[0.3, -0.2, 2.0]], [[0.1, 0.3, 0.2]], quats=quats)
    R = quats_to_rotmats(quats / quats.norm())[0]
    S = torch.diag(torch.tensor([0.01, 0.09, 0.04], dtype=F64))
    J = torch.tensor([[18.0, 0, -36 * 0.15 / 2], [0, 17.0, 34 * 0.1 / 2]], dtype=F64)
    cov = J @ R @ S @ R.T @ J.T + 0.3 * torch.eye(2, dtype=F64)
    assert torch.allclose(got.covars2d[0], cov[[0, 0, 1], [0, 1, 1]])
    assert torch.allclose(got.conics[0], torch.linalg.inv(cov)[[0, 0, 1], [0, 1, 1]])
    assert torch.allclose(got.means2d[0], torch.tensor([22 + 36 * 0.15, 13 - 34 * 0.1], dtype=F64))
    assert got.depths[0] == 2.0


def test_near_and_far_planes_are_strict() -> None:
    up = torch.nextafter(torch.tensor(0.2, dtype=F64), torch.tensor(1.0, dtype=F64)).item()
    means = [[0, 0, 0.2], [0, 0, up], [0, 0, -1.0], [0, 0, 0.0], [0, 0, 5.0], [0, 0, 4.9]]
    got = project(means, [[0.01] * 3] * 6, far_plane=5.0)
    assert (got.radii > 0).all(-1).tolist() == [False, True, False, False, False, True]


def test_jacobian_is_clamped_to_the_field_of_view() -> None:
    # An off-centre principal point moves the bounds with it.
    bounds = [-22 / 36 - 0.3 * 20 / 36, 18 / 36 + 0.3 * 20 / 36]
    for bound, outward in zip(bounds, (-1, 1), strict=True):
        means = [[bound * 2, 0, 2.0], [(bound + outward) * 2, 0, 2.0]]
        got = project(means, [[0.2] * 3] * 2)
        assert torch.allclose(got.covars2d[0], got.covars2d[1])
        inside = project([[(bound - 0.01 * outward) * 2, 0, 2.0]], [[0.2] * 3])
        assert not torch.allclose(got.covars2d[0], inside.covars2d[0])


def test_radii_bound_the_visible_ellipse() -> None:
    opacities = [0.9, 0.1, 1 / 255, 0.99 / 255]
    got = project([[0, 0, 2.0]] * 4, [[0.2, 0.1, 0.1]] * 4, opacities)
    reach = 2 * torch.log(torch.tensor(opacities, dtype=F64) * 255).clamp_min(0)
    want = torch.ceil((reach[:, None] * got.covars2d[:, [0, 2]]).sqrt())
    assert torch.equal(got.radii[:2].double(), want[:2])
    # At 1/255 only a pixel at the very centre is left; below, nothing.
    assert got.radii[2].tolist() == [1, 1]
    assert got.radii[3].tolist() == [0, 0]


def test_off_screen_is_culled_and_overlap_is_not() -> None:
    means = [[20.0, 0, 2], [-20.0, 0, 2], [0, 20.0, 2], [1.6, 0, 2], [0, 0, 2]]
    scales = [[0.1] * 3, [0.1] * 3, [0.1] * 3, [1.0] * 3, [0.1] * 3]
    assert (project(means, scales).radii > 0).all(-1).tolist() == [False] * 3 + [True] * 2


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["f32", "f64"])
def test_extreme_scales(dtype: torch.dtype) -> None:
    scales = torch.tensor([[1e-8] * 3, [1e3] * 3, [10.0, 1e-3, 1e-3], [1e20] * 3], dtype=dtype)
    quats = torch.randn(4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    K = torch.tensor([[36.0, 0, 20], [0, 36.0, 15], [0, 0, 1]], dtype=dtype)
    means = torch.tensor([[0.0, 0, 2]] * 4, dtype=dtype)
    got = projection(
        means,
        quats,
        scales,
        torch.full((4,), 0.5, dtype=dtype),
        torch.eye(4, dtype=dtype),
        K,
        W,
        H,
        **CLASSIC,
    )
    blur = torch.tensor([0.3, 0, 0.3], dtype=dtype)
    assert torch.allclose(got.covars2d[0], blur, atol=1e-6)
    # sqrt(2 ln(127.5) 0.3) = 1.7
    assert got.radii[0].tolist() == [2, 2]
    assert (got.radii[1] > 1000).all()
    A, B, C = got.conics[2].double()
    assert A * C - B * B > 0
    # What overflows float32 is culled, not infinite.
    assert (got.radii[3] > 0).all() == (dtype == F64)


def test_indefinite_covariance_is_culled() -> None:
    bad = torch.diag(torch.tensor([-1.0, 1, 1], dtype=F64))
    good = torch.diag(torch.tensor([0.01, 0.04, 0.01], dtype=F64))
    got = project([[0, 0, 2.0]] * 2, [[1.0] * 3] * 2, covars=torch.stack([bad, good]))
    assert (got.radii > 0).all(-1).tolist() == [False, True]
    same = project([[0, 0, 2.0]], [[0.1, 0.2, 0.1]])
    assert torch.allclose(got.conics[1], same.conics[0])


def antialiased(scales: list[float]) -> tuple[Tensor, Tensor]:
    leaf = torch.tensor([scales], dtype=F64, requires_grad=True)
    K = torch.tensor([[36.0, 0, 20], [0, 36.0, 15], [0, 0, 1]], dtype=F64)
    got = projection(
        torch.tensor([[0.0, 0, 2]], dtype=F64),
        torch.tensor([[1.0, 0, 0, 0]], dtype=F64),
        leaf,
        torch.tensor([0.5], dtype=F64),
        torch.eye(4, dtype=F64),
        K,
        W,
        H,
        antialiased=True,
        **CLASSIC,
    )
    (v_scales,) = torch.autograd.grad(got.opacities.sum(), leaf)
    return got.opacities.detach(), v_scales


def test_antialiasing_compensation() -> None:
    opacities, v_scales = antialiased([0.1, 0.2, 0.1])
    xx, yy = (18 * 0.1) ** 2, (18 * 0.2) ** 2
    want = 0.5 * (xx * yy / ((xx + 0.3) * (yy + 0.3))) ** 0.5
    assert opacities.item() == pytest.approx(want)
    assert (v_scales[0, :2] > 0).all()
    # A line has no area: nothing is left of it, and no gradient either.
    opacities, v_scales = antialiased([0.0, 0.2, 0.1])
    assert opacities.item() == 0
    assert (v_scales == 0).all()
