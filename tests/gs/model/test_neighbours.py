import pytest
import torch
from torch import Tensor

from gs.model.neighbours import LEAF, mean_squared_neighbor_distances


def brute_force(points: Tensor, k: int = 3) -> Tensor:
    squared = (points[:, None].double() - points[None].double()).square().sum(-1)
    squared.fill_diagonal_(float("inf"))
    return squared.topk(min(k, len(points) - 1), largest=False).values.mean(1)


@pytest.mark.parametrize("n", [2, 3, 4, 5, LEAF, LEAF + 1, 2 * LEAF + 1, 1000, 2500])
@pytest.mark.parametrize("shape", ["ball", "outliers", "plane"])
def test_neighbor_distances_equal_brute_force(n: int, shape: str) -> None:
    points = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
    if shape == "outliers":
        points[: n // 3] *= 100.0
    if shape == "plane":
        points[:, 1] = 2.0
    got, want = mean_squared_neighbor_distances(points), brute_force(points)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-12)


def test_neighbor_distances_do_not_depend_on_the_order() -> None:
    points = torch.randn(700, 3, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(700, generator=torch.Generator().manual_seed(1))
    got = mean_squared_neighbor_distances(points[order])
    torch.testing.assert_close(got, mean_squared_neighbor_distances(points)[order])


def test_neighbor_distances_of_duplicates() -> None:
    points = torch.zeros(10, 3)
    points[8], points[9] = torch.tensor([3.0, 0, 0]), torch.tensor([0, 4.0, 0])
    got = mean_squared_neighbor_distances(points)
    assert got[:8].tolist() == [0.0] * 8
    assert got[8].item() == pytest.approx(9.0)
    assert got[9].item() == pytest.approx(16.0)
    assert mean_squared_neighbor_distances(torch.zeros(300, 3)).tolist() == [0.0] * 300
