"""A lens on the device: its numbers, and the functions of its family, of which LENS is compiled.

LENS is `LensKind.code` (lenses/kinds.py): 0 is a pinhole, which is not projected here.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ... import constants
from ...device.angles import HALF_PI, PI, atan2
from ...device.linalg import Vec3, add3, dot3, scale3
from ...lenses import kinds
from . import distorted, equirectangular, fisheye
from .polar import off_axis

DISTORTED = tl.constexpr(kinds.FAMILIES.index("distorted"))
FISHEYE = tl.constexpr(kinds.FAMILIES.index("fisheye"))
EQUIRECTANGULAR = tl.constexpr(kinds.FAMILIES.index("equirectangular"))
LENS_WORDS = tl.constexpr(kinds.LENS_WORDS)
REACH = tl.constexpr(constants.REACH)
MOST_ANGLE = tl.constexpr(constants.MOST_ANGLE)


class Lens(NamedTuple):
    """Intrinsics and the words of a lens, in their order."""

    fx: tl.tensor
    fy: tl.tensor
    cx: tl.tensor
    cy: tl.tensor
    a1: tl.tensor
    a2: tl.tensor
    a3: tl.tensor
    a4: tl.tensor
    b1: tl.tensor
    b2: tl.tensor
    b3: tl.tensor
    p1: tl.tensor
    p2: tl.tensor
    s1: tl.tensor
    s2: tl.tensor
    s3: tl.tensor
    s4: tl.tensor
    r0: tl.tensor
    theta0: tl.tensor
    slope0: tl.tensor
    edge: tl.tensor


@triton.jit
def load_lens(camera, lenses_ptr, c):
    words = lenses_ptr + c * LENS_WORDS
    return Lens(
        camera.fx,
        camera.fy,
        camera.cx,
        camera.cy,
        tl.load(words),
        tl.load(words + 1),
        tl.load(words + 2),
        tl.load(words + 3),
        tl.load(words + 4),
        tl.load(words + 5),
        tl.load(words + 6),
        tl.load(words + 7),
        tl.load(words + 8),
        tl.load(words + 9),
        tl.load(words + 10),
        tl.load(words + 11),
        tl.load(words + 12),
        tl.load(words + 13),
        tl.load(words + 14),
        tl.load(words + 15),
        tl.load(words + 16),
    )


@triton.jit
def project(lens, t, LENS: tl.constexpr):
    """Pixel of a point in camera space."""
    if LENS % 4 == DISTORTED:
        return distorted.project(lens, t, LENS)
    elif LENS % 4 == FISHEYE:
        return fisheye.project(lens, t, LENS)
    else:
        return equirectangular.project(lens, t)


@triton.jit
def project_vjp(lens, t, v_x, v_y, LENS: tl.constexpr):
    """v_t."""
    if LENS % 4 == DISTORTED:
        return distorted.project_vjp(lens, t, v_x, v_y, LENS)
    elif LENS % 4 == FISHEYE:
        return fisheye.project_vjp(lens, t, v_x, v_y, LENS)
    else:
        return equirectangular.project_vjp(lens, t, v_x, v_y)


@triton.jit
def unwound(lens, dx, LENS: tl.constexpr):
    """A difference of x, the short way round in a panorama."""
    if LENS % 4 == EQUIRECTANGULAR:
        return equirectangular.unwound(lens, dx)
    else:
        return dx


@triton.jit
def depth(t, LENS: tl.constexpr):
    """z, or the distance where a lens may see more than half of all directions."""
    if LENS % 4 >= FISHEYE:
        return tl.sqrt(dot3(t, t))
    else:
        return t.z


@triton.jit
def add_depth_vjp(v_t, t, v_depth, v_feature, LENS: tl.constexpr):
    """v_t with the gradients of the depth, as it is sorted and as it is rendered."""
    if LENS % 4 >= FISHEYE:
        return add3(v_t, scale3((v_depth + v_feature) / tl.sqrt(dot3(t, t)), t))
    else:
        return Vec3(v_t.x, v_t.y, v_t.z + v_depth + v_feature)


@triton.jit
def may_reach(lens, t, largest_scale, LENS: tl.constexpr):
    """Whether a Gaussian may reach the image, by its angle: reference/projection.py."""
    rho, R2 = off_axis(t)
    size = largest_scale / tl.sqrt(R2)
    if LENS % 4 == EQUIRECTANGULAR:
        return size < 1.0
    else:
        beyond = atan2(rho, t.z) - lens.edge
        reach = tl.minimum(size * REACH, 1.0) * HALF_PI
        return (beyond <= reach) & (beyond <= (-lens.edge + PI) * MOST_ANGLE)
