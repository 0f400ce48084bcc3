import pytest
import torch
from torch import Tensor

from gs.model.morton import morton_order


def place(cell: list[int]) -> int:
    """The three numbers' bits in turn, x lowest."""
    return sum(
        ((c >> bit) & 1) << (3 * bit + axis) for axis, c in enumerate(cell) for bit in range(10)
    )


def brute_force(means: Tensor) -> list[int]:
    n = len(means)
    ordered = means.double().sort(0).values
    low, high = ordered[int(0.01 * (n - 1))], ordered[n - 1 - int(0.01 * (n - 1))]
    places = []
    for row in means.double():
        share = ((row - low) / (high - low)).tolist()
        places.append(place([min(max(int(1024 * s), 0), 1023) for s in share]))
    return sorted(range(n), key=lambda i: (places[i], i))


@pytest.mark.parametrize("n", [2, 3, 150, 1000])
def test_order_is_that_of_interleaved_bits(n: int) -> None:
    # Powers of two and dyadic points: cells are exact in float32 as in float64.
    g = torch.Generator().manual_seed(n)
    means = torch.randint(-512, 512, (n, 3), generator=g) / 64.0 * torch.tensor([1.0, 4.0, 0.25])
    spread = torch.tensor([1.0, 4.0, 0.25]) * 8.0
    tails = int(0.01 * (n - 1)) + 1
    means[:tails], means[-tails:] = -spread, spread  # the box is then 1024 cells of 1 / 64
    assert morton_order(means).tolist() == brute_force(means)
    assert morton_order(means).dtype == torch.int64


def test_outliers_do_not_take_the_cells() -> None:
    g = torch.Generator().manual_seed(0)
    means = torch.rand(2000, 3, generator=g)
    means[:10] = 1e6 * torch.randn(10, 3, generator=g)
    inner = morton_order(means)
    inner = inner[inner >= 10]
    steps = (means[inner][1:] - means[inner][:-1]).norm(dim=-1)
    rows = (means[10:][1:] - means[10:][:-1]).norm(dim=-1)
    assert steps.mean() < 0.25 * rows.mean()


def test_few_equal_and_broken_points() -> None:
    assert morton_order(torch.zeros(0, 3)).tolist() == []
    assert morton_order(torch.ones(1, 3)).tolist() == [0]
    assert morton_order(torch.ones(5, 3)).tolist() == [0, 1, 2, 3, 4]
    means = torch.rand(300, 3, generator=torch.Generator().manual_seed(0))
    means[7, 0], means[8, 1] = float("nan"), float("inf")
    assert sorted(morton_order(means).tolist()) == list(range(300))
