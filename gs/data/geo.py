"""Large coordinates: the offset that keeps float32 exact, and what lies too far for it.

Geo-referenced scenes (UTM, ECEF) have coordinates of millions of metres, where float32 has steps of
half a metre. A scene whose cameras stand far from the origin, by their own measure, is shifted in
float64 while it is read; the run's record and its .ply say by how much.
"""

import logging
import math

import numpy as np
from numpy.typing import NDArray

from ..errors import SplatrimError
from .posed import PosedImage

FAR = 10.0  # distance of the cameras from the origin over the size of the scene
LARGEST = 1e12  # beyond it float64 too has steps of 0.1 mm
OUTLYING = 1e6  # distance over the size of the scene that float32 cannot hold beside it

Offset = tuple[float, float, float]
logger = logging.getLogger("splatrim")


def check_positions(images: list[PosedImage]) -> None:
    """Raise SplatrimError for cameras that stand where numbers, or the other cameras, end."""
    with np.errstate(all="ignore"):
        centres = np.stack([image.centre for image in images])
    size = np.abs(centres).max(axis=1)
    worst = int(np.nan_to_num(size, nan=np.inf).argmax())
    if not size[worst] <= LARGEST:
        raise SplatrimError(
            f"the camera of image {images[worst].name} stands at {_place(centres[worst])}: "
            f"coordinates beyond {LARGEST:.0e} cannot be told apart"
        )
    distances = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    middle, worst = float(np.median(distances)), int(distances.argmax())
    if middle > 0 and distances[worst] > OUTLYING * middle:
        raise SplatrimError(
            f"the camera of image {images[worst].name} stands at {_place(centres[worst])}, "
            f"{distances[worst]:.1e} from the others, which are about {middle:.1e} apart: "
            "remove it, or correct its pose"
        )


def find_offset(
    images: list[PosedImage],
    points: NDArray[np.float64],  # [M, 3]
) -> Offset:
    """What to subtract from coordinates; zero for a scene near the origin, as most are."""
    centres = np.stack([image.centre for image in images])
    middle = np.median(centres, axis=0)
    size = scene_size(centres, points)
    if np.linalg.norm(middle) <= FAR * size:
        return 0.0, 0.0, 0.0
    # a round number
    digits = -math.floor(math.log10(size))
    x, y, z = (round(float(x), digits) for x in middle)
    return x, y, z


def scene_size(
    centres: NDArray[np.float64],  # [C, 3]
    points: NDArray[np.float64],  # [M, 3]
) -> float:
    """Spread of the cameras or the points' usual distance to them, whichever is larger."""
    middle = np.median(centres, axis=0)
    sizes = [float(np.linalg.norm(centres - middle, axis=1).max())]
    if len(points):
        sizes.append(float(np.median(np.linalg.norm(points - middle, axis=1))))
    size = max(size for size in [*sizes, 0.0] if math.isfinite(size))
    return size if size > 0 else 1.0


def sound_points(
    images: list[PosedImage],
    points: NDArray[np.float64],  # [M, 3]
) -> NDArray[np.bool_]:  # [M]
    """Which points are finite and near enough to be placed in float32; the others are told."""
    finite = np.isfinite(points).all(axis=1) & (np.abs(np.nan_to_num(points)) < 1e100).all(axis=1)
    centres = np.stack([image.centre for image in images])
    size = scene_size(centres, points[finite])
    distances = np.full(len(points), np.inf)
    distances[finite] = np.linalg.norm(points[finite] - np.median(centres, axis=0), axis=1)
    sound = distances <= OUTLYING * size
    if not sound.all():
        far = distances[~sound]
        logger.warning(
            f"{len(far)} of {len(points)} starting points are not finite or lie further from the "
            f"cameras than float32 can place them ({far.min():.1e} for a scene of {size:.1e}): "
            "they are left out"
        )
    return sound


def _place(xyz: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{x:.4g}" for x in xyz) + ")"
