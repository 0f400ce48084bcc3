"""A COLMAP model in text: cameras.txt, images.txt and points3D.txt, with the cameras' lenses.

Format: https://colmap.github.io/format.html. There are no observations: an image's second line is
empty, and points have no track.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files import write_text
from .camera import Camera
from .lens import PANORAMA, colmap_model


def write_colmap_text(
    folder: Path,
    cameras: Sequence[Camera],
    points: Tensor,  # [M, 3]
    colors: Tensor,  # [M, 3] in 0..1
    *,
    world_offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> None:
    """Write a model, with the cameras at the size that their scene gives.

    Args:
        folder: Where; made if it is not there.
        cameras: The images.
        points: Positions.
        colors: Of the points.
        world_offset: What is added to positions and to the cameras' centres.

    Raises:
        SplatrimError: something cannot be written.
    """
    lenses: dict[str, int] = {}
    images: list[str] = []
    offset = torch.tensor(world_offset, dtype=torch.float64)
    for k, camera in enumerate(cameras, start=1):
        lens = lenses.setdefault(_lens(camera), len(lenses) + 1)
        viewmat = camera.viewmat.double()
        rotation = viewmat[:3, :3].numpy()
        translation = (viewmat[:3, 3] - viewmat[:3, :3] @ offset).tolist()
        numbers = [*quaternion(rotation), *translation]
        images += [f"{k} {_joined(numbers)} {lens} {camera.image_name}", ""]
    shown = (colors.detach().cpu().clamp(0, 1) * 255).round().int().tolist()
    places = (points.detach().cpu().double() + offset).tolist()
    rows = [
        f"{k} {_joined(xyz)} {' '.join(map(str, rgb))} 0"
        for k, (xyz, rgb) in enumerate(zip(places, shown, strict=True), start=1)
    ]
    files = {
        "cameras": [f"{number} {lens}" for lens, number in lenses.items()],
        "images": images,
        "points3D": rows,
    }
    for name, lines in files.items():
        write_text(folder / f"{name}.txt", "".join(f"{line}\n" for line in lines))


def quaternion(rotation: NDArray[np.float64]) -> list[float]:  # [3, 3]
    """(w, x, y, z) of a rotation, w not negative: an eigenvector (Bar-Itzhack 2000)."""
    r = rotation
    k = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]],
            [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1], r[0, 2] - r[2, 0]],
            [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
        ]
    )
    x, y, z, w = np.linalg.eigh(k)[1][:, -1].tolist()
    sign = -1.0 if w < 0 else 1.0
    return [sign * w, sign * x, sign * y, sign * z]


def _lens(camera: Camera) -> str:
    """The camera's line without its number."""
    width, height = camera.original_width, camera.original_height
    sx, sy = width / camera.width, height / camera.height
    K = camera.K.double()
    numbers = [float(K[0, 0]) * sx, float(K[1, 1]) * sy, float(K[0, 2]) * sx, float(K[1, 2]) * sy]
    model = "PINHOLE"
    if camera.distortion is not None:
        model, coefficients = colmap_model(camera.distortion)
        numbers = [width, height] if model == PANORAMA else [*numbers, *coefficients]
    return f"{model} {width} {height} {_joined(numbers)}"


def _joined(numbers: Sequence[float]) -> str:
    return " ".join(f"{x:.17g}" for x in numbers)
