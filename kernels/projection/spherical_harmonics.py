r"""Device functions for colours from real spherical harmonics of degree 0 to 3.

    colour = max(sum_k basis_k(d) coefficient_k + 0.5, 0)      d: unit direction, camera to Gaussian

Coefficients of a Gaussian are a tuple of 3 (degree + 1)^2 blocks, coefficient k of channel c at
3 k + c. The vjp to the direction differentiates the basis as polynomials in x, y, z; the part along
d vanishes when the caller goes through the normalisation. Constants and signs are those of 3D
Gaussian Splatting (Kerbl et al. 2023) and of every `.ply` that follows it.
"""

import triton
import triton.language as tl

from ..device.linalg import Vec3, dot3
from ..device.transpose import join4, join16
from ..reference import spherical_harmonics as reference

SH_CHUNK = tl.constexpr(1024)  # gradients of coefficients that are stored at once
C0 = tl.constexpr(reference.SH_C0)
C1 = tl.constexpr(reference.SH_C1)
C2_XY = tl.constexpr(reference.SH_C2[0])
C2_ZZ = tl.constexpr(reference.SH_C2[1])
C2_XX = tl.constexpr(reference.SH_C2[2])
C3_Y = tl.constexpr(reference.SH_C3[0])
C3_XYZ = tl.constexpr(reference.SH_C3[1])
C3_YZZ = tl.constexpr(reference.SH_C3[2])
C3_ZZZ = tl.constexpr(reference.SH_C3[3])
C3_ZXX = tl.constexpr(reference.SH_C3[4])


@triton.jit
def sh_basis(d, DEGREE: tl.constexpr):
    """The (DEGREE + 1)^2 basis functions as a tuple."""
    # Blocks stand left of constants: interpreted, `constant * block` is no block.
    x, y, z = d.x, d.y, d.z
    basis = (0.0 * x + C0,)
    if DEGREE >= 1:
        basis = basis + (y * -C1, z * C1, x * -C1)
    if DEGREE >= 2:
        xx, yy, zz = x * x, y * y, z * z
        basis = basis + (
            x * y * C2_XY,
            y * z * -C2_XY,
            (2.0 * zz - xx - yy) * C2_ZZ,
            x * z * -C2_XY,
            (xx - yy) * C2_XX,
        )
        if DEGREE >= 3:
            basis = basis + (
                y * (3.0 * xx - yy) * -C3_Y,
                x * y * z * C3_XYZ,
                y * (4.0 * zz - xx - yy) * -C3_YZZ,
                z * (2.0 * zz - 3.0 * (xx + yy)) * C3_ZZZ,
                x * (4.0 * zz - xx - yy) * -C3_YZZ,
                z * (xx - yy) * C3_ZXX,
                x * (xx - 3.0 * yy) * -C3_Y,
            )
    return basis


@triton.jit
def sh_basis_vjp(d, v, DEGREE: tl.constexpr):
    """v_direction from the gradients v of the basis functions (a tuple; v[0] has no effect)."""
    x, y, z = d.x, d.y, d.z
    v_x = 0.0 * x
    v_y = v_x
    v_z = v_x
    if DEGREE >= 1:
        v_x -= v[3] * C1
        v_y -= v[1] * C1
        v_z += v[2] * C1
    if DEGREE >= 2:
        v_x += (y * v[4] - z * v[7]) * C2_XY + 2.0 * x * (v[8] * C2_XX - v[6] * C2_ZZ)
        v_y += (x * v[4] - z * v[5]) * C2_XY - 2.0 * y * (v[8] * C2_XX + v[6] * C2_ZZ)
        v_z += z * v[6] * (4.0 * C2_ZZ) - (y * v[5] + x * v[7]) * C2_XY
    if DEGREE >= 3:
        xx, yy, zz = x * x, y * y, z * z
        xy, xz, yz = x * y, x * z, y * z
        v_x += (
            (-6.0 * xy * v[9] - 3.0 * (xx - yy) * v[15]) * C3_Y
            + yz * v[10] * C3_XYZ
            + (2.0 * xy * v[11] - (4.0 * zz - 3.0 * xx - yy) * v[13]) * C3_YZZ
            - xz * v[12] * (6.0 * C3_ZZZ)
            + xz * v[14] * (2.0 * C3_ZXX)
        )
        v_y += (
            (6.0 * xy * v[15] - 3.0 * (xx - yy) * v[9]) * C3_Y
            + xz * v[10] * C3_XYZ
            + (2.0 * xy * v[13] - (4.0 * zz - xx - 3.0 * yy) * v[11]) * C3_YZZ
            - yz * v[12] * (6.0 * C3_ZZZ)
            - yz * v[14] * (2.0 * C3_ZXX)
        )
        v_z += (
            xy * v[10] * C3_XYZ
            - (yz * v[11] + xz * v[13]) * (8.0 * C3_YZZ)
            + (6.0 * zz - 3.0 * (xx + yy)) * v[12] * C3_ZZZ
            + (xx - yy) * v[14] * C3_ZXX
        )
    return Vec3(v_x, v_y, v_z)


