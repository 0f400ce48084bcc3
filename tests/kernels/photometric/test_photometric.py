"""The photometric kernels against the reference in float64."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kernels import (
    photometric_gradient,
    photometric_loss,
    photometric_rows,
    photometric_values,
    structural_similarity,
)
from kernels.photometric import REACH
from kernels.photometric import kernel as ssim
from kernels.photometric.kernel import photometric

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Tensor cores add by cutting digits off.
LIMIT = 1e-4 if DEVICE == "cuda" else 1e-5
# one pixel, less than the window, the window, one band of rows, more; widths by what divides them
SHAPES = [(1, 1), (7, 5), (11, 11), (16, 16), (33, 14)]


@pytest.fixture(autouse=True)
def poisoned(spoil_memory: Callable[[int], None]) -> None:
    spoil_memory(77)


def images(height: int, width: int, seed: int = 0, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """A rendering with values beyond 0..1, and the uint8 image that it is to become."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.arange(height)[:, None, None], torch.arange(width)[None, :, None]
    smooth = 0.5 + 0.3 * torch.sin(x / 9 + torch.arange(3)) * torch.cos(y / 7)
    target = (smooth + 0.1 * torch.randn(height, width, 3, generator=g)).clamp(0, 1)
    colors = target + noise * torch.randn(height, width, 3, generator=g)
    return colors.to(DEVICE), (255 * target).round().to(torch.uint8).to(DEVICE)


def check(
    colors: Tensor,
    target: Tensor,
    lambda_dssim: float,
    assert_close: Callable[..., None],
    limit: float = LIMIT,
) -> None:
    exact = target if target.dtype == torch.uint8 else target.double()
    want, v_want = photometric_gradient(colors.double(), exact, lambda_dssim, backend="reference")
    values, v_colors, _ = photometric(colors, target, lambda_dssim, True)
    assert (values.double() - want).abs().max() < 3e-6, (values, want)
    assert v_colors is not None
    # where both images agree to the last bits of float32, rounding decides the sign in L1
    truth = exact.double() / 255.0 if exact.dtype == torch.uint8 else exact
    clear = ((colors.double() - truth).abs() > 1e-7) | (colors.double() == truth)
    assert clear.double().mean() > 0.999
    assert_close("v_colors", v_colors * clear, v_want * clear, limit)
    alone, nothing, _ = photometric(colors, target, lambda_dssim, False)
    # two compilations of one kernel: other multiply-adds may be fused, which moves a last bit
    bits = 0.0 if DEVICE == "cpu" else 1e-6
    torch.testing.assert_close(alone, values, rtol=bits, atol=0.0)
    assert nothing is None


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_sizes(height: int, width: int, assert_close: Callable[..., None]) -> None:
    check(*images(height, width), 0.2, assert_close)


def test_parts_of_a_band(
    monkeypatch: pytest.MonkeyPatch, assert_close: Callable[..., None]
) -> None:
    """More programs than bands of rows, of one block of columns and of two."""
    colors, target = images(9, 16)
    for programs in (2, 100):
        monkeypatch.setattr(ssim, "_programs_on", lambda *_, n=programs: n)
        check(colors, target, 0.2, assert_close)


