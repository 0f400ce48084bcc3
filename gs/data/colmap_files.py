"""The files of a COLMAP model, binary or text: cameras, images with poses, points.

A file's counts are checked against its length record by record, so that a damaged one ends in a
sentence. Format: https://colmap.github.io/format.html. rigs and frames are not needed: images hold
their composed poses.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import SplatrimError
from .lens import BY_NAME, MODELS, Lens, parameter_count
from .pose import rotation_matrix

NO_POINT = 2**64 - 1  # id of an observation that belongs to no point


class ModelImage(NamedTuple):
    """A posed image as the model has it."""

    name: str
    camera_id: int
    rotation: NDArray[np.float64]
    """World to camera. [3, 3]"""
    translation: NDArray[np.float64]
    """[3]"""
    point_ids: NDArray[np.uint64]
    """Points that were observed in it. [K]"""


class ModelPoints(NamedTuple):
    """Points by ascending id."""

    ids: NDArray[np.uint64]
    xyz: NDArray[np.float64]
    """[M, 3]"""
    rgb: NDArray[np.float32]
    """[M, 3] in 0..1"""
    errors: NDArray[np.float64] = np.zeros(0)
    """Mean reprojection errors, pixels of the reconstruction. [M], or empty where unknown"""
    lengths: NDArray[np.int64] = np.zeros(0, np.int64)
    """Numbers of observations. [M], or empty where unknown"""


def read_cameras(path: Path) -> dict[int, Lens]:
    """Read cameras.bin or cameras.txt, by id. Raises SplatrimError for damage."""
    return _cameras_text(path) if path.suffix == ".txt" else _cameras_binary(path)


def read_images(path: Path) -> list[ModelImage]:
    """Read images.bin or images.txt, in the file's order. Raises SplatrimError for damage."""
    return _images_text(path) if path.suffix == ".txt" else _images_binary(path)


def read_points(path: Path) -> ModelPoints:
    """Read points3D.bin or points3D.txt. Raises SplatrimError for damage."""
    points = _points_text(path) if path.suffix == ".txt" else _points_binary(path)
    order = np.argsort(points.ids, kind="stable")
    ids, xyz, rgb, errors, lengths = points
    return ModelPoints(ids[order], xyz[order], rgb[order], errors[order], lengths[order])


def count_images(path: Path) -> int:
    """Number of images that images.bin or images.txt holds; 0 where it cannot be told."""
    try:
        if path.suffix == ".txt":
            return len(_images_text(path))
        with open(path, "rb") as file:
            return struct.unpack("<Q", file.read(8))[0]
    except (OSError, struct.error, SplatrimError):
        return 0


