"""Kernel of repeated mask draws: which Gaussians have a mask of 1 in at least one of them."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.masks import load_seed, logistic_noise, split_seed
from ..runtime.launch import launch

BLOCK = 256  # Gaussians per program


@triton.jit(do_not_specialize=["N", "n_seeds"])
def _sampled_in_any_kernel(
    mask_logits_ptr,  # [N] or [N, 2]
    ids_ptr,  # [N]
    seeds_ptr,  # [n_seeds, 2]
    kept_ptr,  # [N] out
    N,
    n_seeds,
    LOGITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    logit = tl.load(mask_logits_ptr + i * LOGITS, mask=inside, other=0.0)
    if LOGITS == 2:
        logit -= tl.load(mask_logits_ptr + i * 2 + 1, mask=inside, other=0.0)
    ids = tl.load(ids_ptr + i, mask=inside, other=0)
    kept = tl.zeros([BLOCK], tl.int32)
    for k in range(n_seeds):
        seed_low, seed_high = load_seed(seeds_ptr + 2 * k, 0, 0)
        noisy = logit + logistic_noise(seed_low, seed_high, ids)
        kept = kept | (noisy > 0.0).to(tl.int32)
    tl.store(kept_ptr + i, kept.to(tl.uint8), mask=inside)


def sampled_in_any(mask_logits: Tensor, seeds: Sequence[int], ids: Tensor) -> Tensor:
    """As kernels/reference/masks.py; one launch in place of a thousand."""
    N, device = len(mask_logits), mask_logits.device
    kept = torch.empty(N, dtype=torch.uint8, device=device)
    words = torch.tensor([split_seed(seed) for seed in seeds], dtype=torch.int32, device=device)
    memory = (mask_logits.detach().contiguous(), ids.to(torch.int32).contiguous(), words, kept)
    grid, sizes, columns = (-(-N // BLOCK),), (N, len(seeds)), mask_logits.dim()
    launch(_sampled_in_any_kernel, grid, *memory, *sizes, LOGITS=columns, BLOCK=BLOCK)
    return kept.view(torch.bool)
