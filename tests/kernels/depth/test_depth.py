"""The loss of rendered depths: figures, finite differences, the kernel by the reference."""

import pytest
import torch
from torch import Tensor

from kernels import SparseDepths, depth_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("triton", "reference")
H, W = 9, 13


def known(dtype: torch.dtype = torch.float32, counts: tuple[int, ...] = (7, 0, 1, 60)):
    """Depths of four images."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.cat([torch.randperm(H * W, generator=g)[:n] for n in counts]).int()
    disparities = 0.1 + torch.rand(sum(counts), generator=g)
    offsets = torch.tensor([0, *counts]).cumsum(0).int()
    parts = offsets.to(DEVICE), pixels.to(DEVICE), disparities.to(DEVICE, dtype)
    return SparseDepths(*parts, max(counts))


def images(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:  # [4, H, W] twice
    g = torch.Generator().manual_seed(1)
    alphas = torch.rand(4, H, W, generator=g)
    depths = alphas * (0.5 + 5.0 * torch.rand(4, H, W, generator=g))
    depths[:, ::4], alphas[:, ::4] = 0.0, 0.0  # where nothing is rendered
    return depths.to(DEVICE, dtype), alphas.to(DEVICE, dtype)


def found(
    rows: tuple[int, ...], dtype: torch.dtype = torch.float32, backend: str = "reference"
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of cameras that are these images, and its gradients."""
    depths, alphas = (x[: len(rows)].requires_grad_() for x in images(dtype))
    where = torch.tensor(rows, dtype=torch.int32, device=DEVICE)
    weight = torch.tensor([0.7], dtype=dtype, device=DEVICE)
    loss = depth_loss(depths, alphas, where, known(dtype), weight, backend=backend)
    (2.0 * loss).backward()
    assert depths.grad is not None and alphas.grad is not None
    return loss.detach(), depths.grad, alphas.grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_and_gradient_of_known_figures(backend: str) -> None:
    expected = torch.tensor([[[2.0, 4.0, 0.0, 5.0]]], device=DEVICE)
    alphas = torch.tensor([[[0.5, 0.8, 0.0, 1.0]]], device=DEVICE)
    depths = (expected * alphas).requires_grad_()
    disparities = 1.0 / torch.tensor([2.5, 3.0, 1.0, 5.0], device=DEVICE)
    integers = [torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in ([0, 4], range(4), [0])]
    points = SparseDepths(integers[0], integers[1], disparities, 4)
    weight = torch.tensor([3.0], device=DEVICE)
    loss = depth_loss(depths, alphas, integers[2], points, weight, backend=backend)
    assert loss.item() == pytest.approx(0.8875, rel=1e-6)
    loss.backward()
    assert depths.grad is not None
    by_expected = (depths.grad * alphas).flatten().tolist()  # D = depth / alpha
    assert by_expected == pytest.approx([-0.1875, 0.046875, 0.0, 0.0], rel=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    depths, alphas = images(torch.float64)
    rows = torch.tensor([3, 0], dtype=torch.int32, device=DEVICE)
    points, weight = known(torch.float64), torch.tensor([0.7], dtype=torch.float64, device=DEVICE)
    depths, alphas = (x[:2].clamp_min(0.05).requires_grad_() for x in (depths, alphas))
    run = lambda d, a: depth_loss(d, a, rows, points, weight)  # noqa: E731
    assert torch.autograd.gradcheck(run, (depths, alphas), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("rows", [(0,), (3, 0), (2, 1, 3), (1,), (-1, 4), (3, 3, 3, 3)])
def test_kernel_is_the_reference(rows: tuple[int, ...]) -> None:
    got, want = found(rows, backend="triton"), found(rows)
    exact = found(rows, torch.float64)
    for a, b, c in zip(got, want, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(a, c.float(), rtol=1e-5, atol=1e-6)
    has_any = any(row in (0, 2, 3) for row in rows)
    assert bool(got[0] > 0) == bool(got[1].abs().max() > 0) == has_any


def test_empty_memory_is_written(spoil_memory, interpreted: None) -> None:
    want = found((3, 1, 0), backend="triton")
    spoil_memory(7)
    for a, b in zip(found((3, 1, 0), backend="triton"), want, strict=True):
        assert torch.equal(a, b)


def test_arguments_are_checked() -> None:
    depths, alphas = images()
    rows = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    weight = torch.ones(1, device=DEVICE)
    with pytest.raises(ValueError, match="rows: expected int32"):
        depth_loss(depths, alphas, rows.long(), known(), weight)
    with pytest.raises(ValueError, match="alphas: expected"):
        depth_loss(depths, alphas[:2], rows, known(), weight)
    with pytest.raises(ValueError, match="disparities: expected"):
        depth_loss(depths, alphas, rows, known(torch.float64), weight)
