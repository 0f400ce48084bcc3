"""Which starting points cameras see: the near plane that follows, and scenes that show none."""

import logging
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SplatrimError
from .camera import NEAR_PLANE, Camera
from .posed import PosedImage

TESTS_AT_ONCE = 1 << 20  # points times cameras
MOST_TESTS = 1 << 23  # beyond it points are sampled
OUTLIERS = 1e-3  # share of a camera's points that may be nearer by mistake
CLOSEST = 1e-3  # of the camera's median depth
NEIGHBORS = 3  # whose distance makes a Gaussian's first size

logger = logging.getLogger("splatrim")


def near_plane(
    images: list[PosedImage],
    points: NDArray[np.float64],  # [M, 3]
) -> float:
    """0.2 as published, unless a camera sees nearer points; then half of the nearest's depth.

    A camera sees the points that were observed in its image, or where observations are not known
    those that project into it; one in a thousand of them may be an outlier. Says which image it is.
    """
    nearest, which = NEAR_PLANE, ""
    for index in _cameras_near_points(images, points):
        depths = _seen_depths(images[index], points)
        if not len(depths):
            continue
        rank = int(math.ceil(OUTLIERS * len(depths))) - 1
        depth = float(np.partition(depths, rank)[rank])
        depth = max(depth, CLOSEST * float(np.median(depths)))
        if depth < nearest:
            nearest, which = depth, images[index].name
    if not which:
        return NEAR_PLANE
    near = float(f"{nearest / 2:.3g}")
    logger.warning(
        f"the near plane is {near:g} instead of {NEAR_PLANE}: image {which} sees points at a depth "
        f"of {nearest:.3g}"
    )
    return near


def check_points(points: Tensor) -> None:  # [N, 3]
    """Raise SplatrimError for fewer points than give a Gaussian its first size."""
    if len(points) <= NEIGHBORS:
        raise SplatrimError(
            f"too few starting points ({len(points)}): the first size of a Gaussian is the distance"
            f" to its {NEIGHBORS} nearest neighbours; start from random points with --init_points"
        )


def check_sight(
    cameras: list[Camera],
    points: Tensor,  # [N, 3] float32
    what: str,
) -> None:
    """Raise SplatrimError, calling the points `what`, where no camera has one in its image."""
    points = points.detach().float().cpu()
    if not any(bool(sees(camera, points).any()) for camera in cameras):
        raise SplatrimError(
            f"no training camera sees any of the {len(points)} {what}: poses and points do not "
            "belong together, or all lies before the near plane"
        )


def sees(camera: Camera, points: Tensor) -> Tensor:  # [N, 3] float32 -> [N] bool
    """Which points are in a camera's image, beyond its near plane; nothing hides them."""
    x = points @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
    pixels = x @ camera.K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    limits = torch.tensor([camera.width, camera.height])
    return (x[:, 2] > camera.near) & ((pixels >= 0) & (pixels <= limits)).all(dim=1)


def _cameras_near_points(images: list[PosedImage], points: NDArray[np.float64]) -> list[int]:
    """Cameras that may see a point within the published near plane."""
    if not len(points):
        return []
    sample = points[:: len(points) * len(images) // MOST_TESTS + 1].astype(np.float32)
    axes = np.stack([image.rotation[2] for image in images]).astype(np.float32)
    shifts = np.array([image.translation[2] for image in images], np.float32)
    at_once = max(TESTS_AT_ONCE // len(sample), 1)
    found: list[int] = []
    for start in range(0, len(images), at_once):
        depths = axes[start : start + at_once] @ sample.T
        depths += shifts[start : start + at_once, None]
        for row, close in enumerate((depths > 0) & (depths < NEAR_PLANE), start):
            # planes pass through points in all scenes: few of those are within the image
            if close.any() and (len(images[row].seen) or len(_depths(images[row], sample[close]))):
                found.append(row)
    return found


def _seen_depths(image: PosedImage, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Depths of the points that an image sees."""
    if len(image.seen):
        depths = points[image.seen] @ image.rotation[2] + image.translation[2]
        return depths[depths > 0]
    return _depths(image, points)


def _depths(image: PosedImage, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Depths of the points that project into an image."""
    x = points @ image.rotation.T + image.translation
    x = x[x[:, 2] > 0]
    lens = image.lens
    (fx, fy), (cx, cy) = lens.focal, lens.principal_point
    with np.errstate(over="ignore", invalid="ignore"):
        u, v = fx * x[:, 0] / x[:, 2] + cx, fy * x[:, 1] / x[:, 2] + cy
    inside = (u >= 0) & (u <= lens.width) & (v >= 0) & (v <= lens.height)
    return x[inside, 2]
