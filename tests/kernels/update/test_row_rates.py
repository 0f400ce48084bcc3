"""kernels.count_row_steps: the kernel beside its reference, and refusals."""

import pytest
import torch

from kernels import count_row_steps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BETAS = (0.9**2, 0.999**2)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 700])
def test_rows_that_are_seen_count_on(n: int, parts: int) -> None:
    g = torch.Generator().manual_seed(n + parts)
    old = torch.randint(0, 20_000, (n,), generator=g, dtype=torch.int32)
    old[: n // 2] %= 3  # where 1 - beta^t is small
    observations = (torch.rand(n, parts, generator=g) < 0.2).float() * 2
    for skip, moves in ((None, 1), (0, 1), (4, 0)):
        word = None if skip is None else torch.tensor([skip], dtype=torch.int32)
        got, want = old.clone().to(DEVICE), old.clone()
        rates = count_row_steps(
            got,
            observations.to(DEVICE),
            betas=BETAS,
            skip=None if word is None else word.to(DEVICE),
            backend="triton",
        )
        expected = count_row_steps(want, observations, betas=BETAS, skip=word, backend="reference")
        seen = (observations > 0).any(1)
        assert torch.equal(got.cpu(), want) and torch.equal(want, old + moves * seen)
        # a rounding to float32
        torch.testing.assert_close(rates.cpu(), expected, rtol=2e-7, atol=0.0)
        gain = torch.where(seen, moves / (1 - BETAS[0] ** want.clamp_min(1).double()), 0.0)
        torch.testing.assert_close(expected[:, 0], gain.float(), rtol=2e-7, atol=0.0)


def test_bad_input_is_named() -> None:
    steps, seen = torch.zeros(4, dtype=torch.int32), torch.zeros(4, 1)
    with pytest.raises(ValueError, match="observations"):
        count_row_steps(steps, seen[:3], betas=BETAS)
    with pytest.raises(ValueError, match="steps: expected contiguous int32"):
        count_row_steps(steps.long(), seen, betas=BETAS)
    with pytest.raises(ValueError, match="skip"):
        count_row_steps(steps, seen, betas=BETAS, skip=torch.zeros(2, dtype=torch.int32))
