"""Removes lens distortion from images while they are decoded, by COLMAP's own undistortion.

The undistorted camera shows no blank pixels, as that of `colmap image_undistorter`. Results are
kept as PNGs in a folder beside the run, under the hash of what they were made from.
"""

import functools
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import SplatrimError
from ..files import atomic_write
from .lens import Lens

if TYPE_CHECKING:
    import pycolmap

FOLDER = "undistorted"  # in a run's output

logger = logging.getLogger("splatrim")


@functools.lru_cache(maxsize=1024)
def undistorted(lens: Lens) -> Lens:
    """The pinhole lens whose image shows what `lens` shows, without blank pixels.

    Raises:
        SplatrimError: the distortion is too strong for any.
    """
    import pycolmap

    try:
        flat = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), _camera(lens))
    except (RuntimeError, ValueError) as error:
        raise SplatrimError(_reason(lens)) from error
    result = Lens("PINHOLE", flat.width, flat.height, tuple(float(x) for x in flat.params))
    if min(result.width, result.height) < 1 or not np.isfinite(result.params).all():
        raise SplatrimError(_reason(lens))
    return result


@dataclass(frozen=True)
class Undistortion:
    """What turns the pixels of a file into those of a pinhole camera."""

    lens: Lens
    """The lens that took the image, at the file's size."""
    folder: Path | None = None
    """Where results are kept; None keeps none."""

    def apply(self, pixels: np.ndarray) -> np.ndarray:  # two of [H, W, 3] uint8
        """Resample bilinearly."""
        import pycolmap

        bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(pixels))
        try:
            flat, _ = pycolmap.undistort_image(
                pycolmap.UndistortCameraOptions(), bitmap, _camera(self.lens)
            )
        except (RuntimeError, ValueError) as error:
            raise SplatrimError(_reason(self.lens)) from error
        return flat.to_array()

    def kept_at(self, path: Path, background: str) -> Path | None:
        """Where the result for the image at `path` is kept, there or not yet."""
        if self.folder is None:
            return None
        stat = path.stat()
        made_from = (str(path.absolute()), stat.st_mtime_ns, stat.st_size, self.lens, background)
        digest = hashlib.sha256(repr(made_from).encode("utf-8", "backslashreplace")).hexdigest()
        return self.folder / f"{digest[:20]}.png"

    def keep(self, pixels: np.ndarray, path: Path) -> None:
        """Write a result; a disk that refuses costs time at the next use and nothing else."""
        try:
            with atomic_write(path) as file:
                Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        except SplatrimError as error:
            logger.warning(f"an undistorted image is not kept: {error}")


def _camera(lens: Lens) -> "pycolmap.Camera":
    import pycolmap

    return pycolmap.Camera(
        model=lens.model, width=lens.width, height=lens.height, params=list(lens.params)
    )


def _reason(lens: Lens) -> str:
    return (
        f"the distortion of a {lens.model} camera with the parameters {list(lens.params)} cannot "
        "be removed: undistort its images with another program"
    )