@pytest.mark.parametrize("lambda_dssim", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("floats", [False, True])
def test_targets_and_shares(
    lambda_dssim: float, floats: bool, assert_close: Callable[..., None]
) -> None:
    colors, target = images(18, 9, seed=1)
    check(colors, target / 255.0 if floats else target, lambda_dssim, assert_close)


@pytest.mark.parametrize("noise", [1e-2, 1e-3])
def test_nearly_equal_images(noise: float, assert_close: Callable[..., None]) -> None:
    """Bright, flat and close: the variances are small differences of large numbers."""
    g = torch.Generator().manual_seed(2)
    target = (0.9 + 0.05 * torch.rand(17, 1, 3, generator=g)).expand(17, 14, 3).contiguous()
    colors = target + noise * torch.randn(17, 14, 3, generator=g)
    # ten times the limit: this is the SSIM of a perfect model, where its gradient nearly vanishes
    check(colors.to(DEVICE), target.to(DEVICE), 1.0, assert_close, limit=10 * LIMIT)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_constant_images(level: float, assert_close: Callable[..., None]) -> None:
    """The worst for SSIM: a large difference and no variance, where 1e-7 beside 2 C2 counts."""
    colors = torch.full((17, 14, 3), level, device=DEVICE)
    check(colors, torch.full_like(colors, 0.6), 0.2, assert_close, limit=10 * LIMIT)


def test_flat_colors(assert_close: Callable[..., None]) -> None:
    """The mean that is taken off is that of all channels."""
    target = torch.tensor([0.9, 0.5, 0.1], device=DEVICE).expand(17, 14, 3).contiguous()
    check(target + 0.05, target, 0.2, assert_close, limit=10 * LIMIT)


def test_equal_images() -> None:
    _, target = images(17, 14)
    # divided on the CPU: on a GPU torch multiplies by 1 / 255, which rounds differently
    colors = (target.cpu() / 255.0).to(DEVICE)
    values, v_colors = photometric_gradient(colors, target, backend="triton")
    torch.testing.assert_close(values.cpu(), torch.tensor([0, 0, 1, 0, 0.0]), atol=1e-6, rtol=0)
    # of L1 alone an element is 0.8 / n, were its sign not 0
    assert v_colors.abs().max() * v_colors.numel() < 1e-3


def test_nan_is_not_silent() -> None:
    colors, target = images(14, 14)
    for lambda_dssim in (0.0, 0.2, 1.0):
        spoiled = colors.clone()
        spoiled[13, 12, 1] = float("nan")
        values, v_colors = photometric_gradient(spoiled, target, lambda_dssim, backend="triton")
        assert values.isnan().all()
        assert v_colors[13, 12, 1].isnan()


def test_huge_colors_stay_finite() -> None:
    """SSIM is cut, L1 is not."""
    colors, target = images(17, 14)
    colors[:, 8:], colors[6, 4] = 3e4, -3e4
    values, v_colors = photometric_gradient(colors, target, backend="triton")
    assert torch.isfinite(values).all() and torch.isfinite(v_colors).all()
    l1 = (colors.double() - target / 255.0).abs().mean().item()
    assert values[1].item() == pytest.approx(l1, rel=1e-6)


def test_results_repeat_bit_for_bit() -> None:
    colors, target = images(12, 12)
    first = photometric_gradient(colors, target, backend="triton")
    for _ in range(2):
        again = photometric_gradient(colors, target, backend="triton")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_photometric_loss() -> None:
    colors, target = images(9, 12)
    values, v_colors = photometric_gradient(colors, target, 0.3, backend="triton")
    leaf = colors.clone().requires_grad_()
    loss = photometric_loss(leaf, target, 0.3, backend="triton")
    (2.5 * loss).backward()
    assert loss.shape == () and loss.item() == values[0].item()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, 2.5 * v_colors)
    with torch.no_grad():
        assert photometric_loss(leaf, target, 0.3, backend="triton").item() == values[0].item()
    assert torch.equal(photometric_values(leaf, target, 0.3, backend="triton"), values)


def test_reference_agrees_with_itself() -> None:
    """Its gradient without autograd, and every value by its definition."""
    colors, target = (x.cpu() for x in images(15, 14))
    colors, exact = colors.double(), target.double() / 255.0
    leaf = colors.clone().requires_grad_()
    loss = photometric_loss(leaf, target, 0.3, backend="reference")
    loss.backward()
    values, v_colors = photometric_gradient(colors, target, 0.3, backend="reference")
    assert leaf.grad is not None and not values.requires_grad
    torch.testing.assert_close(v_colors, leaf.grad, atol=0, rtol=1e-12)
    error, clamped = (colors - exact).abs(), colors.clamp(0, 1) - exact
    want = [
        loss.detach(),
        error.mean(),
        structural_similarity(colors, exact),
        clamped.abs().mean(),
        clamped.square().mean(),
    ]
    torch.testing.assert_close(values, torch.stack(want), atol=0, rtol=1e-12)
    assert torch.equal(values, photometric_values(colors, target, 0.3, backend="reference"))


