"""The photometric loss with masks: kernels against the reference, which theory checks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import photometric_gradient, photometric_loss, photometric_rows, photometric_values
from kernels.photometric import kernel as ssim
from kernels.photometric.kernel import photometric

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMIT = 1e-4 if DEVICE == "cuda" else 1e-5  # as in test_photometric


@pytest.fixture(autouse=True)
def poisoned(spoil_memory: Callable[[int], None]) -> None:
    spoil_memory(77)


def images(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A rendering with values beyond 0..1, and a target [H, W, 4] that hides a corner and dots."""
    g = torch.Generator().manual_seed(seed)
    colors = torch.rand(height, width, 3, generator=g) * 1.4 - 0.2
    target = torch.randint(0, 256, (height, width, 4), generator=g, dtype=torch.uint8)
    counted = torch.rand(height, width, generator=g) < 0.9
    counted[: height // 2, : width // 3] = False
    target[..., 3] = torch.where(counted, 128 + target[..., 3] // 2, target[..., 3] // 2)
    return colors.to(DEVICE), target.to(DEVICE)


@pytest.mark.parametrize("lambda_dssim", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (18, 16), (33, 14)])
def test_kernels(
    height: int, width: int, lambda_dssim: float, assert_close: Callable[..., None]
) -> None:
    colors, target = images(height, width)
    want, v_want = photometric_gradient(colors.double(), target, lambda_dssim, backend="reference")
    values, v_colors = photometric_gradient(colors, target, lambda_dssim, backend="triton")
    assert (values.double() - want).abs().max() < 3e-6, (values, want)
    assert_close("v_colors", v_colors, v_want, LIMIT)
    assert not v_colors[target[..., 3] < 128].any()
    alone = photometric_values(colors, target, lambda_dssim, backend="triton")
    torch.testing.assert_close(alone, values, rtol=1e-6, atol=0.0)


def test_parts_of_a_band(
    monkeypatch: pytest.MonkeyPatch, assert_close: Callable[..., None]
) -> None:
    colors, target = images(20, 16)
    want, v_want = photometric_gradient(colors.double(), target, backend="reference")
    for programs in (2, 100):
        monkeypatch.setattr(ssim, "_programs_on", lambda *_, n=programs: n)
        values, v_colors, partials = photometric(colors, target, 0.2, True)
        assert (values.double() - want).abs().max() < 3e-6
        assert_close("v_colors", v_colors, v_want, LIMIT)
        assert partials[4].sum().item() == 3 * int((target[..., 3] > 127).sum())


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_what_is_hidden_has_no_influence(backend: str) -> None:
    colors, target = images(30, 21)
    other = target.clone()
    hidden = target[..., 3] < 128
    other[hidden] = torch.randint(0, 128, (int(hidden.sum()), 4), dtype=torch.uint8, device=DEVICE)
    first, second = (photometric_gradient(colors, x, 0.2, backend=backend) for x in (target, other))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_mask_that_hides_nothing_changes_nothing(backend: str) -> None:
    colors, target = images(18, 13)
    target[..., 3] = 255
    got = photometric_gradient(colors, target, 0.2, backend=backend)
    want = photometric_gradient(colors, target[..., :3].contiguous(), 0.2, backend=backend)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_mask_that_hides_all(backend: str) -> None:
    colors, target = images(18, 13)
    target[..., 3] = 0
    values, v_colors = photometric_gradient(colors, target, 0.2, backend=backend)
    torch.testing.assert_close(values.cpu(), torch.tensor([0, 0, 1, 0, 0.0]), atol=1e-6, rtol=0)
    assert not v_colors.any()


def test_gradient_is_that_of_finite_differences() -> None:
    """Where pixels count the loss is differentiable; what is hidden stands still."""
    colors, target = (x.cpu() for x in images(12, 9, seed=3))
    colors, hidden = colors.double(), target[..., 3] < 128
    _, v_colors = photometric_gradient(colors, target, 0.4, backend="reference")
    filled = torch.where(hidden[..., None], colors, target[..., :3].double() / 255.0)
    masked = torch.cat([filled, (~hidden)[..., None].double()], 2)

    def loss(colors: Tensor) -> float:
        return photometric_loss(colors, masked, 0.4, backend="reference").item()

    step = 1e-6
    for y, x in ((11, 8), (6, 4), (5, 4), (0, 8)):
        if hidden[y, x]:
            continue
        for channel in range(3):
            moved = torch.zeros_like(colors)
            moved[y, x, channel] = step
            slope = (loss(colors + moved) - loss(colors - moved)) / (2 * step)
            assert v_colors[y, x, channel].item() == pytest.approx(slope, abs=1e-8)


def test_values_are_over_what_counts() -> None:
    colors, target = (x.cpu() for x in images(25, 17))
    counted = target[..., 3] > 127
    values, _ = photometric_gradient(colors.double(), target, 0.2, backend="reference")
    error = (colors.double().clamp(0, 1) - target[..., :3].double() / 255.0)[counted]
    assert values[3].item() == pytest.approx(error.abs().mean().item(), rel=1e-12)
    assert values[4].item() == pytest.approx(error.square().mean().item(), rel=1e-12)
    difference = (colors.double() - target[..., :3].double() / 255.0)[counted].abs().sum()
    assert values[1].item() == pytest.approx(difference.item() / colors.numel(), rel=1e-12)


def test_bad_arguments_are_named() -> None:
    colors, target = images(16, 9)
    with pytest.raises(ValueError, match="masked target in uint8"):
        photometric_loss(colors, target / 255.0, backend="triton")
    with pytest.raises(ValueError, match="can have no mask"):
        photometric_rows(colors, target, 0.2, first=0, last=16, n_rows=16)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [800, 801, 802])
def test_full_size(width: int, assert_close: Callable[..., None]) -> None:
    colors, target = images(533, width)
    want, v_want = photometric_gradient(colors.double(), target, backend="reference")
    values, v_colors = photometric_gradient(colors, target)
    assert (values.double() - want).abs().max() < 3e-6
    assert_close("v_colors", v_colors, v_want, LIMIT)
