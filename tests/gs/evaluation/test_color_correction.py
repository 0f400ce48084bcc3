"""Colours fitted to the truth: what is undone exactly, what noise gains, what is not looked at."""

import math

import pytest
import torch
from torch import Tensor

from gs.evaluation.color_correction import correct_colors, half_of
from gs.evaluation.views import psnr


def image(seed: int = 0, size: tuple[int, int] = (60, 81)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.2 + 0.5 * torch.rand(*size, 3, generator=generator, dtype=torch.float64)


def test_an_affine_distortion_is_undone() -> None:
    shown = image()
    mix = torch.tensor([[0.8, 0.1, 0.0], [0.05, 0.7, 0.1], [0.0, 0.2, 0.6]], dtype=torch.float64)
    truth = shown @ mix.T + torch.tensor([0.05, 0.1, 0.02], dtype=torch.float64)
    assert float((correct_colors(shown, truth) - truth).abs().max()) < 1e-12
    assert float((correct_colors(shown, shown) - shown).abs().max()) < 1e-12


def test_a_quadratic_distortion_is_undone() -> None:
    shown = image()
    r, g, b = shown.unbind(-1)
    truth = torch.stack([0.1 + 0.6 * r * g, 0.2 + 0.5 * b * b + 0.1 * r, 0.9 - 0.5 * r * b], -1)
    assert float((correct_colors(shown, truth) - truth).abs().max()) < 1e-12


def test_grey_images_have_a_fit() -> None:
    shown = image()[..., :1].expand(-1, -1, 3)
    truth = 0.1 + 0.7 * shown
    assert float((correct_colors(shown, truth) - truth).abs().max()) < 1e-10


def test_noise_gains_little() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = image(size=(400, 300))
    noise = torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    shown = (truth + 0.05 * noise).clamp(0, 1)
    before, after = float(psnr(shown, truth)), float(psnr(correct_colors(shown, truth), truth))
    assert before == pytest.approx(26.02, abs=0.05)
    # a fit can only shrink towards the mean; 0.25 / 12 is the truth's variance
    assert after - before == pytest.approx(10 * math.log10(1 + 0.05**2 / (0.25 / 12)), abs=0.02)


def test_clipped_pixels_have_no_say() -> None:
    shown = image()
    truth = 0.9 * shown + 0.05
    damaged, spoilt = shown.clone(), truth.clone()
    damaged[:10], spoilt[10:20] = 1.0, 0.0
    got = correct_colors(damaged, spoilt)
    assert float((got[20:] - truth[20:]).abs().max()) < 1e-12
    assert float((got[10:20] - truth[10:20]).abs().max()) < 1e-12
    nothing = correct_colors(torch.ones(4, 4, 3), torch.zeros(4, 4, 3))
    assert torch.equal(nothing, torch.ones(4, 4, 3).double())


def test_the_other_half_has_no_say() -> None:
    shown, other = image(), image(1)
    left = half_of(shown)
    assert left.sum().item() == 40 * 60 and bool(left[:, :40].all())
    truth = torch.where(left[..., None], 0.8 * shown + 0.1, other)
    got = correct_colors(shown, truth, left)
    assert float((got - (0.8 * shown + 0.1)).abs().max()) < 1e-12


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two \[H W 3\]"):
        correct_colors(torch.ones(4, 4, 3), torch.ones(4, 5, 3))
