"""Device functions of spherical harmonics against the reference and its autograd."""

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl

from kernels.device.linalg import load3, store3
from kernels.projection.ewa import load_sh_tiles, split_sh
from kernels.projection.spherical_harmonics import (
    flat_basis,
    flat_color,
    sh_basis,
    sh_color,
    sh_color_vjp,
    sh_color_vjp_direction,
)
from kernels.reference.spherical_harmonics import sh_basis as reference_basis
from kernels.runtime.launch import launch

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
    tiles = load_sh_tiles(coeffs_ptr, None, i, mask, 48, 0, 3, False)
    coeffs = split_sh(tiles, False)
    store3(colors_ptr + i * 3, sh_color(d, coeffs, DEGREE), mask)
    v_color = load3(v_colors_ptr + i * 3, mask)
    v_dir = d
    if DEGREE > 0:
        v_dir = sh_color_vjp_direction(d, coeffs, v_color, DEGREE)
    store3(v_dirs_ptr + i * 3, v_dir, mask)
    basis = sh_basis(d, DEGREE)
    for k in tl.static_range((DEGREE + 1) * (DEGREE + 1)):
        tl.store(basis_ptr + i * 16 + k, basis[k], mask=mask)


@triton.jit
def _vjp_kernel(
    dirs_ptr,  # [ROWS, 3] unit
    v_colors_ptr,  # [ROWS, 3]
    v_coeffs_ptr,  # [ROWS, WIDTH] out
    DEGREE: tl.constexpr,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    i = tl.arange(0, ROWS)
    mask = i < ROWS
    basis = flat_basis(sh_basis(load3(dirs_ptr + i * 3, mask), DEGREE), DEGREE)
    v_color = flat_color(load3(v_colors_ptr + i * 3, mask))
    k = tl.arange(0, SIZE)
    v = sh_color_vjp(basis, v_color, k, FIRST, WIDTH, ROWS)
    tl.store(v_coeffs_ptr + k, v, mask=k < ROWS * WIDTH)


@pytest.mark.parametrize(
    ("degree", "first", "count"), [(3, 0, 16), (3, 1, 15), (2, 1, 15), (0, 0, 1), (3, 0, 25)]
)
def test_sh_color_vjp(
    degree: int, first: int, count: int, assert_close: Callable[..., None]
) -> None:
    """Coefficients from `first` on, also more of them than there are functions."""
    rows = 32
    g = torch.Generator().manual_seed(degree + first)
    dirs = torch.nn.functional.normalize(torch.randn(rows, 3, generator=g), dim=-1)
    v_colors = torch.randn(rows, 3, generator=g)
    got = torch.full((rows, count, 3), float("nan"), device=DEVICE)
    inputs, size = (dirs.to(DEVICE), v_colors.to(DEVICE)), triton.next_power_of_2(3 * count * rows)
    widths = {"DEGREE": degree, "FIRST": first, "WIDTH": 3 * count, "ROWS": rows, "SIZE": size}
    launch(_vjp_kernel, (1,), *inputs, got, **widths)
    want = torch.zeros(rows, first + count, 3, dtype=torch.float64)
    basis = reference_basis(dirs.double(), degree)
    want[:, : basis.shape[1]] = basis[:, :, None] * v_colors.double()[:, None]
    assert_close("v_coeffs", got.cpu(), want[:, first:], 1e-6)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_sh_color(degree: int, assert_close: Callable[..., None]) -> None:
    g = torch.Generator().manual_seed(degree)
    dirs = torch.nn.functional.normalize(torch.randn(N, 3, generator=g), dim=-1).to(DEVICE)
    coeffs = torch.randn(N, 16, 3, generator=g).to(DEVICE)
    v_colors = torch.randn(N, 3, generator=g).to(DEVICE)
    colors, v_dirs, basis = torch.empty(N, 3), torch.empty(N, 3), torch.zeros(N, 16)
    colors, v_dirs, basis = (x.to(DEVICE) for x in (colors, v_dirs, basis))
    tensors, grid = (dirs, coeffs, v_colors, colors, v_dirs, basis), (-(-N // 64),)
    launch(_sh_kernel, grid, *tensors, N, DEGREE=degree, BLOCK=64)

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
