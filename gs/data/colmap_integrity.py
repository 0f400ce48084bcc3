"""Is a binary COLMAP file complete?

COLMAP's reader does not notice the end of a file: a truncated one yields made-up counts, and with
them invented cameras or endless allocation. So the lengths of the records are walked first; what
they contain is left to pycolmap. Format: https://colmap.github.io/format.html
"""

import struct
from collections.abc import Callable
from pathlib import Path

import pycolmap

POSE = 7 * 8  # a quaternion and a translation


def is_complete(path: Path) -> bool:
    """Whether cameras.bin, images.bin, points3D.bin, rigs.bin or frames.bin holds all it counts."""
    data = path.read_bytes()
    try:
        (count,) = struct.unpack_from("<Q", data, 0)
        offset = 8
        end_of_record = _RECORDS[path.name]
        for _ in range(count):
            offset = end_of_record(data, offset)
            if offset > len(data):
                return False
    except (struct.error, ValueError):
        return False
    return True


def _camera(data: bytes, offset: int) -> int:
    # id, model, width, height, parameters
    (model,) = struct.unpack_from("<i", data, offset + 4)
    camera = pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId(model), 1.0, 1, 1)
    return offset + 24 + 8 * len(camera.params)


def _image(data: bytes, offset: int) -> int:
    # id, pose, camera id, name with its zero byte, points (x, y, point id)
    name_end = data.index(b"\0", offset + 4 + POSE + 4)
    (n_points,) = struct.unpack_from("<Q", data, name_end + 1)
    return name_end + 9 + 24 * n_points


def _point(data: bytes, offset: int) -> int:
    # id, position, colour, error, track (image id, point index)
    (n_track,) = struct.unpack_from("<Q", data, offset + 43)
    return offset + 51 + 8 * n_track


def _rig(data: bytes, offset: int) -> int:
    # id, reference sensor, then sensors with an optional pose
    (n_sensors,) = struct.unpack_from("<I", data, offset + 4)
    offset += 8 + (8 if n_sensors else 0)
    for _ in range(n_sensors - 1):
        (has_pose,) = struct.unpack_from("<?", data, offset + 8)
        offset += 9 + (POSE if has_pose else 0)
    return offset


def _frame(data: bytes, offset: int) -> int:
    # id, rig id, pose, data (sensor, id)
    (n_data,) = struct.unpack_from("<I", data, offset + 8 + POSE)
    return offset + 12 + POSE + 16 * n_data


_RECORDS: dict[str, Callable[[bytes, int], int]] = {
    "cameras.bin": _camera,
    "images.bin": _image,
    "points3D.bin": _point,
    "rigs.bin": _rig,
    "frames.bin": _frame,
}
