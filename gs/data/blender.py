"""Scenes in the layout of NeRF-synthetic: transforms_train.json, transforms_test.json."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from ..errors import SplatrimError
from .camera import Camera
from .image_file import image_size
from .resolution import training_size

TRAIN = "transforms_train.json"
TEST = "transforms_test.json"


def read(
    source: Path,
    resolution: int,
    eval: bool,
) -> tuple[list[Camera], list[Camera]]:
    """Read the train and the test cameras; without `eval` the test cameras are train cameras.

    Args:
        source: The scene's folder.
        resolution: As `-r`, see `training_size`.
        eval: Keep the cameras of transforms_test.json apart; the file must be there then.
    """
    train = _read_file(source, TRAIN, resolution)
    if eval and not (source / TEST).is_file():
        raise SplatrimError(f"{source / TEST} is missing: without it there is no test set")
    test = _read_file(source, TEST, resolution) if (source / TEST).is_file() else []
    return (train, test) if eval else (train + test, [])


def _read_file(source: Path, name: str, resolution: int) -> list[Camera]:
    path = source / name
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SplatrimError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SplatrimError(f"{path} is not valid JSON: {error}") from None
    try:
        angle = float(content["camera_angle_x"])
        frames = [
            (str(frame["file_path"]), torch.tensor(frame["transform_matrix"], dtype=torch.float64))
            for frame in content["frames"]
        ]
    except KeyError as error:
        raise SplatrimError(f"{path} lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise SplatrimError(f"{path} is not a list of cameras: {error}") from None
    if not 0 < angle < math.pi:
        raise SplatrimError(f"{path}: camera_angle_x is {angle}, expected radians in 0..pi")
    return [_camera(source, path, *frame, angle, resolution) for frame in frames]


def _camera(
    source: Path,
    transforms: Path,
    file_path: str,
    camera_to_world: torch.Tensor,  # [4, 4] OpenGL axes
    angle: float,
    resolution: int,
) -> Camera:
    path = source / file_path
    if not path.is_file():
        path = source / f"{file_path}.png"
    name = path.relative_to(source).as_posix() if path.is_relative_to(source) else file_path
    full = image_size(path, name)
    if camera_to_world.shape != (4, 4) or not torch.isfinite(camera_to_world).all():
        raise SplatrimError(f"{transforms}: {file_path} has no finite 4x4 transform_matrix")
    if camera_to_world[:3, :3].det().abs() < 1e-12:
        raise SplatrimError(f"{transforms}: the transform_matrix of {file_path} has no inverse")
    # OpenGL looks along -z with y up, OpenCV along +z with y down.
    camera_to_world = camera_to_world * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    viewmat = torch.linalg.inv(camera_to_world)

    width, height = training_size(*full, resolution)
    focal = full[0] / (2 * math.tan(angle / 2))
    K = torch.tensor(
        [
            [focal * width / full[0], 0, width / 2],
            [0, focal * height / full[1], height / 2],
            [0, 0, 1],
        ],
        dtype=torch.float32,
    )
    return Camera(name, path, width, height, viewmat.float(), K, *full, file_size=full)
