"""Which starting points cameras see: the near plane that follows, and scenes that show none."""

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import lenses

from ..errors import SplatrimError
from .camera import NEAR_PLANE, Camera
from .posed import PosedImage, camera_of

TESTS_AT_ONCE = 1 << 20  # points times cameras
MOST_TESTS = 1 << 23  # beyond it points are sampled
OUTLIERS = 1e-3  # share of a camera's points that may be nearer by mistake
CLOSEST = 1e-3  # of the camera's median depth
NEIGHBORS = 3  # whose distance makes a Gaussian's first size

logger = logging.getLogger("splatrim")


def near_plane(
    images: list[PosedImage],
    points: NDArray[np.float64],  # [M, 3]
    *,
    native: bool = False,
) -> float:
    """0.2 as published, unless a camera sees nearer points; then half of the nearest's depth.

    A camera sees the points that were observed in its image, or where observations are not known
    those that project into it; one in a thousand of them may be an outlier. Says which image it is.

    Args:
        images: The images.
        points: The scene's points.
        native: Whether images are drawn through their lenses: a fisheye's depth is the distance.
    """
    nearest, which = NEAR_PLANE, ""
    for index in _cameras_near_points(images, points, native):
        depths = _seen_depths(images[index], points, native)
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
    pixels, depths = camera.project(points)
    limits = torch.tensor([camera.width, camera.height])
    return (depths > camera.near) & ((pixels >= 0) & (pixels <= limits)).all(dim=1)


def _cameras_near_points(
    images: list[PosedImage], points: NDArray[np.float64], native: bool
) -> list[int]:
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
        near = (np.abs(depths) if native else depths) < NEAR_PLANE
        for row, close in enumerate(near & ((depths > 0) | native), start):
            # planes pass through points in all scenes: few of those are within the image
            image = images[row]
            if close.any() and (len(image.seen) or len(_depths(image, sample[close], native))):
                found.append(row)
    return found


def _seen_depths(
    image: PosedImage, points: NDArray[np.float64], native: bool
) -> NDArray[np.float64]:
    """Depths of the points that an image sees."""
    if len(image.seen):
        x = points[image.seen] @ image.rotation.T + image.translation
        bent = image.lens.distortion if native else None
        depths = (
            x[:, 2] if bent is None else lenses.depths_of(bent.family, torch.from_numpy(x)).numpy()
        )
        return depths[depths > 0]
    return _depths(image, points, native)


def _depths(
    image: PosedImage, points: NDArray[np.floating[Any]], native: bool
) -> NDArray[np.float64]:
    """Depths of the points that project into an image."""
    if native and not image.lens.is_pinhole:
        camera = camera_of(image, image.lens, (image.lens.width, image.lens.height))
        depths = camera.project(torch.from_numpy(np.asarray(points, np.float64)))[1]
        return depths[sees(replace(camera, near=0.0), torch.from_numpy(points).double())].numpy()
    x = points @ image.rotation.T + image.translation
    x = x[x[:, 2] > 0]
    lens = image.lens
    (fx, fy), (cx, cy) = lens.focal, lens.principal_point
    with np.errstate(over="ignore", invalid="ignore"):
        u, v = fx * x[:, 0] / x[:, 2] + cx, fy * x[:, 1] / x[:, 2] + cy
    inside = (u >= 0) & (u <= lens.width) & (v >= 0) & (v <= lens.height)
    return x[inside, 2]
