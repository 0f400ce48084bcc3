r"""Device functions that draw a Gaussian's hard mask from its logit.

    u     = uniform of Philox4x32-10 (counter = id, key = seed), in [2^-24, 1 - 2^-24]
    noise = log(u) - log1p(-u)
    mask  = 1 if logit + noise > 0 else 0
    v_logit = s (1 - s) v_mask with s = sigmoid(logit + noise)

The uniform bits are those of kernels/reference/masks.py. The 64-bit seed arrives as two int32:
an integer argument of Triton changes its type, and so recompiles, with its size. A captured graph
keeps its arguments, so there the two words lie in memory.
"""

import triton
import triton.language as tl

from .. import constants

UNIFORM_MIN = tl.constexpr(constants.UNIFORM_MIN)


@triton.jit
def load_seed(seed_ptr, seed_low, seed_high):
    """The words at seed_ptr [2], or those given where it is None."""
    if seed_ptr is None:
        return seed_low, seed_high
    else:
        return tl.load(seed_ptr), tl.load(seed_ptr + 1)


@triton.jit
def logistic_noise(seed_low, seed_high, ids):
    """Logistic(0, 1) noise of the Gaussians `ids` (int32)."""
    seed = (seed_high.to(tl.int64) << 32) | (seed_low.to(tl.int64) & 0xFFFFFFFF)
    u = tl.rand(seed, ids)
    u = tl.minimum(tl.maximum(u, UNIFORM_MIN), 1.0 - UNIFORM_MIN)
    return tl.log(u) - tl.log(1.0 - u)


@triton.jit
def hard_mask(noisy):
    return tl.where(noisy > 0.0, 1.0, 0.0)


@triton.jit
def hard_mask_vjp(noisy, v_mask):
    """Straight through the threshold, as if the mask were sigmoid(noisy)."""
    s = 1.0 / (1.0 + tl.exp(-tl.abs(noisy)))
    return s * (1.0 - s) * v_mask


def split_seed(seed: int) -> tuple[int, int]:
    """The low and high 32 bits of a seed, each as a signed number."""
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    return low - ((low >> 31) << 32), high - ((high >> 31) << 32)
