r"""Unscented transform on the device, for lenses that bend lines: reference/unscented.py.

    delta = sqrt 3 (alpha = 1, kappa = 0, beta = 2),     d_k+- = pi(t +- delta W_k) - pi(t)
    seven columns: odd_k = (d_k+ - d_k-)/(2 delta), even_k = (d_k+ + d_k-)/(2 delta), k = 0..2, and
    m = sum_k even_k / delta
    mean2d = pi(t) + m,   cov2d = sum of columns x columns^T,   det = sum of squared minors n_ij

With G the symmetric gradient of cov2d and v_det that of the determinant:

    v_column_i = 2 G column_i + 2 v_det sum_j n_ij (y_j, -x_j)
    v_even_k += (v_mean2d + v_m) / delta,     v_d_k+- = (v_even_k +- v_odd_k)/(2 delta)
    u_k+- = J(t +- delta W_k)^T v_d_k+-,      u = J(t)^T (v_mean2d - sum of all v_d)
    v_t = u + sum of all u_k+-,               v_W_k = delta (u_k+ - u_k-)

There are no second derivatives: every point has its own J. In float32 alpha = 1 keeps 10 to 100
times more digits than a small one, whose points lie too near to each other.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ..device.linalg import Mat3, Sym2, Vec3, add3, dot3, scale3, sub3, sym2_inverse_vjp
from .cameras.lens import project, project_vjp, unwound
from .cameras.pinhole import rows_times
from .ewa import blurred_conic, columns_times, compensation_vjp

DELTA = tl.constexpr(3.0**0.5)
HALF = tl.constexpr(0.5 / 3.0**0.5)
N_COLUMNS = tl.constexpr(7)


class Moments(NamedTuple):
    """Mean in pixels, covariance and its determinant."""

    mx: tl.tensor
    my: tl.tensor
    cov: Sym2
    det: tl.tensor


@triton.jit
def to_camera_axes(camera, rotation, scale):
    """W = R_view R S."""
    return Mat3(
        scale3(scale.x, _turned(camera, rotation.c0)),
        scale3(scale.y, _turned(camera, rotation.c1)),
        scale3(scale.z, _turned(camera, rotation.c2)),
    )


@triton.jit
def _turned(camera, v):
    return Vec3(dot3(camera.r0, v), dot3(camera.r1, v), dot3(camera.r2, v))


@triton.jit
def _step(axis):
    """delta W_k."""
    return Vec3(axis.x * DELTA, axis.y * DELTA, axis.z * DELTA)


@triton.jit
def _pair(lens, t, axis, px, py, LENS: tl.constexpr):
    """Odd and even half of the differences along an axis: x, y of both."""
    step = _step(axis)
    x1, y1 = project(lens, add3(t, step), LENS)
    x2, y2 = project(lens, sub3(t, step), LENS)
    x1, y1 = unwound(lens, x1 - px, LENS), y1 - py
    x2, y2 = unwound(lens, x2 - px, LENS), y2 - py
    return (x1 - x2) * HALF, (y1 - y2) * HALF, (x1 + x2) * HALF, (y1 + y2) * HALF


@triton.jit
def sigma_columns(lens, t, axes, LENS: tl.constexpr):
    """pi(t), and x and y of the seven columns."""
    px, py = project(lens, t, LENS)
    ox0, oy0, ex0, ey0 = _pair(lens, t, axes.c0, px, py, LENS)
    ox1, oy1, ex1, ey1 = _pair(lens, t, axes.c1, px, py, LENS)
    ox2, oy2, ex2, ey2 = _pair(lens, t, axes.c2, px, py, LENS)
    mx, my = (ex0 + ex1 + ex2) / DELTA, (ey0 + ey1 + ey2) / DELTA
    return px, py, (ox0, ox1, ox2, ex0, ex1, ex2, mx), (oy0, oy1, oy2, ey0, ey1, ey2, my)


@triton.jit
def moments(px, py, xs, ys):
    """Of the columns."""
    zero = tl.zeros_like(px)
    xx, xy, yy, det = zero, zero, zero, zero
    for i in tl.static_range(N_COLUMNS):
        xx += xs[i] * xs[i]
        xy += xs[i] * ys[i]
        yy += ys[i] * ys[i]
        for j in tl.static_range(i + 1, N_COLUMNS):
            minor = xs[i] * ys[j] - ys[i] * xs[j]
            det += minor * minor
    return Moments(px + xs[6], py + ys[6], Sym2(xx, xy, yy), det)


@triton.jit
def _column_vjp(xs, ys, v_cov, v_det, HAS_DET: tl.constexpr, K: tl.constexpr):
    """Gradient of column K through covariance and determinant."""
    v_x = 2.0 * v_cov.xx * xs[K] + v_cov.xy * ys[K]
    v_y = v_cov.xy * xs[K] + 2.0 * v_cov.yy * ys[K]
    if HAS_DET:
        for j in tl.static_range(N_COLUMNS):
            minor = 2.0 * v_det * (xs[K] * ys[j] - ys[K] * xs[j])
            v_x += minor * ys[j]
            v_y -= minor * xs[j]
    return v_x, v_y


@triton.jit
def moments_vjp(
    lens, t, axes, xs, ys, v_mx, v_my, v_cov, v_det, HAS_DET: tl.constexpr, LENS: tl.constexpr
):
    """v_t, and v_W as a matrix."""
    v_sx, v_sy = _column_vjp(xs, ys, v_cov, v_det, HAS_DET, 6)
    v_sx, v_sy = (v_mx + v_sx) / DELTA, (v_my + v_sy) / DELTA
    zero = tl.zeros_like(v_mx)
    v_px, v_py, v_t = v_mx, v_my, Vec3(zero, zero, zero)
    columns = ()
    for k in tl.static_range(3):
        step = _step(axes[k])
        v_ox, v_oy = _column_vjp(xs, ys, v_cov, v_det, HAS_DET, k)
        v_ex, v_ey = _column_vjp(xs, ys, v_cov, v_det, HAS_DET, k + 3)
        v_ex, v_ey = v_ex + v_sx, v_ey + v_sy
        x1, y1 = (v_ex + v_ox) * HALF, (v_ey + v_oy) * HALF
        x2, y2 = (v_ex - v_ox) * HALF, (v_ey - v_oy) * HALF
        a = project_vjp(lens, add3(t, step), x1, y1, LENS)
        b = project_vjp(lens, sub3(t, step), x2, y2, LENS)
        v_px -= x1 + x2
        v_py -= y1 + y2
        v_t = add3(v_t, add3(a, b))
        column = _step(sub3(a, b))
        # numbers: Triton 3.6 forgets the names in a tuple that is added to
        columns = columns + (column.x, column.y, column.z)
    v_t = add3(v_t, project_vjp(lens, t, v_px, v_py, LENS))
    c0 = Vec3(columns[0], columns[1], columns[2])
    c1 = Vec3(columns[3], columns[4], columns[5])
    return v_t, Mat3(c0, c1, Vec3(columns[6], columns[7], columns[8]))


@triton.jit
def unscented_vjp(
    camera,
    lens,
    t,
    rotation,
    scale,
    v_mx,
    v_my,
    v_conic,
    v_log_o,
    eps2d,
    ANTIALIASED: tl.constexpr,
    LENS: tl.constexpr,
):
    """v_t, v_W, v_scale and v_rotation from the gradients of mean, conic and log opacity."""
    axes = to_camera_axes(camera, rotation, scale)
    px, py, xs, ys = sigma_columns(lens, t, axes, LENS)
    seen = moments(px, py, xs, ys)
    xx, yy = seen.cov.xx, seen.cov.yy
    conic, _ = blurred_conic(xx, seen.cov.xy, yy, seen.det, eps2d)
    v_cov = sym2_inverse_vjp(conic, v_conic)
    v_det = v_log_o
    if ANTIALIASED:
        v_det, v_eps = compensation_vjp(seen.det, xx + yy, eps2d, v_log_o)
        v_cov = Sym2(v_cov.xx + v_eps, v_cov.xy, v_cov.yy + v_eps)
    v_t, v_W = moments_vjp(lens, t, axes, xs, ys, v_mx, v_my, v_cov, v_det, ANTIALIASED, LENS)
    v0, v1, v2 = rows_times(camera, v_W.c0), rows_times(camera, v_W.c1), rows_times(camera, v_W.c2)
    v_scale = Vec3(dot3(v0, rotation.c0), dot3(v1, rotation.c1), dot3(v2, rotation.c2))
    v_rotation = Mat3(scale3(scale.x, v0), scale3(scale.y, v1), scale3(scale.z, v2))
    return v_t, v_W, v_scale, v_rotation


@triton.jit
def rows_of_axes(rotation, scale, v_W):
    """What the rows of R_view get through W."""
    return (
        _row_of_axes(rotation, scale, v_W.c0.x, v_W.c1.x, v_W.c2.x),
        _row_of_axes(rotation, scale, v_W.c0.y, v_W.c1.y, v_W.c2.y),
        _row_of_axes(rotation, scale, v_W.c0.z, v_W.c1.z, v_W.c2.z),
    )


@triton.jit
def _row_of_axes(rotation, scale, a, b, c):
    return columns_times(rotation, Vec3(scale.x * a, scale.y * b, scale.z * c))
