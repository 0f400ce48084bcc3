r"""Colours of a rendering fitted to those of its photograph.

Photographs differ in exposure and white balance, and a model of all of them can show the test view
in none of theirs. Barron et al., "Mip-NeRF 360" (CVPR 2022) and the tables of Momentum-GS
therefore measure after a fit: of every channel, by least squares, to

    r^2  g^2  b^2  rg  rb  gb  r  g  b  1

of the rendering, over pixels that are clipped neither there nor in the photograph; five times, each
of the last result. It is fitted to the truth that it is then compared with. Fitted on the left half
and compared on the right, it is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 5
CLIPPED = 0.5 / 255  # closer to 0 or 1 a value says that it was cut off
SMALL = 1e-12  # singular values below this share of the largest one count as 0
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def correct_colors(
    image: Tensor,  # [H, W, 3]
    truth: Tensor,  # [H, W, 3]
    fitted: Tensor | None = None,  # [H, W] bool
) -> Tensor:  # [H, W, 3] float64
    """The image with its colours fitted to the truth, in 0..1.

    Args:
        image: In 0..1. [H, W, 3]
        truth: In 0..1. [H, W, 3]
        fitted: Pixels that the fit may look at; None for all. [H, W]

    Raises:
        ValueError: the images differ in shape.
    """
    if image.shape != truth.shape or image.shape[-1] != 3:
        raise ValueError(
            f"correct_colors: expected two [H W 3], got {list(image.shape)}, {list(truth.shape)}"
        )
    x, y = (z.double().reshape(-1, 3) for z in (image, truth))
    usable = _is_inside(x) & _is_inside(y)
    if fitted is not None:
        usable &= fitted.reshape(-1, 1)
    for _ in range(ROUNDS):
        terms = _terms(x)
        fits = usable & _is_inside(x)
        columns = [_fit(terms, y[:, c], fits[:, c], x[:, c]) for c in range(3)]
        x = torch.stack(columns, 1).clamp(0.0, 1.0)
    return x.view(image.shape)


def half_of(image: Tensor) -> Tensor:  # [H, W, ...] -> [H, W] bool
    """The pixels of the left half; of an odd number of columns the middle one is on the right."""
    height, width = image.shape[:2]
    left = torch.arange(width, device=image.device) < width // 2
    return left.expand(height, width)


def _is_inside(x: Tensor) -> Tensor:
    return (x >= CLIPPED) & (x <= 1.0 - CLIPPED)


def _terms(x: Tensor) -> Tensor:  # [N, 3] -> [N, 10]
    products = [x[:, i] * x[:, j] for i, j in PAIRS]
    return torch.stack([*products, *x.unbind(1), torch.ones_like(x[:, 0])], 1)


def _fit(terms: Tensor, y: Tensor, fits: Tensor, otherwise: Tensor) -> Tensor:  # [N]
    """The combination of terms nearest to y where it `fits`; `otherwise` where nothing does."""
    if not bool(fits.any()):
        return otherwise
    # of grey images terms are equal: the factor that is left has the smallest weights
    q, r = torch.linalg.qr(terms[fits])
    return terms @ (torch.linalg.pinv(r, rtol=SMALL) @ (q.T @ y[fits]))
