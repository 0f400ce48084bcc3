"""Device functions on angles, of arithmetic alone: the same on a GPU and in the interpreter."""

import triton
import triton.language as tl

HALF_PI = tl.constexpr(1.5707963267948966)
PI = tl.constexpr(3.141592653589793)


@triton.jit
def atan_of_ratio(z):
    """atan(x) / x at z = x^2 in [0, 1], error 1.4e-8: a minimax polynomial, fitted by Lawson's
    reweighted least squares."""
    p = 0.00290355511 * z - 0.0162830182
    p = p * z + 0.0430393842
    p = p * z - 0.0753367741
    p = p * z + 0.10654678
    p = p * z - 0.142071338
    p = p * z + 0.199930541
    p = p * z - 0.33333094
    return p * z + 0.999999986


@triton.jit
def atan2(y, x):
    """Angle of (x, y) in (-pi, pi], error 3e-7; 0 where both are 0."""
    ax, ay = tl.abs(x), tl.abs(y)
    ratio = tl.minimum(ax, ay) / tl.maximum(tl.maximum(ax, ay), 1e-37)
    angle = ratio * atan_of_ratio(ratio * ratio)
    angle = tl.where(ay > ax, -angle + HALF_PI, angle)
    angle = tl.where(x < 0.0, -angle + PI, angle)
    return tl.where(y < 0.0, -angle, angle)
