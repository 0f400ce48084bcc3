"""Distance of a point from the optical axis, kept away from zero."""

import triton
import triton.language as tl

from ...device.linalg import dot3
from ...lenses.mapping import AXIS as AXIS_SHARE

AXIS = tl.constexpr(AXIS_SHARE)


@triton.jit
def off_axis(t):
    """rho and |t|^2."""
    R2 = dot3(t, t)
    rho2 = t.x * t.x + t.y * t.y
    return tl.sqrt(tl.maximum(rho2, R2 * (AXIS * AXIS) + 1e-30)), R2
