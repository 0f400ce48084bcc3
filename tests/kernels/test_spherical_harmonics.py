"""Device functions of kernels.spherical_harmonics against the reference and its autograd."""

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl

from kernels.linalg import load3, store3
from kernels.reference.spherical_harmonics import sh_basis as reference_basis
from kernels.rows import load16
from kernels.spherical_harmonics import sh_basis, sh_color, sh_color_vjp_direction

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N = 70


@triton.jit
def _sh_kernel(
    dirs_ptr,  # [N, 3] unit
    coeffs_ptr,  # [N, 48]
    v_colors_ptr,  # [N, 3]
    colors_ptr,  # [N, 3] out
    v_dirs_ptr,  # [N, 3] out
    basis_ptr,  # [N, 16] out
    N,
    DEGREE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < N
    d = load3(dirs_ptr + i * 3, mask)
    row = coeffs_ptr + i * 48
    coeffs = load16(row, mask, 16) + load16(row + 16, mask, 16) + load16(row + 32, mask, 16)
    store3(colors_ptr + i * 3, sh_color(d, coeffs, DEGREE), mask)
    v_color = load3(v_colors_ptr + i * 3, mask)
    v_dir = d
    if DEGREE > 0:
        v_dir = sh_color_vjp_direction(d, coeffs, v_color, DEGREE)
    store3(v_dirs_ptr + i * 3, v_dir, mask)
    basis = sh_basis(d, DEGREE)
    for k in tl.static_range((DEGREE + 1) * (DEGREE + 1)):
        tl.store(basis_ptr + i * 16 + k, basis[k], mask=mask)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_sh_color(degree: int, assert_close: Callable[..., None]) -> None:
    g = torch.Generator().manual_seed(degree)
    dirs = torch.nn.functional.normalize(torch.randn(N, 3, generator=g), dim=-1).to(DEVICE)
    coeffs = torch.randn(N, 16, 3, generator=g).to(DEVICE)
    v_colors = torch.randn(N, 3, generator=g).to(DEVICE)
    colors, v_dirs, basis = torch.empty(N, 3), torch.empty(N, 3), torch.zeros(N, 16)
    colors, v_dirs, basis = (x.to(DEVICE) for x in (colors, v_dirs, basis))
    _sh_kernel[(triton.cdiv(N, 64),)](
        dirs, coeffs, v_colors, colors, v_dirs, basis, N, DEGREE=degree, BLOCK=64
    )

    d = dirs.double().requires_grad_()
    want_basis = reference_basis(d, degree)
    n = want_basis.shape[1]
    want = torch.einsum("nk,nkc->nc", want_basis, coeffs[:, :n].double()) + 0.5
    assert_close("basis", basis[:, :n], want_basis, 1e-6)
    assert_close("colors", colors, want, 1e-6)
    if degree > 0:
        (v_want,) = torch.autograd.grad((want * v_colors).sum(), d)
        # Along d the two polynomials may differ: the normalisation removes that part.
        tangent = torch.eye(3).to(d) - d.detach()[:, :, None] * d.detach()[:, None, :]
        project = lambda v: torch.einsum("nij,nj->ni", tangent, v.double())  # noqa: E731
        assert_close("v_dirs", project(v_dirs), project(v_want), 1e-5)
