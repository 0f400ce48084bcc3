r"""Steps of Adam that every row has taken, counted on, and what their rates are multiplied by.

    steps[n] += seen[n]        rates[n] = 1 / (1 - beta1^t), sqrt(1 - beta2^t),   t = steps[n]

where seen, and 0, 0 elsewhere; row n is seen where one of its parts is observed. Powers are taken
in float64 as torch takes them: 1 - beta2^t keeps three digits less than beta2^t has.

    steps [N] int32    observations [N, parts] float32    rates [N, 2] float32

Where `skip` is not 0, no row is seen.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.launch import empty, launch

BLOCK = 512  # rows per program


@triton.jit
def _power(high, low, t):
    """beta^t in float64, from the two float32 halves of log(beta)."""
    t = t.to(tl.float64)
    return tl.exp(t * high + t * low)


@triton.jit(do_not_specialize=["N", "parts"])
def _row_rates_kernel(
    steps_ptr,  # [N] in and out
    observations_ptr,  # [N, parts]
    skip_ptr,  # [1] or None
    rates_ptr,  # [N, 2] out
    N,
    parts,
    high1,
    low1,
    high2,
    low2,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    count = tl.zeros([BLOCK], tl.float32)
    for k in range(parts):
        count += tl.load(observations_ptr + n * parts + k, mask=inside, other=0.0)
    seen = count > 0.0
    if skip_ptr is not None:
        seen = seen & (tl.load(skip_ptr) == 0)
    t = tl.load(steps_ptr + n, mask=inside, other=0) + seen.to(tl.int32)
    tl.store(steps_ptr + n, t, mask=inside)
    t = tl.maximum(t, 1)
    gain = (1.0 / (1.0 - _power(high1, low1, t))).to(tl.float32)
    root = tl.sqrt(1.0 - _power(high2, low2, t)).to(tl.float32)
    both = tl.join(tl.where(seen, gain, 0.0), tl.where(seen, root, 0.0))
    at = n[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(rates_ptr + at, both, mask=inside[:, None])


def _halves(x: float) -> tuple[float, float]:
    """x as the sum of two float32."""
    high = float(torch.tensor(x, dtype=torch.float32))
    return high, x - high


def count_row_steps(
    steps: Tensor, observations: Tensor, betas: tuple[float, float], skip: Tensor | None
) -> Tensor:
    N = len(steps)
    rates = empty((N, 2), torch.float32, steps.device)
    logs = [half for beta in betas for half in _halves(math.log(beta))]
    numbers = (N, observations.shape[1], *logs)
    memory = (steps, observations, skip, rates)
    launch(_row_rates_kernel, (-(-N // BLOCK),), *memory, *numbers, BLOCK=BLOCK)
    return rates