def _data(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SplatrimError(f"{path} cannot be read: {error.strerror or error}") from None


def _damaged(path: Path) -> SplatrimError:
    return SplatrimError(f"{path} is truncated or damaged: it ends before its last record")


def _cameras_binary(path: Path) -> dict[int, Lens]:
    data, cameras = _data(path), {}
    try:
        (count,) = struct.unpack_from("<Q", data, 0)
        offset = 8
        for _ in range(count):
            camera_id, model, width, height = struct.unpack_from("<IiQQ", data, offset)
            if model not in MODELS:
                raise SplatrimError(
                    f"{path} is damaged, or newer than this program: camera {camera_id} has the "
                    f"model number {model}"
                )
            name = MODELS[model][0]
            n = parameter_count(name)
            params = struct.unpack_from(f"<{n}d", data, offset + 24)
            cameras[camera_id] = Lens(name, width, height, params)
            offset += 24 + 8 * n
    except (struct.error, OverflowError):
        raise _damaged(path) from None
    return cameras


def _images_binary(path: Path) -> list[ModelImage]:
    data, images = _data(path), []
    try:
        (count,) = struct.unpack_from("<Q", data, 0)
        offset = 8
        for _ in range(count):
            # id, quaternion, translation, camera id, name with its zero byte, observations
            image_id, *pose, camera_id = struct.unpack_from("<I7dI", data, offset)
            start = offset + 64
            end = data.index(b"\0", start)
            (n_points,) = struct.unpack_from("<Q", data, end + 1)
            offset = end + 9 + 24 * n_points
            if offset > len(data):
                raise _damaged(path)
            seen = np.frombuffer(data, "<u8", 3 * n_points, end + 9)[2::3]
            name = _decode(data[start:end])
            images.append(_image(path, name or str(image_id), camera_id, pose, seen))
    except (struct.error, ValueError, OverflowError):
        raise _damaged(path) from None
    return images


def _points_binary(path: Path) -> ModelPoints:
    data = _data(path)
    starts: list[int] = []
    try:
        (count,) = struct.unpack_from("<Q", data, 0)
        offset, track_length = 8, struct.Struct("<Q").unpack_from
        if 51 * count > len(data):
            raise _damaged(path)
        # id, position, colour, error, length of the track and 8 bytes for each of its elements
        for _ in range(count):
            starts.append(offset)
            offset += 51 + 8 * track_length(data, offset + 43)[0]
    except (struct.error, OverflowError):
        raise _damaged(path) from None
    if offset > len(data):
        raise _damaged(path)
    record = np.dtype(
        [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")]
    )
    rows = np.array(starts, np.int64)[:, None] + np.arange(record.itemsize)
    table = np.frombuffer(data, np.uint8)[rows].reshape(-1).view(record)
    lengths = table["length"].astype(np.int64)
    return ModelPoints(table["id"], table["xyz"], _colors(table["rgb"]), table["error"], lengths)


def _decode(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("latin-1")


def _image(
    path: Path, name: str, camera_id: int, pose: list[float], seen: NDArray[np.uint64]
) -> ModelImage:
    """`pose` is a quaternion (w, x, y, z) and a translation, world to camera."""
    rotation = rotation_matrix(pose[:4])
    if rotation is None or not np.isfinite(pose).all():
        raise SplatrimError(f"{path}: image {name} has a pose that is not finite, or no rotation")
    translation = np.array(pose[4:], np.float64)
    return ModelImage(name, camera_id, rotation, translation, seen[seen != NO_POINT])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line, without comments; a byte order mark is dropped."""
    text = _decode(_data(path).removeprefix(b"\xef\xbb\xbf"))
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.lstrip().startswith("#"):
            yield number, line.strip()


def _wrong_line(path: Path, number: int, line: str, what: str) -> SplatrimError:
    return SplatrimError(f"{path} is damaged: line {number} is not {what}: {line[:80]!r}")


def _cameras_text(path: Path) -> dict[int, Lens]:
    cameras = {}
    for number, line in _lines(path):
        words = line.split()
        if not words:
            continue
        try:
            camera_id, (width, height) = int(words[0]), map(int, words[2:4])
            params = tuple(map(float, words[4:]))
            if words[1] not in BY_NAME or len(params) != parameter_count(words[1]):
                raise ValueError
        except (ValueError, IndexError):
            raise _wrong_line(path, number, line, "a camera") from None
        cameras[camera_id] = Lens(words[1], width, height, params)
    return cameras


def _images_text(path: Path) -> list[ModelImage]:
    images = []
    lines = list(_lines(path))
    at = 0
    while at < len(lines):
        number, line = lines[at]
        at += 1
        if not line:
            continue
        # id, quaternion, translation, camera id; the name is the rest of the line
        words = line.split(None, 9)
        try:
            pose, camera_id, name = [float(word) for word in words[1:8]], int(words[8]), words[9]
            int(words[0])
        except (ValueError, IndexError):
            raise _wrong_line(path, number, line, "an image") from None
        seen = _observations(lines[at][1]) if at < len(lines) else None
        # some writers leave out the line of observations
        at += seen is not None
        images.append(_image(path, name, camera_id, pose, _ids(seen)))
    return images


def _observations(line: str) -> list[str] | None:
    """Ids of points in a line of "x y id" triples; None where the line is no such."""
    words = line.split()
    if len(words) % 3:
        return None
    try:
        for word in words[:3]:
            float(word)
    except ValueError:
        return None
    return words[2::3]


def _ids(words: list[str] | None) -> NDArray[np.uint64]:
    digits = [word for word in words or () if word.isascii() and word.isdigit()]
    return np.array([int(word) for word in digits if len(word) < 20], np.uint64)


def _points_text(path: Path) -> ModelPoints:
    ids, xyz, rgb, errors, lengths = [], [], [], [], []
    for number, line in _lines(path):
        words = line.split(None, 8)
        if not words:
            continue
        try:
            point_id, position = int(words[0]), [float(word) for word in words[1:4]]
            color = [int(word) for word in words[4:7]]
            bytes_given = len(color) == 3 and 0 <= min(color) <= max(color) < 256
            if not bytes_given or len(position) != 3 or not 0 <= point_id < 2**64:
                raise ValueError
        except ValueError:
            raise _wrong_line(path, number, line, "a point") from None
        ids.append(point_id)
        xyz.append(position)
        rgb.append(color)
        errors.append(_number(words[7]) if len(words) > 7 else np.inf)
        lengths.append(len(words[8].split()) // 2 if len(words) > 8 else 0)
    return ModelPoints(
        np.array(ids, np.uint64),
        np.array(xyz, np.float64).reshape(-1, 3),
        _colors(np.array(rgb, np.uint8).reshape(-1, 3)),
        np.array(errors, np.float64),
        np.array(lengths, np.int64),
    )


def _number(word: str) -> float:
    """The error of a point; infinite where it is none."""
    try:
        return float(word)
    except ValueError:
        return np.inf


def _colors(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    return rgb.astype(np.float32) / np.float32(255)