def test_strided_images() -> None:
    colors, target = images(12, 9)
    got = photometric_gradient(colors.transpose(0, 1), target.transpose(0, 1), backend="triton")
    want = photometric_gradient(
        colors.transpose(0, 1).contiguous(), target.transpose(0, 1).contiguous(), backend="triton"
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_bad_arguments_are_named() -> None:
    colors, target = images(12, 12)
    for wrong, message in [
        (lambda: photometric_loss(colors, target[:11]), r"\[12, 12, 3\] and \[11, 12, 3\]"),
        (lambda: photometric_loss(colors[..., :1], target[..., :1]), r"\[H W 3\]"),
        (lambda: photometric_loss(colors[:0], target[:0]), "at least one pixel"),
        (lambda: photometric_loss(colors.half(), target), "colors: expected float32 or float64"),
        (lambda: photometric_loss(colors, target.int()), "target: expected uint8 or torch.float32"),
        (lambda: photometric_loss(colors, target, backend="cuda"), "backend: expected"),
        (lambda: photometric_loss(colors.double(), target, backend="triton"), "expected float32"),
        (
            lambda: photometric_loss(colors, colors.clone().requires_grad_(), backend="triton"),
            "target can have no gradient",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


@pytest.mark.gpu
@pytest.mark.parametrize("width", [800, 801, 802])
def test_full_size(width: int, assert_close: Callable[..., None]) -> None:
    for noise in (0.3, 0.02):
        check(*images(533, width, noise=noise), 0.2, assert_close)


@pytest.mark.gpu
def test_in_a_graph() -> None:
    colors, target = images(133, 200)
    photometric_gradient(colors, target)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = photometric_gradient(colors, target)
    for seed in range(3):
        other = images(133, 200, seed)
        colors.copy_(other[0])
        target.copy_(other[1])
        graph.replay()
        want = photometric_gradient(*other)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.gpu
def test_structural_similarity_takes_the_kernel() -> None:
    colors, target = images(133, 97)
    a, b = colors, target / 255.0
    want = structural_similarity(a.double(), b.double()).item()
    assert structural_similarity(a, b).item() == pytest.approx(want, abs=1e-6)
    assert structural_similarity(a, b).item() == photometric_values(a, b)[2].item()


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_bands_are_parts_of_the_image(backend: str, assert_close: Callable[..., None]) -> None:
    height, width, cuts = 75, 9, (0, 16, 48, 75)
    colors, target = images(height, width)
    exact = backend == "reference"
    colors = colors.double() if exact else colors
    want, v_want = photometric_gradient(colors, target, 0.2, backend=backend)
    total, v_total = torch.zeros_like(want), torch.zeros_like(v_want)
    for first, last in pairwise(cuts):
        low, high = max(first - REACH - 6, 0), min(last + REACH, height)
        window = slice(low, high)
        values, v_colors = photometric_rows(
            colors[window],
            target[window],
            0.2,
            first=first - low,
            last=last - low,
            n_rows=height,
            backend=backend,
        )
        assert not v_colors[: first - low].any() and not v_colors[last - low :].any()
        total += values
        v_total[window] += v_colors
    assert (total - want).abs().max() < (1e-14 if exact else 3e-6)
    # fp16 products round by what stands around them
    assert_close("v_colors", v_total, v_want, 1e-12 if exact else 1e-4)


def test_bands_begin_at_multiples() -> None:
    colors, target = images(40, 9)
    for first, last in ((8, 40), (0, 24), (16, 16), (16, 48)):
        with pytest.raises(ValueError, match="expected a band"):
            photometric_rows(colors, target, 0.2, first=first, last=last, n_rows=40)
