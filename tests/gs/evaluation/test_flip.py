"""FLIP by its properties, and by values that follow from the paper's formulas by hand."""

import math

import pytest
import torch
from torch import Tensor

from gs.evaluation.flip import flip, flip_map

GREEN, BLUE = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def plain(*color: float) -> Tensor:
    return torch.tensor(color).expand(24, 30, 3).contiguous()


@pytest.fixture
def noise() -> Tensor:
    return torch.rand(24, 30, 3, generator=torch.Generator().manual_seed(0))


def test_equal_images_have_no_error(noise: Tensor) -> None:
    assert flip(noise, noise.clone()).item() == 0
    assert flip(plain(*GREEN), plain(*GREEN)).item() == 0


def test_it_is_symmetric_and_within_0_and_1(noise: Tensor) -> None:
    other = noise.flip(1)
    there, back = flip_map(noise, other), flip_map(other, noise)
    assert there.shape == (24, 30)
    torch.testing.assert_close(there, back)
    assert 0 <= there.min() and there.max() <= 1 and there.mean() > 0.05


def test_green_against_blue_is_the_largest_error() -> None:
    assert flip(plain(*GREEN), plain(*BLUE)).item() == pytest.approx(1.0, abs=1e-5)


def test_black_against_white_by_hand() -> None:
    # L* differs by 100. Green and blue, from their L*a*b* with a* and b* times L* / 100:
    green, blue = (87.735, -86.183, 83.180), (32.299, 79.190, -107.858)
    (g0, g1, g2), (b0, b1, b2) = [(x, x * y / 100, x * z / 100) for x, y, z in (green, blue)]
    largest = (abs(g0 - b0) + math.hypot(g1 - b1, g2 - b2)) ** 0.7
    error = 100**0.7
    share = (error - 0.4 * largest) / (0.6 * largest)
    wanted = 0.95 + 0.05 * share
    assert flip(plain(0, 0, 0), plain(1, 1, 1)).item() == pytest.approx(wanted, abs=1e-4)


def test_a_small_difference_of_grey_by_hand() -> None:
    # L* of linear Y: 116 Y^(1/3) - 16
    def lightness(x: float) -> float:
        return 116 * (((x + 0.055) / 1.055) ** 2.4) ** (1 / 3) - 16

    largest = 203.33**0.7  # green against blue, as above
    wanted = 0.95 / (0.4 * largest) * (lightness(0.52) - lightness(0.5)) ** 0.7
    got = flip(plain(0.5, 0.5, 0.5), plain(0.52, 0.52, 0.52)).item()
    assert got == pytest.approx(wanted, rel=1e-3)


def test_an_edge_that_is_missing_counts_more_than_its_colour() -> None:
    edge = plain(0.5, 0.5, 0.5)
    edge[:, 15:] = 0.7
    errors = flip_map(plain(0.5, 0.5, 0.5), edge)
    flat = flip(plain(0.5, 0.5, 0.5), plain(0.7, 0.7, 0.7))
    assert errors[:, 15].min() > flat and errors[:, :2].max() < 1e-3


def test_from_farther_away_noise_is_seen_less(noise: Tensor) -> None:
    grey = plain(0.5, 0.5, 0.5)
    near, far = (flip(grey, 0.45 + 0.1 * noise, ppd) for ppd in (20, 120))
    assert far < 0.8 * near


def test_other_shapes_are_refused(noise: Tensor) -> None:
    with pytest.raises(ValueError, match="one size"):
        flip(noise, noise[1:])
    with pytest.raises(ValueError, match="H W 3"):
        flip(noise[..., :1], noise[..., :1])