@triton.jit
def sh_color(d, coeffs, DEGREE: tl.constexpr):
    """Colours before the clamp, from a tuple of at least 3 (DEGREE + 1)^2 coefficients."""
    basis = sh_basis(d, DEGREE)
    r = coeffs[0] * C0 + 0.5
    g = coeffs[1] * C0 + 0.5
    b = coeffs[2] * C0 + 0.5
    for k in tl.static_range(1, (DEGREE + 1) * (DEGREE + 1)):
        r += basis[k] * coeffs[3 * k]
        g += basis[k] * coeffs[3 * k + 1]
        b += basis[k] * coeffs[3 * k + 2]
    return Vec3(r, g, b)


@triton.jit
def sh_color_vjp_direction(d, coeffs, v_color, DEGREE: tl.constexpr):
    """v_direction; the gradient of coefficient 3 k + c is basis_k v_color_c."""
    v_basis = (0.0 * d.x,)
    for k in tl.static_range(1, (DEGREE + 1) * (DEGREE + 1)):
        v_k = dot3(Vec3(coeffs[3 * k], coeffs[3 * k + 1], coeffs[3 * k + 2]), v_color)
        v_basis = v_basis + (v_k,)
    return sh_basis_vjp(d, v_basis, DEGREE)


@triton.jit
def flat_basis(basis, DEGREE: tl.constexpr):
    """Basis functions of R Gaussians as one block [16 R], zeros above DEGREE."""
    zero = tl.zeros_like(basis[0])
    for _ in tl.static_range((DEGREE + 1) * (DEGREE + 1), 16):
        basis = basis + (zero,)
    return tl.reshape(join16(basis), [basis[0].shape[0] * 16])


@triton.jit
def flat_color(v):
    """Gradients of R colours as one block [4 R]."""
    return tl.reshape(join4(v.x, v.y, v.z, tl.zeros_like(v.x)), [v.x.shape[0] * 4])


@triton.jit
def sh_color_vjp(basis, v_color, k, FIRST: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Gradients of coefficients in the order of memory, [ROWS, WIDTH] from the coefficient FIRST.

    `basis` and `v_color` are flat, k counts elements. So neighbouring lanes have neighbours in
    memory, whatever the width.
    """
    row = tl.minimum(k // WIDTH, ROWS - 1)
    column = k % WIDTH
    b = tl.gather(basis, row * 16 + tl.minimum(column // 3 + FIRST, 15), 0)
    if WIDTH + 3 * FIRST > 48:
        b = tl.where(column // 3 + FIRST < 16, b, 0.0)
    c = tl.gather(v_color, row * 4 + column % 3, 0)
    # Rounded, as memory would: the compiler does not fuse this with what comes after.
    return tl.fma(b, c, tl.zeros_like(b))


@triton.jit
def _store_rows(
    v_sh_ptr,  # [N, WIDTH]
    start,
    n_valid,
    add,
    basis,
    v_color,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the gradients of one camera, or add them to those of cameras before."""
    for begin in range(0, BLOCK * WIDTH, CHUNK):
        k = begin + tl.arange(0, CHUNK)
        ptr = v_sh_ptr + start * WIDTH + k
        mask = k < BLOCK * WIDTH if FULL else k < n_valid * WIDTH
        v = sh_color_vjp(basis, v_color, k, FIRST, WIDTH, BLOCK)
        if add:
            # After what other lanes may have written for the camera before.
            tl.debug_barrier()
            v += tl.load(ptr, mask=mask, other=0.0)
        tl.store(ptr, v, mask=mask)


@triton.jit
def store_v_sh(
    v_sh0_ptr,
    v_shN_ptr,
    start,
    n_valid,
    add,
    basis,
    v_color,
    WIDTH0: tl.constexpr,
    WIDTHN: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write gradients of n_valid Gaussians from `start` on; `basis` and `v_color` are flat."""
    if v_sh0_ptr is not None:
        CHUNK0: tl.constexpr = min(triton.next_power_of_2(BLOCK * WIDTH0), SH_CHUNK)
        _store_rows(v_sh0_ptr, start, n_valid, add, basis, v_color, 0, WIDTH0, FULL, BLOCK, CHUNK0)
    if v_shN_ptr is not None:
        CHUNKN: tl.constexpr = min(triton.next_power_of_2(BLOCK * WIDTHN), SH_CHUNK)
        _store_rows(v_shN_ptr, start, n_valid, add, basis, v_color, 1, WIDTHN, FULL, BLOCK, CHUNKN)
