"""Scenes that COLMAP reconstructed, read through pycolmap."""

import re
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pycolmap
import torch
from torch import Tensor

from ..errors import SplatrimError
from .camera import Camera
from .colmap_integrity import is_complete
from .image_file import check_size, image_size
from .resolution import training_size

MODELS = ("PINHOLE", "SIMPLE_PINHOLE")
NEEDED = ("cameras", "images")
OPTIONAL = ("points3D", "rigs", "frames")


def find_model(source: Path) -> Path | None:
    """The folder of the sparse model, sparse/0 or sparse; None where there is neither."""
    for folder in (source / "sparse" / "0", source / "sparse"):
        if any((folder / f"{name}.{end}").is_file() for name in NEEDED for end in ("bin", "txt")):
            return folder
    return None


def read(
    source: Path,
    model: Path,
    images: str | None,
    resolution: int,
) -> tuple[list[Camera], Tensor, Tensor]:  # cameras, points [M, 3], colors [M, 3] in 0..1
    """Read all posed images of a sparse model, and its points (none where the file is missing).

    The points are those with finite coordinates, by ascending id.

    Args:
        source: The scene's folder.
        model: The folder of the sparse model.
        images: Name of the image folder; default "images". "images_N": N times smaller.
        resolution: As `-r`, see `training_size`.
    """
    reconstruction = _read_model(model)
    folder = source / (images or "images")
    if not folder.is_dir():
        raise SplatrimError(f"no such image folder: {folder}")
    posed = [image for image in reconstruction.images.values() if image.has_pose]
    if not posed:
        raise SplatrimError(f"{model} holds no image with a pose")
    for camera_id in sorted({image.camera_id for image in posed}):
        _check_camera(reconstruction.cameras[camera_id], camera_id, source, model)
    posed.sort(key=lambda image: image.name)
    cameras = [
        _camera(image, reconstruction.cameras[image.camera_id], folder, resolution)
        for image in posed
    ]

    points = [reconstruction.points3D[i] for i in sorted(reconstruction.points3D)]
    xyz = np.array([point.xyz for point in points], dtype=np.float32).reshape(-1, 3)
    rgb = np.array([point.color for point in points], dtype=np.float32).reshape(-1, 3) / 255
    finite = np.isfinite(xyz).all(axis=1)
    return cameras, torch.from_numpy(xyz[finite]), torch.from_numpy(rgb[finite])


def _read_model(model: Path) -> pycolmap.Reconstruction:
    """Read cameras, images and points; binary where both of the first are, otherwise text."""
    missing = {
        end: [name for name in NEEDED if not (model / f"{name}.{end}").is_file()]
        for end in ("bin", "txt")
    }
    end = min(missing, key=lambda end: len(missing[end]))
    if missing[end]:
        raise SplatrimError(f"{model} is incomplete: {missing[end][0]}.{end} is missing")
    files = [model / f"{name}.{end}" for name in (*NEEDED, *OPTIONAL)]
    files = [path for path in files if path.is_file()]
    for path in files:
        if end == "bin" and not is_complete(path):
            raise SplatrimError(f"{path} is truncated or damaged: it ends before its last record")

    try:
        with _quiet(), tempfile.TemporaryDirectory() as scratch:
            folder = model
            if model / f"points3D.{end}" not in files:
                # pycolmap insists on the file; none means no points, and the caller decides.
                folder = Path(scratch)
                for path in files:
                    shutil.copy(path, folder / path.name)
                (folder / f"points3D.{end}").write_bytes(bytes(8) if end == "bin" else b"")
            reconstruction = pycolmap.Reconstruction()
            if end == "bin":
                reconstruction.read_binary(str(folder))
            else:
                reconstruction.read_text(str(folder))
            return reconstruction
    except (RuntimeError, ValueError, LookupError, MemoryError, OSError) as error:
        reason = textwrap.shorten(re.sub(r"^\[[^]]*\] *", "", str(error)), 160, placeholder=" ...")
        raise SplatrimError(f"{model} is damaged, COLMAP cannot read it: {reason}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep COLMAP's own log off the terminal: its errors come as exceptions too."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before


def _check_camera(camera: pycolmap.Camera, camera_id: int, source: Path, model: Path) -> None:
    name = camera.model_name
    if name not in MODELS:
        raise SplatrimError(
            f"camera {camera_id} in {model} has the model {name}, and only {' and '.join(MODELS)} "
            f"are read: undistort the images with `colmap image_undistorter --image_path "
            f"{source / 'images'} --input_path {model} --output_path {source}_undistorted`"
        )
    numbers = [*camera.params, camera.width, camera.height]
    focal = min(camera.focal_length_x, camera.focal_length_y)
    if not np.isfinite(numbers).all() or min(focal, camera.width, camera.height) <= 0:
        raise SplatrimError(
            f"camera {camera_id} in {model} is damaged: {camera.width}x{camera.height} pixels "
            f"with the parameters {list(camera.params)}"
        )


def _camera(
    image: pycolmap.Image, camera: pycolmap.Camera, folder: Path, resolution: int
) -> Camera:
    path = folder / image.name
    size = image_size(path, image.name)
    full = (camera.width, camera.height)
    divided = re.fullmatch(r"images_(\d+)", folder.name)
    factor = max(int(divided.group(1)), 1) if divided else 1
    # Tools differ in how they round an image that they shrink.
    near = all(abs(got - want / factor) <= 1 for got, want in zip(size, full, strict=True))
    if factor == 1 or not near:
        check_size(image.name, size, (full[0] // factor, full[1] // factor))

    width, height = training_size(*size, resolution)
    cx, cy = camera.principal_point_x, camera.principal_point_y
    # 3DGS's rule: an implausible principal point means the file did not mean it.
    if not (0.3 < cx / full[0] < 0.7 and 0.3 < cy / full[1] < 0.7):
        cx, cy = full[0] / 2, full[1] / 2
    sx, sy = width / full[0], height / full[1]
    K = torch.tensor(
        [
            [camera.focal_length_x * sx, 0, cx * sx],
            [0, camera.focal_length_y * sy, cy * sy],
            [0, 0, 1],
        ],
        dtype=torch.float32,
    )
    viewmat = torch.eye(4)
    viewmat[:3] = torch.from_numpy(image.cam_from_world().matrix()).float()
    if not torch.isfinite(viewmat).all():
        raise SplatrimError(f"image {image.name} has a pose that is not finite")
    return Camera(image.name, path, width, height, viewmat, K, *full, file_size=size)
