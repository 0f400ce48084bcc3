"""The homography of PPISP's colours, of eight numbers z, and its gradient: scalars of a program.

Equations stand in kernels/reference/light.py. Points are blue, red, green and neutral; M_33 is 1.
"""

import triton
import triton.language as tl

from ..reference import light

NEUTRAL = tl.constexpr(light.NEUTRAL)
BLUE, RED, GREEN, GREY = (tl.constexpr(k) for k in range(4))
B_A, B_B, B_D = (tl.constexpr(x) for x in light.SPREADS[0])
R_A, R_B, R_D = (tl.constexpr(x) for x in light.SPREADS[1])
G_A, G_B, G_D = (tl.constexpr(x) for x in light.SPREADS[2])
N_A, N_B, N_D = (tl.constexpr(x) for x in light.SPREADS[3])


@triton.jit
def offset(u, v, POINT: tl.constexpr):
    """A point's symmetric matrix times a vector; its own adjoint."""
    if POINT == BLUE:
        return u * B_A + v * B_B, u * B_B + v * B_D
    elif POINT == RED:
        return u * R_A + v * R_B, u * R_B + v * R_D
    elif POINT == GREEN:
        return u * G_A + v * G_B, u * G_B + v * G_D
    else:
        return u * N_A + v * N_B, u * N_B + v * N_D


@triton.jit
def _area(x1, y1, x2, y2, x3, y3):
    return (x2 - x1) * (y3 - y1) - (x3 - x1) * (y2 - y1)


@triton.jit
def _area_vjp(v, x1, y1, x2, y2, x3, y3):
    x12, y12, x13, y13 = x2 - x1, y2 - y1, x3 - x1, y3 - y1
    return v * (y12 - y13), v * (x13 - x12), v * y13, -v * x13, -v * y12, v * x12


@triton.jit
def _points(z_ptr):
    """The moved points."""
    bx, by = offset(tl.load(z_ptr), tl.load(z_ptr + 1), BLUE)
    rx, ry = offset(tl.load(z_ptr + 2), tl.load(z_ptr + 3), RED)
    gx, gy = offset(tl.load(z_ptr + 4), tl.load(z_ptr + 5), GREEN)
    nx, ny = offset(tl.load(z_ptr + 6), tl.load(z_ptr + 7), GREY)
    return bx, by, rx + 1.0, ry, gx, gy + 1.0, nx + NEUTRAL, ny + NEUTRAL


@triton.jit
def homography(z_ptr):  # [8]
    """M_11 M_12 M_13, M_21 M_22 M_23, M_31 M_32."""
    bx, by, rx, ry, gx, gy, nx, ny = _points(z_ptr)
    w_b = _area(nx, ny, rx, ry, gx, gy)
    red = _area(bx, by, nx, ny, gx, gy) / w_b
    green = _area(bx, by, rx, ry, nx, ny) / w_b
    return (
        red * rx - bx,
        green * gx - bx,
        bx,
        red * ry - by,
        green * gy - by,
        by,
        red - 1.0,
        green - 1.0,
    )


@triton.jit
def homography_vjp(z_ptr, v11, v12, v13, v21, v22, v23, v31, v32):
    """The gradient of z, from that of M. Eight scalars"""
    bx, by, rx, ry, gx, gy, nx, ny = _points(z_ptr)
    w_b = _area(nx, ny, rx, ry, gx, gy)
    red = _area(bx, by, nx, ny, gx, gy) / w_b
    green = _area(bx, by, rx, ry, nx, ny) / w_b
    v_red = v11 * rx + v21 * ry + v31
    v_green = v12 * gx + v22 * gy + v32
    n_b = _area_vjp(-(v_red * red + v_green * green) / w_b, nx, ny, rx, ry, gx, gy)
    b_r = _area_vjp(v_red / w_b, bx, by, nx, ny, gx, gy)
    b_g = _area_vjp(v_green / w_b, bx, by, rx, ry, nx, ny)
    v_bx, v_by = v13 - v11 - v12 + b_r[0] + b_g[0], v23 - v21 - v22 + b_r[1] + b_g[1]
    v_rx, v_ry = v11 * red + n_b[2] + b_g[2], v21 * red + n_b[3] + b_g[3]
    v_gx, v_gy = v12 * green + n_b[4] + b_r[4], v22 * green + n_b[5] + b_r[5]
    v_nx, v_ny = n_b[0] + b_r[2] + b_g[4], n_b[1] + b_r[3] + b_g[5]
    z0, z1 = offset(v_bx, v_by, BLUE)
    z2, z3 = offset(v_rx, v_ry, RED)
    z4, z5 = offset(v_gx, v_gy, GREEN)
    z6, z7 = offset(v_nx, v_ny, GREY)
    return z0, z1, z2, z3, z4, z5, z6, z7
