r"""Fisheyes of COLMAP: OPENCV_, SIMPLE_RADIAL_, RADIAL_ and THIN_PRISM_FISHEYE, (SIMPLE_)FISHEYE.

pixel = f D(m) + c,   m = theta e,   theta = atan2(rho, tz),   rho e = (tx, ty)

v_m = D'^T (f v),  a = e . v_m
v_xy = theta/rho v_m + (tz/|t|^2 - theta/rho) a e,      v_z = -rho a / |t|^2
"""

import triton
import triton.language as tl

from ...device.angles import atan2
from ...device.linalg import Vec3
from .distortion import bend, bend_vjp
from .polar import off_axis


@triton.jit
def project(lens, t, LENS: tl.constexpr):
    """Pixel of a point in camera space."""
    rho, _ = off_axis(t)
    s = atan2(rho, t.z) / rho
    x, y = bend(lens, s * t.x, s * t.y, LENS)
    return lens.fx * x + lens.cx, lens.fy * y + lens.cy


@triton.jit
def project_vjp(lens, t, v_x, v_y, LENS: tl.constexpr):
    """v_t."""
    rho, R2 = off_axis(t)
    s = atan2(rho, t.z) / rho
    v_u, v_v = bend_vjp(lens, s * t.x, s * t.y, lens.fx * v_x, lens.fy * v_y, LENS)
    ex, ey = t.x / rho, t.y / rho
    a = ex * v_u + ey * v_v
    turn = (t.z / R2 - s) * a
    return Vec3(s * v_u + turn * ex, s * v_v + turn * ey, -(rho / R2) * a)
