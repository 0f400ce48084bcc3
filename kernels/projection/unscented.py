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

from ..device.linalg import Mat3, Sym2, Vec3, add3, dot3, scale3, sym2_inverse_vjp
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
def _pick(place, zero, one, two, three):
    """What is at a place, which may be a loop's: 1, 2 or 3; else nothing."""
    return tl.where(place == 1, one, tl.where(place == 2, two, tl.where(place == 3, three, zero)))


@triton.jit
def _sigma_point(t, axes, p):
    """Point p: t, then t + delta W_k and t - delta W_k by turns; and where it belongs and how.

    Points go by in a loop: unrolled, all of a lens stands seven times in the code, and compiling
    takes twice as long.
    """
    place, sign = (p + 1) // 2, 2 * (p % 2) - 1
    length, zero = sign * DELTA, tl.zeros_like(t.x)
    x = _pick(place, zero, axes.c0.x, axes.c1.x, axes.c2.x)
    y = _pick(place, zero, axes.c0.y, axes.c1.y, axes.c2.y)
    z = _pick(place, zero, axes.c0.z, axes.c1.z, axes.c2.z)
    return Vec3(t.x + length * x, t.y + length * y, t.z + length * z), place, sign


@triton.jit
def sigma_columns(lens, t, axes, LENS: tl.constexpr):
    """pi(t), and x and y of the seven columns."""
    zero = tl.zeros_like(t.x)
    px, py = zero, zero
    ox0, oy0, ox1, oy1, ox2, oy2 = zero, zero, zero, zero, zero, zero
    ex0, ey0, ex1, ey1, ex2, ey2 = zero, zero, zero, zero, zero, zero
    for p in range(N_COLUMNS):
        point, place, sign = _sigma_point(t, axes, p)
        x, y = project(lens, point, LENS)
        px, py = tl.where(place == 0, x, px), tl.where(place == 0, y, py)
        x, y = unwound(lens, x - px, LENS), y - py
        ox0, oy0 = _added(ox0, oy0, place == 1, sign * x, sign * y)
        ox1, oy1 = _added(ox1, oy1, place == 2, sign * x, sign * y)
        ox2, oy2 = _added(ox2, oy2, place == 3, sign * x, sign * y)
        ex0, ey0 = _added(ex0, ey0, place == 1, x, y)
        ex1, ey1 = _added(ex1, ey1, place == 2, x, y)
        ex2, ey2 = _added(ex2, ey2, place == 3, x, y)
    ox0, ox1, ox2, oy0, oy1, oy2 = _six(ox0, ox1, ox2, oy0, oy1, oy2, HALF)
    ex0, ex1, ex2, ey0, ey1, ey2 = _six(ex0, ex1, ex2, ey0, ey1, ey2, HALF)
    mx, my = (ex0 + ex1 + ex2) / DELTA, (ey0 + ey1 + ey2) / DELTA
    return px, py, (ox0, ox1, ox2, ex0, ex1, ex2, mx), (oy0, oy1, oy2, ey0, ey1, ey2, my)


@triton.jit
def _added(x, y, here, more_x, more_y):
    return x + tl.where(here, more_x, 0.0), y + tl.where(here, more_y, 0.0)


@triton.jit
def _six(a, b, c, d, e, f, factor):
    return a * factor, b * factor, c * factor, d * factor, e * factor, f * factor


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
    v_ox0, v_oy0 = _column_vjp(xs, ys, v_cov, v_det, HAS_DET, 0)
    v_ox1, v_oy1 = _column_vjp(xs, ys, v_cov, v_det, HAS_DET, 1)
    v_ox2, v_oy2 = _column_vjp(xs, ys, v_cov, v_det, HAS_DET, 2)
    v_ex0, v_ey0 = _column_vjp(xs, ys, v_cov, v_det, HAS_DET, 3)
    v_ex1, v_ey1 = _column_vjp(xs, ys, v_cov, v_det, HAS_DET, 4)
    v_ex2, v_ey2 = _column_vjp(xs, ys, v_cov, v_det, HAS_DET, 5)
    v_ex0, v_ex1, v_ex2 = v_ex0 + v_sx, v_ex1 + v_sx, v_ex2 + v_sx
    v_ey0, v_ey1, v_ey2 = v_ey0 + v_sy, v_ey1 + v_sy, v_ey2 + v_sy
    # half of every difference's gradient comes from either point; that at t gets what is left
    v_px, v_py = (
        v_mx - 2.0 * HALF * (v_ex0 + v_ex1 + v_ex2),
        v_my - 2.0 * HALF * (v_ey0 + v_ey1 + v_ey2),
    )
    zero = tl.zeros_like(v_mx)
    v_t, c0, c1, c2 = _none(zero), _none(zero), _none(zero), _none(zero)
    for p in range(N_COLUMNS):
        point, place, sign = _sigma_point(t, axes, p)
        even_x, even_y = (
            _pick(place, zero, v_ex0, v_ex1, v_ex2),
            _pick(place, zero, v_ey0, v_ey1, v_ey2),
        )
        odd_x, odd_y = (
            _pick(place, zero, v_ox0, v_ox1, v_ox2),
            _pick(place, zero, v_oy0, v_oy1, v_oy2),
        )
        v_x = tl.where(place == 0, v_px, (even_x + sign * odd_x) * HALF)
        v_y = tl.where(place == 0, v_py, (even_y + sign * odd_y) * HALF)
        u = project_vjp(lens, point, v_x, v_y, LENS)
        v_t = add3(v_t, u)
        step = scale3(sign * DELTA, u)
        c0, c1 = _added3(c0, place == 1, step), _added3(c1, place == 2, step)
        c2 = _added3(c2, place == 3, step)
    return v_t, Mat3(c0, c1, c2)


@triton.jit
def _none(zero):
    return Vec3(zero, zero, zero)


@triton.jit
def _added3(v, here, more):
    return Vec3(
        v.x + tl.where(here, more.x, 0.0),
        v.y + tl.where(here, more.y, 0.0),
        v.z + tl.where(here, more.z, 0.0),
    )


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
