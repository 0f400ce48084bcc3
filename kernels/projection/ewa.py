"""Device functions that both passes of projection share; equations in projection/."""

# Triton types its device functions as returning nothing.
# pyright: reportGeneralTypeIssues=false

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .. import constants
from ..device.linalg import Mat3, Sym2, Vec3, add3, combine3, dot3, load3, scale3, sym2_inverse
from ..device.transpose import load_tile16, split16

FOV_MARGIN = tl.constexpr(constants.FOV_MARGIN)
CULLED_KEY = tl.constexpr(0x7F800000)


class Camera(NamedTuple):
    """Rows of the rotation, translation, intrinsics, and the bounds of x/z and y/z."""

    r0: Any
    r1: Any
    r2: Any
    t: Any
    fx: Any
    fy: Any
    cx: Any
    cy: Any
    low_u: Any
    high_u: Any
    low_v: Any
    high_v: Any


class Slopes(NamedTuple):
    """x/z and y/z, clamped, and the rows of J R_view."""

    x: Any
    y: Any
    u: Any
    v: Any
    row_x: Any
    row_y: Any


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


@triton.jit
def columns_times(m, v):
    """The matrix m times the vector v."""
    return add3(combine3(v.x, m.c0, v.y, m.c1), scale3(v.z, m.c2))


@triton.jit
def times3(a, b):
    return Vec3(a.x * b.x, a.y * b.y, a.z * b.z)


@triton.jit
def times_columns(a, m, s):
    """Row vector a times the matrix m with its columns scaled by s."""
    return Vec3(s.x * dot3(a, m.c0), s.y * dot3(a, m.c1), s.z * dot3(a, m.c2))


@triton.jit
def load_quat(quats_ptr, i, mask):
    """Quaternions, (1, 0, 0, 0) where the mask is off."""
    w = tl.load(quats_ptr + i * 4, mask=mask, other=1.0)
    x = tl.load(quats_ptr + i * 4 + 1, mask=mask, other=0.0)
    y = tl.load(quats_ptr + i * 4 + 2, mask=mask, other=0.0)
    z = tl.load(quats_ptr + i * 4 + 3, mask=mask, other=0.0)
    return w, x, y, z


@triton.jit
def load_logit(mask_logits_ptr, i, mask, LOGITS: tl.constexpr):
    """Logits [N], or keep minus drop of logits [N, 2]."""
    logit = tl.load(mask_logits_ptr + i * LOGITS, mask=mask, other=0.0)
    if LOGITS == 2:
        logit -= tl.load(mask_logits_ptr + i * 2 + 1, mask=mask, other=0.0)
    return logit


@triton.jit
def load_ids(mask_ids_ptr, i, mask):
    if mask_ids_ptr is not None:
        return tl.load(mask_ids_ptr + i, mask=mask, other=0).to(tl.int32)
    else:
        return i.to(tl.int32)


@triton.jit
def load_covariance(covars_ptr, i, mask):
    """Columns of a [3, 3] matrix, symmetrised."""
    c = covars_ptr + i * 9
    a = load3(c, mask)
    b = load3(c + 3, mask)
    d = load3(c + 6, mask)
    xy, xz, yz = 0.5 * (a.y + b.x), 0.5 * (a.z + d.x), 0.5 * (b.z + d.y)
    return Mat3(Vec3(a.x, xy, xz), Vec3(xy, b.y, yz), Vec3(xz, yz, d.z))


@triton.jit
def load_sh_tiles(
    sh0_ptr, shN_ptr, i, mask, stride0, strideN, DEGREE: tl.constexpr, REST: tl.constexpr
):
    """What `split_sh` takes apart: all loads at once, so that they are on their way together."""
    COUNT: tl.constexpr = 3 * (DEGREE + 1) * (DEGREE + 1)
    if REST:
        first = load3(sh0_ptr + i * stride0, mask)
        row = shN_ptr + i * strideN
        return (first.x, first.y, first.z) + _load_tiles(row, mask, COUNT - 3)
    else:
        return _load_tiles(sh0_ptr + i * stride0, mask, COUNT)


@triton.jit
def _load_tiles(row_ptr, mask, COUNT: tl.constexpr):
    tiles = ()
    for begin in tl.static_range(0, COUNT, 16):
        tiles = tiles + (load_tile16(row_ptr + begin, mask, COUNT - begin),)
    return tiles


@triton.jit
def split_sh(tiles, REST: tl.constexpr):
    """Coefficients up to DEGREE as a tuple of at least 3 (DEGREE + 1)^2 blocks."""
    coeffs = ()
    if REST:
        coeffs = coeffs + (tiles[0], tiles[1], tiles[2])
        for k in tl.static_range(3, len(tiles)):
            coeffs = coeffs + split16(tiles[k])
    else:
        for k in tl.static_range(len(tiles)):
            coeffs = coeffs + split16(tiles[k])
    return coeffs


@triton.jit
def blurred_conic(xx, xy, yy, det, eps2d):
    """Inverse of a covariance [xx xy; xy yy] of determinant det, blurred; and its determinant."""
    det_blurred = det + eps2d * (xx + yy) + eps2d * eps2d
    return sym2_inverse(Sym2(xx + eps2d, xy, yy + eps2d), det_blurred), det_blurred
