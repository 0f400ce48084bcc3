import math

import pytest
import torch

from kernels.reference.spherical_harmonics import sh_basis, spherical_harmonics

F64 = torch.float64


def test_basis_is_orthonormal() -> None:
    # Gauss-Legendre in z and equal steps around it integrate products of degree 6 exactly.
    z = torch.tensor([0.0, 0.4058451513773972, 0.7415311855993945, 0.9491079123427585], dtype=F64)
    w = torch.tensor(
        [0.4179591836734694, 0.3818300505051189, 0.2797053914892767, 0.1294849661688697], dtype=F64
    )
    z, w = torch.cat([-z[1:], z]), torch.cat([w[1:], w])
    angle = torch.arange(16, dtype=F64) * (2 * math.pi / 16)
    r = (1 - z * z).sqrt()[:, None]
    dirs = torch.stack(
        [r * angle.cos(), r * angle.sin(), z[:, None].expand(-1, 16)], dim=-1
    ).reshape(-1, 3)
    weights = (w[:, None] * (2 * math.pi / 16)).expand(-1, 16).reshape(-1)
    basis = sh_basis(dirs, 3)
    gram = basis.T @ (weights[:, None] * basis)
    assert torch.allclose(gram, torch.eye(16, dtype=F64), atol=1e-12)


def test_signs_of_the_published_basis() -> None:
    x, y, z = 0.48, 0.6, 0.64
    basis = sh_basis(torch.tensor([[x, y, z]], dtype=F64), 3)[0]
    assert (basis[1:4] < 0).tolist() == [True, False, True]  # -y, z, -x
    assert (basis[4:9] > 0).tolist() == [True, False, True, False, False]
    assert (basis[9:16] > 0).tolist() == [False, True, False, False, False, False, True]


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_inactive_bands_have_zero_gradients(degree: int) -> None:
    g = torch.Generator().manual_seed(0)
    dirs = torch.randn(30, 3, generator=g).requires_grad_()
    coeffs = (torch.randn(30, 16, 3, generator=g) * 0.1).requires_grad_()
    colors = spherical_harmonics(degree, dirs, coeffs)
    v_dirs, v_coeffs = torch.autograd.grad(
        colors.square().sum(), [dirs, coeffs], materialize_grads=True
    )
    used = (degree + 1) ** 2
    assert (v_coeffs[:, used:] == 0).all()
    assert (v_coeffs[:, :used] != 0).any(0).all()
    assert (v_dirs == 0).all() == (degree == 0)
    truncated = spherical_harmonics(degree, dirs, coeffs[:, :used])
    assert torch.equal(truncated, colors)
    longer = spherical_harmonics(degree, 7 * dirs, coeffs)
    assert torch.allclose(longer, colors, atol=1e-6)


def test_negative_colors_are_clamped_with_zero_gradient() -> None:
    coeffs = torch.tensor([[[-3.0, 0.0, 1.0]]], requires_grad=True)
    colors = spherical_harmonics(0, torch.tensor([[0.0, 0.0, 1.0]]), coeffs)
    colors.sum().backward()
    assert colors[0].tolist() == pytest.approx([0.0, 0.5, 0.5 + 0.28209479])
    assert coeffs.grad is not None
    assert coeffs.grad[0, 0].tolist() == pytest.approx([0.0, 0.28209479, 0.28209479])
