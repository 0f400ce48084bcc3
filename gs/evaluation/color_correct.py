"""An image with the gain and offset of each channel that fit another best.

So views can be compared whose exposure and white balance nobody knew, of all methods alike. The
truth is used: figures of corrected images are named so, and stand beside the plain ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_VARIANCE = 1e-8


def color_corrected(
    image: Tensor,  # [H, W, 3] in 0..1
    reference: Tensor,  # [H, W, 3]
    counted: Tensor | None = None,  # [H, W] bool
) -> Tensor:  # [H, W, 3]
    """The image as if taken as the reference was: image ~ a reference + b is undone.

    Per channel a = cov(image, reference) / var(reference) and b by least squares over the pixels
    that count; the result is (image - b) / a, cut to 0..1. A channel in which a is not positive
    stays as it is.
    """
    x, y = (v.reshape(-1, 3) if counted is None else v[counted] for v in (reference, image))
    x_mean, y_mean = x.mean(0), y.mean(0)
    covariance = ((x - x_mean) * (y - y_mean)).mean(0)
    a = covariance / (x - x_mean).square().mean(0).clamp_min(MIN_VARIANCE)
    fits = a > 0.0
    a = torch.where(fits, a, 1.0)
    b = torch.where(fits, y_mean - a * x_mean, 0.0)
    return ((image - b) / a).clamp(0.0, 1.0)
