r"""Hard masks drawn from logits with counter-based noise.

    bits  = Philox4x32-10(counter = id, key = seed)     Salmon et al. 2011, first word
    u     = uniform(bits) in [2^-24, 1 - 2^-24]
    noise = log(u) - log1p(-u)                          Logistic(0, 1)
    mask  = 1 if logit + noise > 0 else 0               so P(mask = 1) = sigmoid(logit)

The gradient is that of s = sigmoid(logit + noise), straight through the threshold. The bits are
those of `triton.language.rand(seed, id)`, on every device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..constants import UNIFORM_MIN

WORD = 0xFFFFFFFF
PHILOX_KEYS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = (0xD2511F53, 0xCD9E8D57)


def _high_word(a: int, b: Tensor) -> Tensor:
    """Upper 32 bits of a 32 x 32 bit product; int64 would overflow, so b goes in two halves."""
    return (a * (b >> 16) + ((a * (b & 0xFFFF)) >> 16)) >> 16


def philox4(seed: int, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 32-bit words of Philox4x32-10 as int64 [N], for a key of 64 bits and 32-bit ids [N]."""
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    c0 = ids.to(torch.int64) & WORD
    c1 = c2 = c3 = torch.zeros_like(c0)
    for _ in range(10):
        high_a, low_a = _high_word(PHILOX_ROUNDS[0], c0), (PHILOX_ROUNDS[0] * c0) & WORD
        high_b, low_b = _high_word(PHILOX_ROUNDS[1], c2), (PHILOX_ROUNDS[1] * c2) & WORD
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + PHILOX_KEYS[0]) & WORD, (k1 + PHILOX_KEYS[1]) & WORD
    return c0, c1, c2, c3


def philox(seed: int, ids: Tensor) -> Tensor:
    """The first word alone, a whole number below 2^32."""
    return philox4(seed, ids)[0]


def to_uniform(bits: Tensor) -> Tensor:
    """Words [N] as float32 in [0, 1), as Triton makes them."""
    signed = torch.where(bits >= 2**31, bits - 2**32, bits)
    return torch.where(signed < 0, -signed - 1, signed).to(torch.float32) * 4.6566127342e-10


def uniform(seed: int, ids: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) as float32 [N], bit for bit those of `tl.rand(seed, ids)`."""
    return to_uniform(philox(seed, ids))


def logistic_noise(seed: int, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logistic(0, 1) noise [N] of the Gaussians `ids` [N]; within +-16.64, so always finite."""
    u = uniform(seed, ids).to(dtype).clamp(UNIFORM_MIN, 1 - UNIFORM_MIN)
    return torch.log(u) - torch.log1p(-u)


def sample_masks(
    mask_logits: Tensor,  # [N] or [N, 2] (keep, drop)
    seed: int,
    ids: Tensor | None = None,  # [N] int32
) -> Tensor:
    """Masks [N] in {0, 1} with the straight-through gradient s(1 - s) to the logits."""
    logits = mask_logits
    if logits.dim() == 2:
        logits = logits[:, 0] - logits[:, 1]
    if ids is None:
        ids = torch.arange(logits.shape[0], device=logits.device)
    noisy = logits + logistic_noise(seed, ids, logits.dtype)
    soft = torch.sigmoid(noisy)
    # The difference is exactly 0, so that a mask is exactly 0 or 1.
    return (noisy > 0).to(logits.dtype) + (soft - soft.detach())


def sampled_in_any(
    mask_logits: Tensor,  # [N] or [N, 2] (keep, drop)
    seeds: Sequence[int],
    ids: Tensor,  # [N] int32
) -> Tensor:  # [N] bool
    """Which Gaussians have a mask of 1 in at least one draw of `sample_masks`."""
    kept = torch.zeros(len(mask_logits), dtype=torch.bool, device=mask_logits.device)
    for seed in seeds:
        kept |= sample_masks(mask_logits.detach(), seed, ids) > 0.5
    return kept
