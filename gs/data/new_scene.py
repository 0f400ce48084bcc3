"""Writing a COLMAP scene: its folder appears once everything in it is written."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from numpy import ndarray

from ..errors import SplatrimError
from .lens import Lens


def check_new(folder: Path) -> None:
    """Raise SplatrimError where a folder holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SplatrimError(f"{folder} is there already and not empty: choose another folder")


@contextlib.contextmanager
def new_scene(folder: Path) -> Iterator[Path]:
    """A place with images/ and sparse/0/ that becomes `folder` when the block ends without error.

    Raises:
        SplatrimError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            part = scratch / "scene"
            (part / "images").mkdir(parents=True)
            (part / "sparse" / "0").mkdir(parents=True)
            yield part
            part.replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise SplatrimError(f"cannot write {folder}: {error.strerror}") from None


def write_model(
    part: Path,
    lens: Lens,
    names: list[str],
    poses: list[ndarray],  # [3, 4] each, world to camera
    xyz: ndarray,  # [M, 3]
    rgb: ndarray,  # [M, 3] uint8
) -> None:
    """Write sparse/0 of a scene whose images have one lens."""
    # half a second that a run on any other scene does not need
    import pycolmap

    camera = pycolmap.Camera(
        model=lens.model, width=lens.width, height=lens.height, params=lens.params, camera_id=1
    )
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    for index, (name, pose) in enumerate(zip(names, poses, strict=True), start=1):
        image = pycolmap.Image(name=name, camera_id=camera.camera_id, image_id=index)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
    for point, color in zip(xyz, rgb, strict=True):
        model.add_point3D(point, pycolmap.Track(), color)
    model.write_binary(str(part / "sparse" / "0"))
