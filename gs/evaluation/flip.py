"""LDR-FLIP: how different two images look when one flips between them, 0 to 1.

Andersson et al., "FLIP: A Difference Evaluator for Alternating Images", HPG 2020
(https://doi.org/10.1145/3406183). Written from the paper; constants are its Table 1 and section 4.

    colour    YCxCz of both images, each channel blurred by an eye's contrast sensitivity, clamped
              to sRGB's gamut; in Hunt-adjusted L*a*b*, dE = (|dL| + ||d(a, b)||)^0.7, mapped to
              0..1 so that 0.4 of the largest, green against blue, becomes 0.95
    features  edges and points of the luminance: first and second derivatives of a Gaussian,
              dF = (max(|d||edge|||, |d||point|||) / sqrt 2)^0.5
    FLIP      dE^(1 - dF), the mean over pixels

The same for (a, b) and (b, a). It needs no weights.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

# a screen of 3840 pixels on 0.7 m, seen from 0.7 m
PIXELS_PER_DEGREE = 3840 * math.pi / 180

COLOR_EXPONENT = 0.7
FEATURE_EXPONENT = 0.5
LOW_SHARE, LOW_ERROR = 0.4, 0.95  # where the map of colour errors has its bend
EDGE_WIDTH = 0.082  # degrees
# Contrast sensitivity of each channel: sums of Gaussians a sqrt(pi / b) exp(-pi^2 x^2 / b), x in
# degrees, as (a, b)
SENSITIVITY = (
    ((1.0, 0.0047),),
    ((1.0, 0.0053),),
    ((34.1, 0.04), (13.5, 0.025)),
)
WIDEST = 0.04  # the largest b sets the radius of all

# linear sRGB to XYZ (IEC 61966-2-1), with the white of its own sum
RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)


def flip(
    a: Tensor,  # [H, W, 3] in 0..1, sRGB
    b: Tensor,  # [H, W, 3]
    pixels_per_degree: float = PIXELS_PER_DEGREE,
) -> Tensor:  # []
    """Mean FLIP error of two images.

    Raises:
        ValueError: shapes differ, or are not [H, W, 3].
    """
    return flip_map(a, b, pixels_per_degree).mean()


def flip_map(
    a: Tensor,  # [H, W, 3] in 0..1, sRGB
    b: Tensor,  # [H, W, 3]
    pixels_per_degree: float = PIXELS_PER_DEGREE,
) -> Tensor:  # [H, W]
    """FLIP error of each pixel; as `flip`."""
    if a.shape != b.shape or a.dim() != 3 or a.shape[2] != 3:
        raise ValueError(
            f"flip: expected two images [H W 3] of one size, got {list(a.shape)}, {list(b.shape)}"
        )
    first, second = (_opponent(_linear(x.movedim(-1, 0).float())) for x in (a, b))
    color = _color_error(first, second, pixels_per_degree)
    return color ** (1 - _feature_error(first[0], second[0], pixels_per_degree))


def _color_error(a: Tensor, b: Tensor, ppd: float) -> Tensor:  # two [3, H, W] YCxCz -> [H, W]
    labs = [_hunt(_lab(_filtered(x, ppd))) for x in (a, b)]
    error = _hyab(*labs) ** COLOR_EXPONENT
    largest = _largest_error()
    bend = LOW_SHARE * largest
    low = error * (LOW_ERROR / bend)
    high = LOW_ERROR + (error - bend) / (largest - bend) * (1 - LOW_ERROR)
    return torch.where(error < bend, low, high)


def _feature_error(a: Tensor, b: Tensor, ppd: float) -> Tensor:  # two [H, W] -> [H, W]
    deviation = 0.5 * EDGE_WIDTH * ppd
    x = _offsets(math.ceil(3 * deviation), a)
    bell = torch.exp(-0.5 * (x / deviation) ** 2)
    smooth = bell / bell.sum()
    luminances = [(y + 16) / 116 for y in (a, b)]
    differences = []
    for profile in (-x * bell, ((x / deviation) ** 2 - 1) * bell):
        positive, negative = profile.clamp(min=0), profile.clamp(max=0)
        profile = positive / positive.sum() - negative / negative.sum()
        one, two = (
            torch.hypot(_blurred(y, profile, smooth), _blurred(y, smooth, profile))
            for y in luminances
        )
        differences.append((one - two).abs())
    return (torch.maximum(*differences) / math.sqrt(2)) ** FEATURE_EXPONENT


def _filtered(image: Tensor, ppd: float) -> Tensor:  # [3, H, W] YCxCz -> linear sRGB
    """What an eye resolves of an image, within the gamut."""
    x = _offsets(math.ceil(3 * math.sqrt(WIDEST / (2 * math.pi**2)) * ppd), image) / ppd
    channels = []
    for channel, terms in zip(image, SENSITIVITY, strict=True):
        bells = [torch.exp(-(math.pi**2) * x**2 / b) for _, b in terms]
        weights = [a * math.sqrt(math.pi / b) for a, b in terms]
        total = sum(weight * bell.sum() ** 2 for weight, bell in zip(weights, bells, strict=True))
        blurred = [
            weight * _blurred(channel, bell, bell)
            for weight, bell in zip(weights, bells, strict=True)
        ]
        channels.append(torch.stack(blurred).sum(0) / total)
    return _from_opponent(torch.stack(channels)).clamp(0, 1)


def _blurred(image: Tensor, across: Tensor, down: Tensor) -> Tensor:  # [H, W], [2R+1] twice
    """Correlate with a separable kernel; the border goes on outside."""
    radius = len(across) // 2
    x = pad(image[None, None], (radius,) * 4, mode="replicate")
    return conv2d(conv2d(x, across[None, None, None]), down[None, None, :, None])[0, 0]


def _offsets(radius: int, like: Tensor) -> Tensor:  # [2 * radius + 1]
    return torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)


def _linear(x: Tensor) -> Tensor:
    """sRGB's transfer function undone."""
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _relative_xyz(x: Tensor) -> Tensor:  # [3, ...] linear -> XYZ, white is (1, 1, 1)
    matrix = torch.tensor(RGB_TO_XYZ, dtype=x.dtype, device=x.device)
    return torch.tensordot(matrix / matrix.sum(1, keepdim=True), x, dims=1)


