r"""Distortion D of perspective and fisheye lenses on the device: lenses/kinds.py has the equations.

Beyond r0, with n = m r0 / r and s0 the radial slope there, it goes on linearly:

    D(n) + s0 (1 - r0/r) m,     vjp   (r0/r) w + s0 (1 - r0/r) v + (r0/r) (s0 v.e - w.e) e

where w = D'(n)^T v and e = m / r. Terms that a kind of lens lacks are not compiled.
"""

import triton
import triton.language as tl


@triton.jit
def _radial(lens, q, LENS: tl.constexpr):
    """g and its derivative."""
    N_RADIAL: tl.constexpr = (LENS // 4) % 8
    zero = tl.zeros_like(q)
    h, dh = zero, zero
    if N_RADIAL > 3:
        h = zero + lens.a4
    if N_RADIAL > 2:
        dh = dh * q + h
        h = h * q + lens.a3
    if N_RADIAL > 1:
        dh = dh * q + h
        h = h * q + lens.a2
    if N_RADIAL > 0:
        dh = dh * q + h
        h = h * q + lens.a1
    g, dg = 1.0 + q * h, h + q * dh
    if (LENS // 32) % 2 == 1:
        c = (lens.b3 * q + lens.b2) * q + lens.b1
        dc = 2.0 * lens.b3 * q + lens.b2
        inverse = 1.0 / (1.0 + q * c)
        g = g * inverse
        dg = (dg - g * (c + q * dc)) * inverse
    return g, dg


@triton.jit
def _shares(lens, q):
    """r0 / r and r beyond r0, and 1 before it."""
    beyond = q > lens.r0 * lens.r0
    r = tl.sqrt(tl.where(beyond, q, 1.0))
    return tl.where(beyond, lens.r0 / r, 1.0), r, beyond


@triton.jit
def bend(lens, u, v, LENS: tl.constexpr):
    """D(u, v)."""
    share, _, _ = _shares(lens, u * u + v * v)
    along = lens.slope0 * (1.0 - share)
    a, b = share * u, share * v
    q = a * a + b * b
    g, _ = _radial(lens, q, LENS)
    x = a * g + along * u
    y = b * g + along * v
    if (LENS // 64) % 2 == 1:
        x += 2.0 * lens.p1 * a * b + lens.p2 * (q + 2.0 * a * a)
        y += 2.0 * lens.p2 * a * b + lens.p1 * (q + 2.0 * b * b)
    if (LENS // 128) % 2 == 1:
        x += (lens.s1 + lens.s2 * q) * q
        y += (lens.s3 + lens.s4 * q) * q
    return x, y


@triton.jit
def bend_vjp(lens, u, v, v_x, v_y, LENS: tl.constexpr):
    """v_u and v_v."""
    share, r, beyond = _shares(lens, u * u + v * v)
    along = lens.slope0 * (1.0 - share)
    a, b = share * u, share * v
    q = a * a + b * b
    g, dg = _radial(lens, q, LENS)
    # D' = g I + 2 g' m m^T is symmetric; tangential and prism terms are not
    pull = 2.0 * dg * (a * v_x + b * v_y)
    w_u = g * v_x + pull * a
    w_v = g * v_y + pull * b
    if (LENS // 64) % 2 == 1:
        cross = 2.0 * (lens.p1 * a + lens.p2 * b)
        w_u += (2.0 * lens.p1 * b + 6.0 * lens.p2 * a) * v_x + cross * v_y
        w_v += cross * v_x + (2.0 * lens.p2 * a + 6.0 * lens.p1 * b) * v_y
    if (LENS // 128) % 2 == 1:
        both = 2.0 * ((lens.s1 + 2.0 * lens.s2 * q) * v_x + (lens.s3 + 2.0 * lens.s4 * q) * v_y)
        w_u += both * a
        w_v += both * b
    # (r0/r) (s0 v.m - w.m) / r^2, which times m is the part along e
    radial = share * (lens.slope0 * (v_x * u + v_y * v) - (w_u * u + w_v * v)) / (r * r)
    radial = tl.where(beyond, radial, 0.0)
    return share * w_u + along * v_x + radial * u, share * w_v + along * v_y + radial * v
