"""Posed images, as every kind of scene describes them, and the cameras that they become."""

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import SplatrimError
from .camera import NEAR_PLANE, Camera
from .image_file import image_size, orientation
from .lens import PANORAMA, Lens
from .resolution import training_size
from .undistort import Undistortion, undistorted

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class PosedImage:
    """An image file, its lens and where it was taken. OpenCV axes, float64."""

    name: str
    path: Path
    lens: Lens
    """Intrinsics at the size that the description gives."""
    rotation: NDArray[np.float64]
    """World to camera. [3, 3]"""
    translation: NDArray[np.float64]
    """[3]"""
    seen: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows of the scene's points that were observed in it; empty where that is unknown."""
    size: tuple[int, int] | None = None
    """Width and height of the file where they are known already."""

    @property
    def centre(self) -> NDArray[np.float64]:  # [3]
        """Position of the camera in the world."""
        return -self.rotation.T @ self.translation


def shifted(
    image: PosedImage,
    offset: NDArray[np.float64],  # [3]
    seen: NDArray[np.int64],
) -> PosedImage:
    """The image in a world whose coordinates are smaller by `offset`, with other rows of points."""
    translation = image.translation + image.rotation @ offset
    return dataclasses.replace(image, translation=translation, seen=seen)


@dataclass(frozen=True)
class _File:
    """What is known of an image's file."""

    size: tuple[int, int]
    upright: bool


def make_cameras(
    images: list[PosedImage],
    resolution: int,
    *,
    distortion: str,
    remedy: str = "",
    cache: Path | None = None,
    near: float = NEAR_PLANE,
) -> list[Camera]:
    """Open the header of every image and make its camera at the training resolution.

    Intrinsics follow the file's size where its aspect agrees with the description's. EXIF's
    orientation is applied where the description has the upright size.

    Args:
        images: The images.
        resolution: As `-r`, see `training_size`.
        distortion: What to do where a lens has any: "undistort", "native" to draw through it, or
            "refuse" to raise.
        remedy: What to do about refused distortion, the end of a sentence.
        cache: Folder that keeps undistorted images.
        near: Near plane of all cameras, in world units.

    Raises:
        SplatrimError: a file is missing, damaged or of another shape than its camera, or nothing
            draws through a lens.
    """
    files = _files(images)
    bent = next((image for image in images if not image.lens.is_pinhole), None)
    if bent is not None and distortion == "refuse":
        raise SplatrimError(
            f"the camera of image {bent.name} has the model {bent.lens.model} with distortion, "
            f"which --distortion refuse does not allow{remedy}"
        )
    native = distortion == "native"
    panorama = next((image for image in images if image.lens.model == PANORAMA), None)
    if panorama is not None and not native:
        raise SplatrimError(
            f"the camera of image {panorama.name} has the model {PANORAMA}, and panoramas have no "
            "undistorted form: train on them as they are with --distortion native"
        )
    cameras = [
        _camera(image, file, resolution, cache, near, native)
        for image, file in zip(images, files, strict=True)
    ]
    _tell(images, files, native)
    return cameras


def resized(size: tuple[int, int], full: tuple[int, int]) -> bool:
    """Whether an image of `full` may have been resized to `size`, rounded either way.

    Equal widths with different heights, or the reverse, come from cutting and not from resizing.
    """
    if size == full:
        return True
    if size[0] == full[0] or size[1] == full[1]:
        return False
    low = max((got - 1) / want for got, want in zip(size, full, strict=True))
    high = min((got + 1) / want for got, want in zip(size, full, strict=True))
    return low < high


def _files(images: list[PosedImage]) -> list[_File]:
    """Sizes of all files; upright where only that fits, and then for all that EXIF turns."""
    sizes = [image.size or image_size(image.path, image.name) for image in images]
    files: list[_File] = []
    for image, size in zip(images, sizes, strict=True):
        full = image.lens.width, image.lens.height
        turned = (size[1], size[0])
        upright = (
            not resized(size, full)
            and resized(turned, full)
            and orientation(image.path, image.name) in (5, 6, 7, 8)
        )
        files.append(_File(turned if upright else size, upright))
    if not any(file.upright for file in files):
        return files
    # a program that turned some turned all: half turns and squares too, which fit either way
    return [
        _File(file.size, file.upright or _also_turned(image, file.size))
        for image, file in zip(images, files, strict=True)
    ]


def _also_turned(image: PosedImage, size: tuple[int, int]) -> bool:
    turn = orientation(image.path, image.name)
    return turn in (2, 3, 4) or (turn != 1 and size[0] == size[1])


def _camera(
    image: PosedImage,
    file: _File,
    resolution: int,
    cache: Path | None,
    near: float,
    native: bool,
) -> Camera:
    lens, size = image.lens, file.size
    full = lens.width, lens.height
    if not resized(size, full):
        hint = ""
        if resized((size[1], size[0]), full):
            hint = ": it lies on its side"
        raise SplatrimError(
            f"image {image.name} has the wrong size: {size[0]}x{size[1]} pixels, but its camera "
            f"says {full[0]}x{full[1]}, another shape{hint}"
        )
    undistortion = None
    shape = size
    if native:
        lens = lens.scaled(*size)
    elif not lens.is_pinhole:
        taken = lens.scaled(*size)
        undistortion = Undistortion(taken, cache)
        lens = undistorted(taken)
        shape = lens.width, lens.height
        full = (
            max(round(shape[0] * full[0] / size[0]), 1),
            max(round(shape[1] * full[1] / size[1]), 1),
        )
    camera = camera_of(image, lens, training_size(*shape, resolution))
    return dataclasses.replace(
        camera,
        original_width=full[0],
        original_height=full[1],
        file_size=size,
        near=near,
        upright=file.upright,
        undistortion=undistortion,
    )


def camera_of(image: PosedImage, lens: Lens, size: tuple[int, int]) -> Camera:
    """A camera where an image was taken, through a lens, as large as the training's images."""
    width, height = size
    sx, sy = width / lens.width, height / lens.height
    (fx, fy), (cx, cy) = lens.focal, lens.principal_point
    K = torch.tensor([[fx * sx, 0, cx * sx], [0, fy * sy, cy * sy], [0, 0, 1]], dtype=torch.float32)
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.from_numpy(image.rotation)
    viewmat[:3, 3] = torch.from_numpy(image.translation)
    return Camera(
        image.name, image.path, width, height, viewmat, K, width, height, distortion=lens.distortion
    )


def _tell(images: list[PosedImage], files: list[_File], native: bool) -> None:
    """Log what was done to the images' descriptions, once per scene."""
    scaled = [
        (image.lens, file.size)
        for image, file in zip(images, files, strict=True)
        if file.size != (image.lens.width, image.lens.height)
    ]
    if scaled:
        lens, size = scaled[0]
        logger.info(
            f"{len(scaled)} of {len(images)} images have another size than their cameras say "
            f"({size[0]}x{size[1]} for {lens.width}x{lens.height}): intrinsics follow"
        )
    bent = [image.lens.model for image in images if not image.lens.is_pinhole]
    if bent:
        done = "it is removed while they are decoded"
        if native:
            done = "they are drawn through their lenses"
        elif any("FISHEYE" in model for model in bent):
            done += "; --distortion native trains on all pixels of fisheyes"
        logger.info(f"{len(bent)} of {len(images)} images have distortion ({bent[0]}): {done}")
    upright = sum(file.upright for file in files)
    if upright:
        logger.info(f"{upright} of {len(images)} images are turned upright as EXIF says")
