"""Masks of images: which pixels count. Black is ignored, in training and in metrics.

A mask is an image beside the scene's: `masks/<image name>.png`, as COLMAP has it, or with the
image's name and any extension. It has the size of the image's file, or another of the same shape.
Or the image's own alpha is the mask. Pixels of the training resolution count where all that they
show counts.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import SplatrimError
from .camera import Camera
from .find_images import SUFFIXES
from .image_file import UNREADABLE, check_size, transparency, unreadable
from .posed import resized

FOLDER = "masks"  # of a scene
HALF = 128  # what is brighter counts

logger = logging.getLogger("splatrim")


def with_masks(cameras: Sequence[Camera], source: Path, choice: str) -> list[Camera]:
    """Cameras that know their masks.

    Args:
        cameras: Of a scene.
        source: The scene's folder.
        choice: "auto" (masks/ where the scene has it), "none", "alpha", or a folder in the scene.

    Raises:
        SplatrimError: the folder is absent, or has a mask for no image.
    """
    if choice == "alpha":
        return [dataclasses.replace(camera, alpha_is_mask=True) for camera in cameras]
    folder = source / (FOLDER if choice == "auto" else choice)
    if choice == "none" or (choice == "auto" and not folder.is_dir()):
        return list(cameras)
    if not folder.is_dir():
        raise SplatrimError(f"no such folder of masks: {folder}")
    found = [_find(folder, camera.image_name) for camera in cameras]
    n_found = sum(path is not None for path in found)
    if n_found == 0 and choice == "auto":
        logger.warning(f"{folder} has a mask for no image, and is not used")
    elif n_found == 0:
        raise SplatrimError(
            f"{folder} has a mask for no image: that of {cameras[0].image_name} would be"
            f" {folder / cameras[0].image_name}.png"
        )
    else:
        logger.info(f"{n_found} of {len(cameras)} images have masks: black pixels do not count")
    return [
        dataclasses.replace(camera, mask_path=path)
        for camera, path in zip(cameras, found, strict=True)
    ]


def has_mask(camera: Camera) -> bool:
    """Whether some of its pixels may not count."""
    return camera.mask_path is not None or camera.alpha_is_mask


def read_mask(camera: Camera) -> NDArray[np.uint8]:  # [H, W]
    """The mask at the training resolution: 255 where pixels count, else 0.

    Raises:
        SplatrimError: it cannot be read, or has another shape than the image.
    """
    size = camera.expected_file_size
    if camera.alpha_is_mask:
        assert camera.image_path is not None
        alpha = transparency(camera.image_path, camera.image_name, upright=camera.upright)
        check_size(camera.image_name, (alpha.shape[1], alpha.shape[0]), size)
        counts = alpha >= HALF
    elif camera.mask_path is not None:
        counts = _read(camera.mask_path, size, upright=camera.upright)
    else:
        return np.full((camera.height, camera.width), 255, np.uint8)
    mask = np.where(counts, np.uint8(255), np.uint8(0))
    if camera.undistortion is not None:
        mask = camera.undistortion.apply(np.repeat(mask[..., None], 3, axis=2))[..., 0]
        mask = np.where(mask == 255, mask, np.uint8(0))
    image = Image.fromarray(mask)
    if image.size != (camera.width, camera.height):
        image = image.resize((camera.width, camera.height), Image.Resampling.BOX)
    return np.where(np.asarray(image) == 255, np.uint8(255), np.uint8(0))


def transparency_at(camera: Camera) -> NDArray[np.uint8]:  # [H, W]
    """Alpha of the image at the training resolution; 255 everywhere where it has none."""
    assert camera.image_path is not None
    alpha = transparency(camera.image_path, camera.image_name, upright=camera.upright)
    check_size(camera.image_name, (alpha.shape[1], alpha.shape[0]), camera.expected_file_size)
    if camera.undistortion is not None:
        alpha = camera.undistortion.apply(np.repeat(alpha[..., None], 3, axis=2))[..., 0]
    image, size = Image.fromarray(np.ascontiguousarray(alpha)), (camera.width, camera.height)
    return np.array(image if image.size == size else image.resize(size))


def _find(folder: Path, image_name: str) -> Path | None:
    """The mask of an image: its name with .png appended, or with another extension."""
    plain = Path(image_name)
    stem = folder / plain.parent / plain.stem
    places = [folder / f"{image_name}.png", folder / image_name]
    places += [stem.with_name(stem.name + suffix) for suffix in sorted(SUFFIXES)]
    return next((path for path in places if path.is_file()), None)


def _read(path: Path, size: tuple[int, int], *, upright: bool) -> NDArray[np.bool_]:  # [H, W]
    """What counts by a mask's file, at the size of the image's file."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file) if upright else file
            grey = image.convert("L")
    except UNREADABLE as error:
        raise unreadable(path, f"mask {path.name}", error) from None
    if not resized(grey.size, size):
        raise SplatrimError(
            f"the mask {path} has {grey.size[0]}x{grey.size[1]} pixels, another shape than its"
            f" image of {size[0]}x{size[1]}"
        )
    if grey.size != size:
        grey = grey.resize(size, Image.Resampling.NEAREST)
    return np.asarray(grey) >= HALF
