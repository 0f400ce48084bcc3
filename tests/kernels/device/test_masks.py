"""Noise of kernels.device.masks: the bits of the reference, whatever the seed's size."""

import pytest
import torch
import triton
import triton.language as tl

from kernels import sample_masks, sampled_in_any
from kernels.device.masks import logistic_noise, split_seed
from kernels.reference.masks import uniform
from kernels.runtime.launch import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit(do_not_specialize=["low", "high"])
def _noise_kernel(ids_ptr, noise_ptr, low, high, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(noise_ptr + i, logistic_noise(low, high, tl.load(ids_ptr + i)))


@pytest.mark.parametrize("seed", [0, 1, 16, 2**31, 2**32 - 1, 2**40 + 12345, 2**64 - 1, -3])
def test_logistic_noise(seed: int) -> None:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(-(2**31), 2**31, (256,), generator=g, dtype=torch.int64)
    ids[:64] = torch.arange(64)
    noise = torch.zeros(256, device=DEVICE)
    launch(_noise_kernel, (1,), ids.int().to(DEVICE), noise, *split_seed(seed), BLOCK=256)
    u = uniform(seed, ids).double().clamp(2.0**-24, 1 - 2.0**-24)
    assert torch.allclose(noise.cpu().double(), u.log() - torch.log1p(-u), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 5, 2**31, 2**32 - 1, 2**63, 2**64 - 1, -1])
def test_split_seed_keeps_64_bits_in_two_int32(seed: int) -> None:
    low, high = split_seed(seed)
    assert -(2**31) <= low < 2**31 and -(2**31) <= high < 2**31
    assert (low & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32 == seed & (2**64 - 1)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("n", [0, 1, 257])
def test_sampled_in_any_draw(columns: int, n: int) -> None:
    g = torch.Generator().manual_seed(n)
    logits = 3 * torch.randn((n, 2) if columns == 2 else (n,), generator=g)
    ids, seeds = torch.randperm(1000, generator=g)[:n].int(), [5, -1, 2**40 + 3]
    logits, ids = logits.to(DEVICE), ids.to(DEVICE)
    want = torch.stack([sample_masks(logits, seed, ids) > 0.5 for seed in seeds]).any(0)
    for backend in ("reference", "triton"):
        assert torch.equal(sampled_in_any(logits, seeds, ids, backend=backend), want)
    assert n < 2 or 0 < want.double().mean() < 1


def test_sampled_in_any_checks_its_arguments() -> None:
    ids = torch.arange(3)
    with pytest.raises(ValueError, match="expected \\[N\\] or \\[N 2\\], and \\[N\\]"):
        sampled_in_any(torch.zeros(3, 3), [1], ids)
    with pytest.raises(ValueError, match="at least one"):
        sampled_in_any(torch.zeros(3), [], ids)
    with pytest.raises(ValueError, match="backend"):
        sampled_in_any(torch.zeros(3), [1], ids, backend="cuda")
