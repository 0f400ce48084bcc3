"""Which points of a reconstruction each image shows, and how deep they lie in it.

The depth of a point is that of its projection by the image's own pose and lens, at the training
resolution; its pixel is the one that the projection falls in, which is at most half a pixel off:
less than points are reconstructed to. Where several points fall in a pixel, the nearest counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .camera import Camera
from .posed import PosedImage


@dataclass(frozen=True)
class Tracks:
    """Well reconstructed points, and which of them images were seen to show."""

    points: Tensor
    """[M, 3] float64"""
    rows: Mapping[str, Tensor]
    """Rows of `points` by the name of the image. [K] int64"""


def find_tracks(
    images: Sequence[PosedImage],
    points: NDArray[np.float64],  # [M, 3]
    exact: NDArray[np.bool_],  # [M], or empty
) -> Tracks | None:
    """The tracks of a scene's images, of points that are `exact`; None where there are none."""
    if not len(exact):
        return None
    rows = {image.name: torch.from_numpy(image.seen[exact[image.seen]]) for image in images}
    if not any(len(seen) for seen in rows.values()):
        return None
    return Tracks(torch.from_numpy(points), rows)


def depths_of(tracks: Tracks, camera: Camera) -> tuple[Tensor, Tensor]:  # [K] int32, [K] float32
    """Pixels (row times width plus column), ascending and each once, and depths of an image's
    points: those beyond the near plane and within the image."""
    seen = tracks.points[tracks.rows.get(camera.image_name, torch.zeros(0, dtype=torch.int64))]
    places, z = camera.project(seen)
    places, z = places[z > camera.near], z[z > camera.near]
    column, row = places.floor().long().unbind(-1)
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    pixels, depths = (row * camera.width + column)[inside], z[inside]
    order = depths.argsort()  # then by pixel, nearest first
    order = order[pixels[order].argsort(stable=True)]
    pixels, depths = pixels[order], depths[order]
    first = torch.ones_like(pixels, dtype=torch.bool)
    first[1:] = pixels[1:] != pixels[:-1]
    return pixels[first].int(), depths[first].float()
