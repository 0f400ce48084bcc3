"""Device functions with one instruction on a GPU and a plain twin for Triton's interpreter."""

import os

import triton
import triton.language as tl

INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


@triton.jit
def ex2(x):
    """2^x; relative error 2^-22, results below the normal range become 0."""
    if INTERPRET:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def rcp(x):
    """1 / x; relative error 2^-23."""
    if INTERPRET:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def step(x, threshold: tl.constexpr):
    """1 where x >= threshold, else 0, for x and a threshold between 2^-60 and 2^20.

    2^100 (x - the float below the threshold), clamped to [0, 1]: one multiply-add.
    """
    if INTERPRET:
        return tl.where(x >= threshold, 1.0, 0.0)
    else:
        bits = tl.full((), threshold, tl.float32).to(tl.int32, bitcast=True)
        below = (bits - 1).to(tl.float32, bitcast=True)
        return tl.inline_asm_elementwise(
            "fma.rn.ftz.sat.f32 $0, $1, $2, $3;",
            "=f,f,f,f",
            [x, 2.0**100, below * -(2.0**100)],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def mul_sat(x, y):
    """x y clamped to [0, 1]; one multiplication."""
    if INTERPRET:
        return tl.minimum(tl.maximum(x * y, 0.0), 1.0)
    else:
        return tl.inline_asm_elementwise(
            "mul.rn.ftz.sat.f32 $0, $1, $2;",
            "=f,f,f",
            [x, y],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def mul_rounded(x, y):
    """x y, rounded also where it is only added: fused, x y - z is not 0 where z is x y rounded."""
    if INTERPRET:
        return x * y
    else:
        return tl.inline_asm_elementwise(
            "mul.rn.f32 $0, $1, $2;", "=f,f,f", [x, y], dtype=tl.float32, is_pure=True, pack=1
        )
