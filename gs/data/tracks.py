"""Which points of a reconstruction each image shows, and how deep they lie in it.

The depth of a point is that of its projection by the image's own pose and lens, at the training
resolution; its pixel is the one that the projection falls in, which is at most half a pixel off:
less than points are reconstructed to. Where several points fall in a pixel, the nearest counts.

A reconstruction without observations does not say what images show. There points cover each other
instead: of those that fall into a cell of the image the nearest is seen, unless a point in a cell
around lies much nearer. Cells hold CELL_POINTS points on average, so that few are without a point
of the surface that is seen there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from .camera import Camera
from .posed import PosedImage

CELL_POINTS = 8
NEARER = 0.8  # of a depth: what hides a point from the cell beside


@dataclass(frozen=True)
class Tracks:
    """Well reconstructed points, and which of them images were seen to show."""

    points: Tensor
    """[M, 3] float64"""
    rows: Mapping[str, Tensor]
    """Rows of `points` by the name of the image; empty where nothing was observed. [K] int64"""


def find_tracks(
    images: Sequence[PosedImage],
    points: NDArray[np.float64],  # [M, 3]
    exact: NDArray[np.bool_],  # [M], or empty
) -> Tracks | None:
    """The tracks of a scene's images, of points that are `exact`; None where no point is."""
    if not exact.any():
        return None
    rows = {image.name: torch.from_numpy(image.seen[exact[image.seen]]) for image in images}
    if not any(len(image.seen) for image in images):
        return Tracks(torch.from_numpy(points[exact]), {})
    return Tracks(torch.from_numpy(points), rows)


def depths_of(tracks: Tracks, camera: Camera) -> tuple[Tensor, Tensor]:  # [K] int32, [K] float32
    """Pixels (row times width plus column), ascending and each once, and depths of an image's
    points: those beyond the near plane and within the image."""
    seen = tracks.points
    if tracks.rows:
        seen = seen[tracks.rows.get(camera.image_name, torch.zeros(0, dtype=torch.int64))]
    places, z = camera.project(seen)
    places, z = places[z > camera.near], z[z > camera.near]
    column, row = places.floor().long().unbind(-1)
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    column, row, z = column[inside], row[inside], z[inside]
    if not tracks.rows:
        uncovered = _uncovered(column, row, z, camera.width, camera.height)
        column, row, z = column[uncovered], row[uncovered], z[uncovered]
    pixels, depths = row * camera.width + column, z
    order = depths.argsort()  # then by pixel, nearest first
    order = order[pixels[order].argsort(stable=True)]
    pixels, depths = pixels[order], depths[order]
    first = torch.ones_like(pixels, dtype=torch.bool)
    first[1:] = pixels[1:] != pixels[:-1]
    return pixels[first].int(), depths[first].float()


def _uncovered(column: Tensor, row: Tensor, z: Tensor, width: int, height: int) -> Tensor:  # [K]
    """Whether points, of pixels in an image, are those that nothing hides."""
    side = max(math.ceil(math.sqrt(width * height * CELL_POINTS / max(len(z), 1))), 1)
    down, across = -(-height // side), -(-width // side)
    cell = row // side * across + column // side
    nearest = torch.full((down * across,), torch.inf, dtype=z.dtype)
    nearest.scatter_reduce_(0, cell, z, "amin")
    around = -max_pool2d(-nearest.view(1, down, across), 3, 1, 1)
    return (z == nearest[cell]) & (around.flatten()[cell] >= NEARER * z)
