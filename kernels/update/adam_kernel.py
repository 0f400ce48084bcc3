"""Kernel of Adam: see adam.py for the equations.

Every element moves 28 bytes and needs few instructions, so all that matters is that memory is read
16 bytes per lane. A program owns BLOCK elements of one parameter, which it finds by comparing its
number with where the parameters end.

Where a step is by row, a program first looks at the factors of its rows, and ends if all are 0. Of
the others a lane moves four neighbours if one of them has a factor, and writes back what the rest
were. Rows that images see lie in runs, so little is moved in vain.
"""

import triton
import triton.language as tl

PARAMS = 7  # of one launch: as many as a model of Gaussians has
BLOCK = 1024  # elements per program


@triton.jit
def _pick(k, x0, x1, x2, x3, x4, x5, x6):
    """The k-th of seven scalars or pointers."""
    x = tl.where(k == 1, x1, x0)
    x = tl.where(k == 2, x2, x)
    x = tl.where(k == 3, x3, x)
    x = tl.where(k == 4, x4, x)
    x = tl.where(k == 5, x5, x)
    return tl.where(k == 6, x6, x)


@triton.jit
def _update(p, g, m, v, rates, weights):
    """Parameter and moments after a step."""
    step_size, root_bias = rates
    weight1, beta2, weight2, eps = weights
    m = tl.fma(weight1, g - m, m)
    v = tl.fma(weight2, g * g, beta2 * v)
    change = tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), root_bias) + eps)
    return tl.fma(-step_size, change, p), m, v


@triton.jit
def _step_all(at, n_valid, rates, weights, FULL: tl.constexpr, BLOCK: tl.constexpr):
    """Update the first n_valid elements at four pointers."""
    p_ptr, g_ptr, m_ptr, v_ptr = at
    i = tl.arange(0, BLOCK)
    mask = None if FULL else i < n_valid
    p = tl.load(p_ptr + i, mask=mask)
    g = tl.load(g_ptr + i, mask=mask)
    m = tl.load(m_ptr + i, mask=mask)
    v = tl.load(v_ptr + i, mask=mask)
    p, m, v = _update(p, g, m, v, rates, weights)
    tl.store(p_ptr + i, p, mask=mask)
    tl.store(m_ptr + i, m, mask=mask)
    tl.store(v_ptr + i, v, mask=mask)


@triton.jit
def _step_rows(at, first, n_valid, rates, weights, FULL: tl.constexpr, BLOCK: tl.constexpr):
    """Update those whose rows have a factor; the first is element `first[1]` of its row."""
    p_ptr, g_ptr, m_ptr, v_ptr = at
    rows_ptr, before, width = first
    k = tl.arange(0, BLOCK)
    factors = tl.load(rows_ptr + 2 * k, mask=k * width < before + n_valid, other=0.0)
    if tl.max(factors, 0) > 0.0:
        i = tl.arange(0, BLOCK // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
        row = (before + i) // width
        gain = tl.load(rows_ptr + 2 * row, mask=i < n_valid, other=0.0)
        seen = gain > 0.0
        # the same for four neighbours, so that they move together
        some = tl.max(gain, 1)[:, None] > 0.0
        mask = some + tl.zeros([1, 4], tl.int1) if FULL else some & (i < n_valid)
        root = tl.load(rows_ptr + 2 * row + 1, mask=seen, other=1.0)
        # ones where nothing is read: exact divisions of zeros take ten times as long
        old_p = tl.load(p_ptr + i, mask=mask, other=1.0)
        old_m = tl.load(m_ptr + i, mask=mask, other=1.0)
        old_v = tl.load(v_ptr + i, mask=mask, other=1.0)
        g = tl.load(g_ptr + i, mask=mask, other=1.0)
        own = rates[0] * gain, rates[1] * root
        p, m, v = _update(old_p, g, old_m, old_v, own, weights)
        tl.store(p_ptr + i, tl.where(seen, p, old_p), mask=mask)
        tl.store(m_ptr + i, tl.where(seen, m, old_m), mask=mask)
        tl.store(v_ptr + i, tl.where(seen, v, old_v), mask=mask)


@triton.jit
def _step(
    at, rows_ptr, width, base, n_valid, rates, weights, FULL: tl.constexpr, BLOCK: tl.constexpr
):
    if rows_ptr is None:
        _step_all(at, n_valid, rates, weights, FULL, BLOCK)
    elif width == 0:
        _step_all(at, n_valid, rates, weights, FULL, BLOCK)
    else:
        row = base // width  # 64 bits once, 32 per element
        first = rows_ptr + 2 * row, (base - row * width).to(tl.int32), width
        _step_rows(at, first, n_valid, rates, weights, FULL, BLOCK)


_INTEGERS = [f"{name}{k}" for name in ("end", "tail", "width") for k in range(PARAMS)]
_INTEGERS += ["first_rate"]


@triton.jit(do_not_specialize=_INTEGERS)
def adam_kernel(
    # of every parameter: values (in and out), gradients, moments (in and out)
    p0, p1, p2, p3, p4, p5, p6,
    g0, g1, g2, g3, g4, g5, g6,
    m0, m1, m2, m3, m4, m5, m6,
    v0, v1, v2, v3, v4, v5, v6,
    rates_ptr,  # [P, 2]
    rows_ptr,  # [N, 2] or None
    skip_ptr,  # [1] or None
    # the program after its last one, elements of that one
    end0, end1, end2, end3, end4, end5, end6,
    tail0, tail1, tail2, tail3, tail4, tail5, tail6,
    # elements per row where the step is by row, else 0
    width0, width1, width2, width3, width4, width5, width6,
    first_rate, weight1, beta2, weight2, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    k = (pid >= end0).to(tl.int32) + (pid >= end1).to(tl.int32) + (pid >= end2).to(tl.int32)
    k += (pid >= end3).to(tl.int32) + (pid >= end4).to(tl.int32) + (pid >= end5).to(tl.int32)
    start = tl.where(k == 0, 0, _pick(k, end0, end0, end1, end2, end3, end4, end5))
    end = _pick(k, end0, end1, end2, end3, end4, end5, end6)
    n_valid = tl.where(
        pid == end - 1, _pick(k, tail0, tail1, tail2, tail3, tail4, tail5, tail6), BLOCK
    )
    base = (pid - start).to(tl.int64) * BLOCK
    at = (
        _pick(k, p0, p1, p2, p3, p4, p5, p6) + base,
        _pick(k, g0, g1, g2, g3, g4, g5, g6) + base,
        _pick(k, m0, m1, m2, m3, m4, m5, m6) + base,
        _pick(k, v0, v1, v2, v3, v4, v5, v6) + base,
    )
    rate_ptr = rates_ptr + (first_rate + k) * 2
    rates = tl.load(rate_ptr), tl.load(rate_ptr + 1)
    weights = weight1, beta2, weight2, eps
    width = _pick(k, width0, width1, width2, width3, width4, width5, width6)
    if skip_ptr is not None:
        n_valid = tl.where(tl.load(skip_ptr) == 0, n_valid, 0)
    if n_valid == BLOCK:
        _step(at, rows_ptr, width, base, n_valid, rates, weights, True, BLOCK)
    elif n_valid > 0:
        _step(at, rows_ptr, width, base, n_valid, rates, weights, False, BLOCK)