def _opponent(x: Tensor) -> Tensor:  # [3, ...] linear -> YCxCz
    x, y, z = _relative_xyz(x)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _from_opponent(ycc: Tensor) -> Tensor:  # [3, ...] YCxCz -> linear
    y = (ycc[0] + 16) / 116
    xyz = torch.stack([y + ycc[1] / 500, y, y - ycc[2] / 200])
    matrix = torch.tensor(RGB_TO_XYZ, dtype=torch.float64)
    inverse = torch.linalg.inv(matrix / matrix.sum(1, keepdim=True))
    return torch.tensordot(inverse.to(xyz), xyz, dims=1)


def _lab(x: Tensor) -> Tensor:  # [3, ...] linear -> L*a*b*
    bend = 6 / 29
    xyz = _relative_xyz(x)
    root = xyz.clamp(min=bend**3) ** (1 / 3)
    f = torch.where(xyz > bend**3, root, xyz / (3 * bend**2) + 4 / 29)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def _hunt(lab: Tensor) -> Tensor:
    """Colours look less saturated in the dark."""
    return torch.stack([lab[0], 0.01 * lab[0] * lab[1], 0.01 * lab[0] * lab[2]])


def _hyab(a: Tensor, b: Tensor) -> Tensor:  # two [3, ...] L*a*b* -> [...]
    difference = a - b
    return difference[0].abs() + torch.hypot(difference[1], difference[2])


@functools.cache
def _largest_error() -> float:
    """The colour error of green against blue."""
    green, blue = torch.eye(3, dtype=torch.float64)[1:]
    return float(_hyab(_hunt(_lab(green)), _hunt(_lab(blue))) ** COLOR_EXPONENT)
