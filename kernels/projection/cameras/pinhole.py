r"""Pinhole cameras: pose, intrinsics, perspective and its vjp.

    t      = R_view mean + t_view                       camera space, OpenCV axes
    mean2d = (fx tx/tz + cx, fy ty/tz + cy)             pixels, pixel centres at +0.5
    J R_view, rows fx/tz (r0 - u r2), fy/tz (r1 - v r2)     u, v: clamped tx/tz, ty/tz

The clamp is to the field of view plus FOV_MARGIN tan(fov / 2) on each side; its gradient is that of
the clamp.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ... import constants
from ...device.linalg import Vec3, add3, combine3, dot3, scale3

FOV_MARGIN = tl.constexpr(constants.FOV_MARGIN)


class Camera(NamedTuple):
    """Rows of the rotation, translation, intrinsics, and the bounds of x/z and y/z."""

    r0: Vec3
    r1: Vec3
    r2: Vec3
    t: Vec3
    fx: tl.tensor
    fy: tl.tensor
    cx: tl.tensor
    cy: tl.tensor
    low_u: tl.tensor
    high_u: tl.tensor
    low_v: tl.tensor
    high_v: tl.tensor


class Slopes(NamedTuple):
    """x/z and y/z, clamped, and the rows of J R_view."""

    x: tl.tensor
    y: tl.tensor
    u: tl.tensor
    v: tl.tensor
    row_x: Vec3
    row_y: Vec3


@triton.jit
def _load_scalar3(ptr):
    return Vec3(tl.load(ptr), tl.load(ptr + 1), tl.load(ptr + 2))


@triton.jit
def load_camera(viewmats_ptr, Ks_ptr, c, width, height):
    V = viewmats_ptr + c * 16
    K = Ks_ptr + c * 9
    fx = tl.load(K)
    fy = tl.load(K + 4)
    cx = tl.load(K + 2)
    cy = tl.load(K + 5)
    margin_u = 0.5 * width / fx * FOV_MARGIN
    margin_v = 0.5 * height / fy * FOV_MARGIN
    return Camera(
        _load_scalar3(V),
        _load_scalar3(V + 4),
        _load_scalar3(V + 8),
        Vec3(tl.load(V + 3), tl.load(V + 7), tl.load(V + 11)),
        fx,
        fy,
        cx,
        cy,
        -cx / fx - margin_u,
        (width - cx) / fx + margin_u,
        -cy / fy - margin_v,
        (height - cy) / fy + margin_v,
    )


@triton.jit
def rows_times(camera, v):
    """R_view^T v."""
    return add3(combine3(v.x, camera.r0, v.y, camera.r1), scale3(v.z, camera.r2))


@triton.jit
def to_camera(camera, mean):
    return Vec3(
        dot3(camera.r0, mean) + camera.t.x,
        dot3(camera.r1, mean) + camera.t.y,
        dot3(camera.r2, mean) + camera.t.z,
    )


@triton.jit
def center_offset(camera):
    """R_view^T t_view: minus the camera centre."""
    return rows_times(camera, camera.t)


@triton.jit
def perspective(camera, t):
    inverse_z = 1.0 / t.z
    x = t.x * inverse_z
    y = t.y * inverse_z
    u = tl.minimum(tl.maximum(x, camera.low_u), camera.high_u)
    v = tl.minimum(tl.maximum(y, camera.low_v), camera.high_v)
    fx = camera.fx * inverse_z
    fy = camera.fy * inverse_z
    row_x = combine3(fx, camera.r0, -fx * u, camera.r2)
    row_y = combine3(fy, camera.r1, -fy * v, camera.r2)
    return Slopes(x, y, u, v, row_x, row_y)


@triton.jit
def perspective_vjp(camera, t, s, v_mx, v_my, v_row_x, v_row_y):
    """v_t, v_r0, v_r1, v_r2 from the gradients of the mean in pixels and of the rows."""
    inverse_z = 1.0 / t.z
    fx = camera.fx * inverse_z
    fy = camera.fy * inverse_z
    v_u = tl.where(s.u == s.x, -fx * dot3(v_row_x, camera.r2), 0.0)
    v_v = tl.where(s.v == s.y, -fy * dot3(v_row_y, camera.r2), 0.0)
    v_x = (camera.fx * v_mx + v_u) * inverse_z
    v_y = (camera.fy * v_my + v_v) * inverse_z
    v_z = -(dot3(v_row_x, s.row_x) + dot3(v_row_y, s.row_y)) * inverse_z - s.x * v_x - s.y * v_y
    v_r0 = scale3(fx, v_row_x)
    v_r1 = scale3(fy, v_row_y)
    v_r2 = combine3(-s.u, v_r0, -s.v, v_r1)
    return Vec3(v_x, v_y, v_z), v_r0, v_r1, v_r2
