"""Scenes described by JSON: NeRF-synthetic's transforms_train.json, nerfstudio's transforms.json.

Both hold frames with a camera-to-world matrix in OpenGL axes. Intrinsics stand at the top or in a
frame, whose own count: fl_x, fl_y, cx, cy and distortion in pixels of w x h, or a field of view.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SplatrimError
from .colmap import SourceScene
from .find_images import find_images
from .image_file import image_size
from .lens import Lens
from .points import read_point_cloud
from .pose import camera_from_opengl
from .posed import PosedImage

TRAIN = "transforms_train.json"
TEST = "transforms_test.json"
SINGLE = "transforms.json"
POINT_CLOUDS = ("points3d.ply", "points3D.ply", "sparse_pc.ply", "point_cloud.ply")
# other names for the focal length and the centre, by axis
FOCAL = (("fl_x", "fx", "focal_x"), ("fl_y", "fy", "focal_y"))
MATRICES = ("K", "intrinsics", "intrinsic_matrix", "camera_intrinsics")
LISTED = "distortion_params"  # k1 to k4, p1, p2
PINHOLES = {"PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE"}
RADIAL = {"OPENCV", "FULL_OPENCV", "SIMPLE_RADIAL", "RADIAL"}
FISHEYES = {"OPENCV_FISHEYE", "FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"}
PANORAMAS = {"EQUIRECTANGULAR", "SPHERICAL", "ORTHOPHOTO"}

logger = logging.getLogger("splatrim")


def read(source: Path, images: str | None, eval: bool, *, need_points: bool) -> SourceScene:
    """Read the cameras of transforms_train.json and transforms_test.json, or of transforms.json.

    Args:
        source: The scene's folder.
        images: Folder to look for the images in, instead of that which the frames name.
        eval: Keep test images apart: those of transforms_test.json, which must be there, or those
            that transforms.json lists as such; None where it lists none, and the caller splits.
        need_points: Refuse a scene that names a point cloud which is missing.

    Raises:
        SplatrimError: a file is missing or damaged, or an image is not found.
    """
    if not (source / TRAIN).is_file():
        return _read_single(source, images, eval, need_points)
    content = _load(source / TRAIN)
    train = _read_frames(source, TRAIN, content, images)
    if eval and not (source / TEST).is_file():
        raise SplatrimError(f"{source / TEST} is missing: without it there is no test set")
    test: list[PosedImage] = []
    if (source / TEST).is_file():
        test = _read_frames(source, TEST, _load(source / TEST), images)
    xyz, rgb = _points(source, content, need_points)
    return SourceScene(*((train, test) if eval else (train + test, [])), xyz, rgb)


def _read_single(source: Path, images: str | None, eval: bool, need_points: bool) -> SourceScene:
    content = _load(source / SINGLE)
    listed = {split: _listed(source, content, split) for split in ("train", "val", "test")}
    found = _read_frames(source, SINGLE, content, images)
    names = [str(frame["file_path"]).removeprefix("./") for frame in content["frames"]]
    xyz, rgb = _points(source, content, need_points)
    order = sorted(range(len(found)), key=lambda i: found[i].name)
    held_out = listed["test"] or listed["val"]
    if not eval or not held_out:
        return SourceScene([found[i] for i in order], None if eval else [], xyz, rgb)
    test = [found[i] for i in order if names[i] in held_out]
    train = [
        found[i]
        for i in order
        if names[i] not in held_out and (names[i] in listed["train"] or not listed["train"])
    ]
    unused = len(found) - len(train) - len(test)
    if unused:
        logger.info(f"{source / SINGLE} lists {unused} of {len(found)} frames in no split")
    return SourceScene(train, test, xyz, rgb)


def _load(path: Path) -> dict[str, Any]:
    try:
        # bytes: json itself tells UTF-8 with or without a mark from UTF-16
        content: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise SplatrimError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SplatrimError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise SplatrimError(f"{path} is not a list of cameras: it holds no object")
    if "frames" not in content:
        raise SplatrimError(f"{path} lacks 'frames'")
    frames = content["frames"]
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise SplatrimError(f"{path} is not a list of cameras: its frames are no list of objects")
    for frame in frames:
        for key in ("file_path", "transform_matrix"):
            if key not in frame:
                raise SplatrimError(f"{path} lacks {key!r} in a frame")
    return content


def _listed(source: Path, content: dict[str, Any], split: str) -> set[str]:
    """File names of a split, as nerfstudio lists them; empty where it does not."""
    names = content.get(f"{split}_filenames") or []
    if not isinstance(names, list):
        raise SplatrimError(f"{source / SINGLE}: {split}_filenames is not a list")
    return {str(name).removeprefix("./") for name in names}


def _read_frames(
    source: Path, file: str, content: dict[str, Any], images: str | None
) -> list[PosedImage]:
    transforms, frames = source / file, content["frames"]
    folder = source if images is None else source / images
    if not folder.is_dir():
        raise SplatrimError(f"no such image folder: {folder}")
    names = [str(frame["file_path"]) for frame in frames]
    paths = find_images(folder, names)
    top = {key: value for key, value in content.items() if key != "frames"}
    found = []
    for frame, path in zip(frames, paths, strict=True):
        where = f"{transforms}: {frame['file_path']}"
        try:
            rotation, translation = camera_from_opengl(frame["transform_matrix"])
        except (TypeError, OverflowError):
            raise SplatrimError(f"{where} has no finite 4x4 transform_matrix") from None
        except ValueError as error:
            reason = str(error) if str(error).startswith("has ") else "has no finite 4x4 matrix"
            raise SplatrimError(f"{where} {reason}") from None
        name = os.path.normpath(path)
        name = Path(name).relative_to(source).as_posix() if path.is_relative_to(source) else name
        size = image_size(path, name)
        lens = _lens(_Numbers(where, top, frame), size)
        lens.check(where)
        found.append(PosedImage(name, path, lens, rotation, translation, size=size))
    return found


class _Numbers:
    """Looks numbers up in a frame, then at the top of its file."""

    def __init__(self, where: str, top: dict[str, Any], frame: dict[str, Any]) -> None:
        self.where, self._levels = where, (frame, top)

    def get(self, *names: str) -> float | None:
        """The number under the first of `names` that is there; a frame's own come first."""
        for level in self._levels:
            for name in names:
                if level.get(name) is not None:
                    return self._number(name, level[name])
        return None

    def text(self, name: str) -> str:
        return str(next((x[name] for x in self._levels if x.get(name) is not None), "")).upper()

    def levels(self) -> Iterator["_Numbers"]:
        """The frame alone, then the top alone."""
        for level in self._levels:
            yield _Numbers(self.where, {}, level)

    def matrix(self) -> np.ndarray | None:
        """An intrinsic matrix [3, 3]; None where there is none."""
        for level in self._levels:
            for name in MATRICES:
                if isinstance(level.get(name), list):
                    try:
                        matrix = np.array(level[name], np.float64)
                    except (TypeError, ValueError, OverflowError):
                        matrix = np.zeros(0)
                    if matrix.size in (9, 16):
                        side = math.isqrt(matrix.size)
                        return matrix.reshape(side, side)[:3, :3]
                    raise SplatrimError(f"{self.where}: {name} is not a 3x3 matrix of numbers")
        return None

    def distortion(self) -> tuple[list[float], list[float]]:
        """k1 to k6, and p1, p2."""
        k = [self.get(f"k{i}") or 0.0 for i in range(1, 7)]
        p = [self.get(f"p{i}") or 0.0 for i in (1, 2)]
        given = next((x[LISTED] for x in self._levels if x.get(LISTED) is not None), None)
        if given is None:
            return k, p
        if not isinstance(given, list) or len(given) != 6:
            raise SplatrimError(f"{self.where}: {LISTED} are not six numbers")
        values = [self._number(LISTED, value) for value in given]
        return [*values[:4], 0.0, 0.0], values[4:]

    def _number(self, name: str, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise SplatrimError(f"{self.where}: {name} is {str(value)[:40]}, expected a number")
        return number


def _lens(numbers: _Numbers, size: tuple[int, int]) -> Lens:
    """The lens of a frame; `size` is that of its file, where the frame gives none."""
    width, height = (
        size[axis]
        if (given := numbers.get("wh"[axis], ("width", "height")[axis])) is None
        else round(given)
        for axis in (0, 1)
    )
    pinhole = _pinhole(numbers, width, height)
    model = numbers.text("camera_model")
    if model in PANORAMAS:
        raise SplatrimError(
            f"{numbers.where} has the camera_model {model}, which is not read: "
            "cut panoramas into perspective images first"
        )
    k, p = numbers.distortion()
    if model in FISHEYES or numbers.text("is_fisheye") == "TRUE":
        return Lens("OPENCV_FISHEYE", width, height, (*pinhole, *k[:4]))
    if model and model not in PINHOLES | RADIAL:
        raise SplatrimError(f"{numbers.where} has the camera_model {model[:40]}, which is not read")
    if model in PINHOLES or not any((*k, *p)):
        return Lens("PINHOLE", width, height, pinhole)
    if any(k[2:]):
        return Lens("FULL_OPENCV", width, height, (*pinhole, *k[:2], *p, *k[2:]))
    return Lens("OPENCV", width, height, (*pinhole, *k[:2], *p))


def _pinhole(numbers: _Numbers, width: int, height: int) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in pixels; a focal length of one axis serves for both where it is alone."""
    cx, cy = numbers.get("cx"), numbers.get("cy")
    cx, cy = width / 2 if cx is None else cx, height / 2 if cy is None else cy
    for level in numbers.levels():
        found = [_axis_focal(level, axis, (width, height)[axis]) for axis in (0, 1)]
        fx = found[1] if found[0] is None else found[0]
        fy = found[0] if found[1] is None else found[1]
        if fx is not None and fy is not None:
            return fx, fy, cx, cy
        matrix = level.matrix()
        if matrix is not None:
            return tuple(float(matrix[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2)))  # pyright: ignore[reportReturnType]
    raise SplatrimError(f"{numbers.where} lacks 'camera_angle_x' or 'fl_x': its lens is unknown")


def _axis_focal(numbers: _Numbers, axis: int, size: int) -> float | None:
    focal = numbers.get(*FOCAL[axis], *(("focal", "focal_length") if axis == 0 else ()))
    if focal is not None:
        return focal
    name = f"camera_angle_{'xy'[axis]}"
    angle = numbers.get(name)
    if angle is None:
        degrees = numbers.get(f"{'xy'[axis]}_fov")
        angle = None if degrees is None else math.radians(degrees)
    if angle is None:
        return None
    if not 0 < angle < math.pi:
        raise SplatrimError(f"{numbers.where}: {name} is {angle}, expected radians in 0..pi")
    return size / (2 * math.tan(angle / 2))


def _points(
    source: Path, content: dict[str, Any], needed: bool
) -> tuple[np.ndarray, np.ndarray]:  # [M, 3] float64, [M, 3] float32
    """The point cloud that the description names, or that lies beside it; none: 0 rows."""
    named = content.get("ply_file_path")
    if named:
        path = source / str(named).replace("\\", "/")
        if not needed:
            path = None
        elif not os.path.isfile(path):
            raise SplatrimError(
                f"{source}: ply_file_path names {path}, which is missing: "
                "start from random points with --init_points 100000"
            )
    else:
        path = next((source / name for name in POINT_CLOUDS if (source / name).is_file()), None)
    if path is None:
        return np.zeros((0, 3)), np.zeros((0, 3), np.float32)
    logger.info(f"starting points are those of {path}")
    return read_point_cloud(path)
