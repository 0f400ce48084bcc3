r"""Panoramas: COLMAP's EQUIRECTANGULAR.

    pixel = f (longitude, latitude) + c,  longitude = atan2(tx, tz),  latitude = atan2(ty, l)
    l^2 = tx^2 + tz^2,    f = (W / 2 pi, H / pi),    c = (W / 2, H / 2)

    v_t = f v_x (tz, 0, -tx)/l^2 + f v_y (-tx ty/l, l, -ty tz/l)/|t|^2

Differences of x are taken the short way round; an ellipse is cut at the left and right border.
"""

import triton
import triton.language as tl

from ...device.angles import PI, atan2
from ...device.linalg import Vec3, dot3
from .polar import AXIS


@triton.jit
def _level(t):
    """l, away from 0, and |t|^2."""
    R2 = dot3(t, t)
    l2 = t.x * t.x + t.z * t.z
    return tl.sqrt(tl.maximum(l2, R2 * (AXIS * AXIS) + 1e-30)), R2


@triton.jit
def project(lens, t):
    """Pixel of a point in camera space."""
    across, _ = _level(t)
    x, y = atan2(t.x, t.z), atan2(t.y, across)
    return lens.fx * x + lens.cx, lens.fy * y + lens.cy


@triton.jit
def project_vjp(lens, t, v_x, v_y):
    """v_t."""
    across, R2 = _level(t)
    a = lens.fx * v_x / (across * across)
    b = lens.fy * v_y / R2
    down = b * t.y / across
    return Vec3(a * t.z - down * t.x, b * across, -a * t.x - down * t.z)


@triton.jit
def unwound(lens, dx):
    """A difference of x the short way round."""
    turn = lens.fx * (2.0 * PI)
    return dx - turn * tl.floor(dx / turn + 0.5)
