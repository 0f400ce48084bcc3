"""Lenses that the built-in scene is photographed through, and the rays of their pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy import ndarray

from kernels import lenses

from ..errors import SplatrimError
from .lens import BY_NAME, PANORAMA, Lens

Rays = Callable[[ndarray, ndarray], ndarray]  # pixels x and y [R] each -> camera space [R, 3]
HALF_WIDTH = np.deg2rad(65.0)  # of the image of a fisheye without coefficients
# after focal lengths and principal point, in COLMAP's order
COEFFICIENTS: dict[str, tuple[float, ...]] = {
    "PINHOLE": (),
    "SIMPLE_RADIAL": (-0.12,),
    "RADIAL": (-0.12, 0.03),
    "OPENCV": (-0.15, 0.04, 0.002, -0.0015),
    "FULL_OPENCV": (-0.15, 0.04, 0.002, -0.0015, 0.01, 0.05, -0.02, 0.004),
    "OPENCV_FISHEYE": (0.03, -0.008, 0.002, -0.0004),
    "SIMPLE_RADIAL_FISHEYE": (-0.02,),
    "RADIAL_FISHEYE": (-0.02, 0.003),
    "THIN_PRISM_FISHEYE": (0.03, -0.008, 0.001, -0.0008, 0.002, -0.0004, 0.0012, -0.0007),
    "SIMPLE_FISHEYE": (),
    "FISHEYE": (),
    PANORAMA: (),
}
_ONE_FOCAL = {
    "SIMPLE_RADIAL",
    "RADIAL",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "SIMPLE_FISHEYE",
}


def demo_lens(name: str, width: int, height: int, focal: float) -> Lens:
    """A lens by COLMAP's name, in any case; perspective ones have the given focal length.

    Raises:
        SplatrimError: there is none of that name.
    """
    model = name.upper()
    if model not in COEFFICIENTS:
        raise SplatrimError(f"--lens {name}: choose one of {', '.join(COEFFICIENTS).lower()}")
    if model == PANORAMA:
        return Lens(model, width, height, (float(width), float(height)))
    if "FISHEYE" in model:
        focal = width / 2 / HALF_WIDTH
    focals = (focal,) * BY_NAME[model][0]
    return Lens(model, width, height, (*focals, width / 2, height / 2, *COEFFICIENTS[model]))


def rays_of(lens: Lens) -> Rays:
    """What the pixels of a lens show: directions, NaN where they show nothing."""
    (fx, fy), (cx, cy) = lens.focal, lens.principal_point
    bent = lens.distortion
    if bent is None:
        return lambda x, y: np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1)
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
    words = lenses.pack_lens(bent, (fx, fy, cx, cy), lens.width, lens.height)

    def rays(x: ndarray, y: ndarray) -> ndarray:
        pixels = torch.from_numpy(np.stack([x, y], -1).astype(np.float64))
        largest = lenses.monotone_radius(bent)
        found, shown = lenses.unproject(bent.family, K, words, pixels, largest)
        return torch.where(shown[:, None], found, torch.nan).numpy()

    return rays
