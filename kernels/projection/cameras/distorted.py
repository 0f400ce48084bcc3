r"""Perspective lenses with distortion: SIMPLE_RADIAL, RADIAL, OPENCV and FULL_OPENCV of COLMAP.

pixel = f D(m) + c,   m = (tx, ty)/tz;   beyond theta0 = atan r0, m = e h with
h = r0 + (1 + r0^2)(theta - theta0), which is finite for every direction

v_m = D'^T (f v),  a = e . v_m
before theta0:  v_xy = v_m / tz,                                       v_z = -rho a / tz^2
beyond:         v_xy = h/rho v_m + ((1 + r0^2) tz/|t|^2 - h/rho) a e,  v_z = -(1 + r0^2) rho
                                                                             a / |t|^2
"""

import triton
import triton.language as tl

from ...device.angles import atan2
from ...device.linalg import Vec3
from .distortion import bend, bend_vjp
from .polar import off_axis


@triton.jit
def _slope(lens, t):
    """|m| / rho, its derivative along e, that of |m| by -z, and rho."""
    rho, R2 = off_axis(t)
    inside = (t.z > 0.0) & (rho <= lens.r0 * t.z)
    inverse = 1.0 / tl.where(inside, t.z, 1.0)
    gain = 1.0 + lens.r0 * lens.r0
    h = lens.r0 + gain * (atan2(rho, t.z) - lens.theta0)
    s = tl.where(inside, inverse, h / rho)
    gain = gain / R2
    along = tl.where(inside, inverse, gain * t.z)
    down = tl.where(inside, rho * inverse * inverse, gain * rho)
    return s, along, down, rho


@triton.jit
def project(lens, t, LENS: tl.constexpr):
    """Pixel of a point in camera space."""
    s, _, _, _ = _slope(lens, t)
    x, y = bend(lens, s * t.x, s * t.y, LENS)
    return lens.fx * x + lens.cx, lens.fy * y + lens.cy


@triton.jit
def project_vjp(lens, t, v_x, v_y, LENS: tl.constexpr):
    """v_t."""
    s, along, down, rho = _slope(lens, t)
    v_u, v_v = bend_vjp(lens, s * t.x, s * t.y, lens.fx * v_x, lens.fy * v_y, LENS)
    ex, ey = t.x / rho, t.y / rho
    a = ex * v_u + ey * v_v
    turn = (along - s) * a
    return Vec3(s * v_u + turn * ex, s * v_v + turn * ey, -down * a)
