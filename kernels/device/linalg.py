"""Device functions on three-vectors, quaternions and symmetric 2x2 matrices, with their vjps.

A vjp is the transpose of the derivative: it takes v_<output> and returns v_<input>. Symmetric 2x2
matrices are their upper triangle (xx, xy, yy); the gradient of xy counts both off-diagonal entries.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Vec3(NamedTuple):
    """Three blocks (or scalars) as a vector."""

    x: tl.tensor
    y: tl.tensor
    z: tl.tensor


class Sym2(NamedTuple):
    """Upper triangle of a symmetric 2x2 matrix."""

    xx: tl.tensor
    xy: tl.tensor
    yy: tl.tensor


class Mat3(NamedTuple):
    """A 3x3 matrix by its columns."""

    c0: Vec3
    c1: Vec3
    c2: Vec3


@triton.jit
def dot3(a, b):
    return a.x * b.x + a.y * b.y + a.z * b.z


@triton.jit
def cross3(a, b):
    return Vec3(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x)


@triton.jit
def scale3(s, a):
    return Vec3(s * a.x, s * a.y, s * a.z)


@triton.jit
def add3(a, b):
    return Vec3(a.x + b.x, a.y + b.y, a.z + b.z)


@triton.jit
def combine3(s, a, t, b):
    """s a + t b."""
    return Vec3(s * a.x + t * b.x, s * a.y + t * b.y, s * a.z + t * b.z)


@triton.jit
def load3(ptr, mask):
    """Three consecutive floats; zeros where the mask is off."""
    x = tl.load(ptr, mask=mask, other=0.0)
    y = tl.load(ptr + 1, mask=mask, other=0.0)
    z = tl.load(ptr + 2, mask=mask, other=0.0)
    return Vec3(x, y, z)


@triton.jit
def store3(ptr, a, mask):
    tl.store(ptr, a.x, mask=mask)
    tl.store(ptr + 1, a.y, mask=mask)
    tl.store(ptr + 2, a.z, mask=mask)


@triton.jit
def normalize3(a):
    """Unit vector and the reciprocal of the length."""
    inverse = 1.0 / tl.sqrt(dot3(a, a))
    return scale3(inverse, a), inverse


@triton.jit
def normalize3_vjp(unit, inverse, v_unit):
    return combine3(inverse, v_unit, -inverse * dot3(unit, v_unit), unit)


@triton.jit
def quat_to_rotmat(w, x, y, z):
    """Rotation matrix of a unit quaternion."""
    return Mat3(
        Vec3(1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y)),
        Vec3(2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x)),
        Vec3(2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y)),
    )


@triton.jit
def quat_to_rotmat_vjp(w, x, y, z, v0, v1, v2):
    """v_w, v_x, v_y, v_z from the gradients v0, v1, v2 of the three columns."""
    v_w = 2.0 * (x * (v1.z - v2.y) + y * (v2.x - v0.z) + z * (v0.y - v1.x))
    v_x = 2.0 * (y * (v0.y + v1.x) + z * (v0.z + v2.x) + w * (v1.z - v2.y))
    v_y = 2.0 * (x * (v0.y + v1.x) + z * (v1.z + v2.y) + w * (v2.x - v0.z))
    v_z = 2.0 * (x * (v0.z + v2.x) + y * (v1.z + v2.y) + w * (v0.y - v1.x))
    v_x -= 4.0 * x * (v1.y + v2.z)
    v_y -= 4.0 * y * (v0.x + v2.z)
    v_z -= 4.0 * z * (v0.x + v1.y)
    return v_w, v_x, v_y, v_z


@triton.jit
def sym2_inverse(m, det):
    """Inverse of a matrix whose determinant is known."""
    inverse = 1.0 / det
    return Sym2(m.yy * inverse, -m.xy * inverse, m.xx * inverse)


@triton.jit
def sym2_inverse_vjp(i, v):
    """-I V I for the inverse I and V = v with its off-diagonal entry halved."""
    h = 0.5 * v.xy
    axx = v.xx * i.xx + h * i.xy
    axy = v.xx * i.xy + h * i.yy
    ayx = h * i.xx + v.yy * i.xy
    ayy = h * i.xy + v.yy * i.yy
    return Sym2(
        -(i.xx * axx + i.xy * ayx),
        -2.0 * (i.xx * axy + i.xy * ayy),
        -(i.xy * axy + i.yy * ayy),
    )
