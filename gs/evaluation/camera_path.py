"""Cameras along a path: round the scene, through its views, or through those of a file.

Between key cameras, positions and quaternions go along a Catmull-Rom spline (Catmull and Rom 1974):

    p(t) = 1/2 (2 p1 + (p2 - p0) t + (2 p0 - 5 p1 + 4 p2 - p3) t^2 + (3 p1 - p0 - 3 p2 + p3) t^3)

which passes through its keys without a jolt; quaternions are normalised afterwards. The orbit's
centre is the point nearest to all optical axes, by least squares; its height, distance and axis are
those of the views.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.camera import NEAR_PLANE, Camera
from ..data.pose import camera_from_opengl, rotation_matrix
from ..errors import SplatrimError
from ..files import read_json
from ..schema import Mismatch, anything, fields, integer, listed, number, text

CAMERAS = "cameras.json"
RING = 8  # cameras about a model of which no scene is known

Matrix = NDArray[np.float64]

FRAMES_PER_KEY = 15  # of `interpolate`: more keys than that make the camera hurry
FEWEST_KEYS = 8  # so that a short flight still goes where the views are
CORE = 0.7  # share of Gaussians that `around` looks at: backgrounds are far
DISTANCE, LIFT, NEAR_SHARE = 2.0, 0.4, 0.02  # of its cameras, in sizes of that core
PARALLEL = 1e-3  # of axes: below, no point is nearest to all of them

_VECTOR = listed(number())
_CAMERAS = listed(
    fields(
        {
            "position": _VECTOR,
            "rotation": listed(_VECTOR),
            "width": integer(1),
            "height": integer(1),
            "fx": number(0),
            "fy": number(0),
            "cx": number(),
            "cy": number(),
            "near": number(0),
            "img_name": text,
        },
        needs=("position", "rotation", "width", "height", "fx", "fy"),
    )
)
_PATH = fields(
    {
        "camera_path": listed(
            fields({"camera_to_world": anything, "fov": number(0, 180)}, needs=("camera_to_world",))
        ),
        "render_width": integer(1),
        "render_height": integer(1),
    },
    needs=("camera_path",),
)


def orbit(views: Sequence[Camera], n: int) -> list[Camera]:
    """One round about what the views look at, at their median height and distance.

    Args:
        views: Cameras of the scene; the first gives size and lens.
        n: Number of cameras, evenly apart; the last is one step before the first.

    Raises:
        SplatrimError: there is no view.
    """
    poses = np.stack([_pose(view) for view in _some(views)])
    centres, turns = poses[:, :3, 3], poses[:, :3, :3]
    up = -turns[:, :, 1].mean(axis=0)  # a camera's y points down
    up = up / max(float(np.linalg.norm(up)), 1e-12)
    focus = _focus(centres, turns[:, :, 2])
    offsets = centres - focus
    height = float(np.median(offsets @ up))
    flat = offsets - (offsets @ up)[:, None] * up
    radius = float(np.median(np.linalg.norm(flat, axis=1)))
    # begins where the first view stands
    along = flat[0] if np.linalg.norm(flat[0]) > 1e-9 else np.cross(up, turns[0, :, 0])
    x = along / np.linalg.norm(along)
    y = np.cross(up, x)
    cameras = []
    for angle in 2 * math.pi * np.arange(n) / n:
        centre = focus + radius * (math.cos(angle) * x + math.sin(angle) * y) + height * up
        cameras.append(_placed(views[0], _looking_at(centre, focus, up)))
    return cameras


def interpolate(keys: Sequence[Camera], n: int, *, every: bool = False) -> list[Camera]:
    """A smooth flight through cameras, from the first to the last.

    Args:
        keys: The cameras, in the order of the flight; the first gives size and lens.
        n: Number of cameras of the flight.
        every: Whether it passes each of the keys; else so many of them, evenly chosen, that there
            are FRAMES_PER_KEY cameras for each, and FEWEST_KEYS at least.

    Raises:
        SplatrimError: there is no key.
    """
    keys = _some(keys)
    if not every:
        count = min(len(keys), max(n // FRAMES_PER_KEY, FEWEST_KEYS))
        keys = [keys[round(i * (len(keys) - 1) / max(count - 1, 1))] for i in range(count)]
    poses = [_pose(key) for key in keys]
    quats = np.stack([_quaternion(pose[:3, :3]) for pose in poses])
    for i in range(1, len(quats)):  # the shorter way round
        if quats[i] @ quats[i - 1] < 0:
            quats[i] *= -1
    knots = np.concatenate([np.stack([pose[:3, 3] for pose in poses]), quats], axis=1)
    cameras = []
    for at in np.linspace(0, len(keys) - 1, n):
        value = _spline(knots, float(at))
        turn = rotation_matrix(value[3:].tolist())
        pose = np.eye(4)
        pose[:3, :3] = poses[round(at)][:3, :3] if turn is None else turn
        pose[:3, 3] = value[:3]
        cameras.append(_placed(keys[0], pose))
    return cameras


def cameras_for(file: Path, means: Tensor) -> list[Camera]:
    """Cameras to look at a file of Gaussians from: those of the run whose folder it is in, at most
    three folders above it, by cameras.json; else a ring (`around`).

    Args:
        file: The file.
        means: Positions of its Gaussians. [N, 3]

    Raises:
        SplatrimError: that cameras.json is broken.
    """
    folders = file.absolute().parents[:3]
    known = next((path for f in folders if (path := f / CAMERAS).is_file()), None)
    if known is None:
        return around(means, RING)
    cameras = read_keys(known)
    return cameras or around(means, RING)


def around(means: Tensor, n: int, width: int = 800, height: int = 600) -> list[Camera]:
    """A ring of cameras for a model of which no scene is known, y down as COLMAP's cameras have it.

    Args:
        means: Positions of its Gaussians. [N, 3]
        n: Number of cameras.
        width: Pixels.
        height: Pixels.
    """
    points = means.detach().cpu().double().numpy()
    focus = np.median(points, axis=0)
    size = float(np.quantile(np.linalg.norm(points - focus, axis=1), CORE))
    K = torch.tensor([[width, 0.0, width / 2], [0.0, width, height / 2], [0.0, 0.0, 1.0]])
    like = Camera("", None, width, height, torch.eye(4), K, width, height, near=NEAR_SHARE * size)
    cameras = []
    for i, angle in enumerate(2 * math.pi * np.arange(n) / n):
        away = np.array([math.sin(angle), -LIFT, -math.cos(angle)])
        pose = _looking_at(focus + DISTANCE * size * away, focus, np.array([0.0, -1.0, 0.0]))
        cameras.append(replace(_placed(like, pose), image_name=f"view {i + 1}"))
    return cameras


def read_path(path: Path, n: int, near: float) -> list[Camera]:
    """The cameras of a file.

    Args:
        path: A camera path of nerfstudio, whose cameras are the frames, or cameras in the layout of
            a run's cameras.json, which a flight passes in their order.
        n: Number of cameras of that flight.
        near: Depth of the near plane.

    Raises:
        SplatrimError: no such file, neither of the two, or it has no camera.
    """
    data = read_json(path)
    if isinstance(data, list):
        keys = read_keys(path, near)
        if not keys:
            raise SplatrimError(f"{path}: there is no camera for a path to begin with")
        return interpolate(keys, n, every=True)
    try:
        _PATH(data, "")
        width, height = data.get("render_width", 1280), data.get("render_height", 720)
        return _some([_of_nerfstudio(entry, width, height, near) for entry in data["camera_path"]])
    except SplatrimError as error:
        raise SplatrimError(f"{path}: {error}") from error
    except Mismatch as error:
        raise SplatrimError(f"{path} is no camera path: {error}") from error
    except ValueError as error:
        raise SplatrimError(f"{path} has a camera that {error}") from error


def read_keys(path: Path, near: float | None = None) -> list[Camera]:
    """The cameras of a cameras.json, in its order.

    Args:
        path: The file.
        near: Depth of the near plane; None: what the file says, else the published one.

    Raises:
        SplatrimError: no such file, or it is broken.
    """
    data = read_json(path)
    try:
        _CAMERAS(data, "")
        return [
            _camera_of(entry, entry.get("near", NEAR_PLANE) if near is None else near)
            for entry in data
        ]
    except Mismatch as error:
        raise SplatrimError(f"{path} is no camera path: {error}") from error
    except ValueError as error:
        raise SplatrimError(f"{path} has a camera that {error}") from error


def _camera_of(entry: dict[str, Any], near: float) -> Camera:
    """A camera of cameras.json. Raises ValueError, the end of a sentence."""
    turn, centre = np.array(entry["rotation"], np.float64), np.array(entry["position"], np.float64)
    if turn.shape != (3, 3) or centre.shape != (3,) or abs(np.linalg.det(turn) - 1) > 0.01:
        raise ValueError(f"is not placed by a rotation and a position: {json.dumps(entry)[:80]}")
    width, height = entry["width"], entry["height"]
    cx, cy = entry.get("cx", width / 2), entry.get("cy", height / 2)
    K = torch.tensor([[entry["fx"], 0.0, cx], [0.0, entry["fy"], cy], [0.0, 0.0, 1.0]])
    camera = Camera("", None, width, height, torch.eye(4), K.float(), width, height, near=near)
    return replace(_placed(camera, _matrix(turn, centre)), image_name=entry.get("img_name", ""))


def resized(cameras: Sequence[Camera], width: int | None) -> list[Camera]:
    """Cameras `width` pixels wide, of the same shape; sides become even, as video wants them.

    None keeps their size, but for the last column or row of an odd one.
    """
    found = []
    for camera in cameras:
        factor = 1.0 if width is None else width / camera.width
        wide = max(2 * (round(camera.width * factor) // 2), 2)
        high = max(2 * (round(camera.height * factor) // 2), 2)
        K = camera.K.clone()
        K[:2] *= factor
        found.append(replace(camera, width=wide, height=high, K=K))
    return found


def _of_nerfstudio(entry: dict[str, Any], width: int, height: int, near: float) -> Camera:
    matrix = np.array(entry["camera_to_world"], np.float64)
    turn, shift = camera_from_opengl(matrix.reshape(4, 4) if matrix.size == 16 else matrix)
    focal = height / (2 * math.tan(math.radians(entry.get("fov", 50.0)) / 2))
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    viewmat = torch.from_numpy(_matrix(turn, shift)).float()
    return Camera("", None, width, height, viewmat, K, width, height, near=near)


def _some(cameras: Sequence[Camera]) -> list[Camera]:
    if not cameras:
        raise SplatrimError("there is no camera for a path to begin with")
    return list(cameras)


def _matrix(turn: Matrix, shift: Matrix) -> Matrix:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, shift
    return matrix


def _pose(camera: Camera) -> Matrix:  # [4, 4], camera to world
    return np.linalg.inv(camera.viewmat.double().numpy())


def _placed(like: Camera, pose: Matrix) -> Camera:
    """A camera with the focal lengths of another, no distortion and no image."""
    viewmat = torch.from_numpy(np.linalg.inv(pose)).float()
    none = {"image_path": None, "undistortion": None, "distortion": None}
    return replace(like, image_name="", viewmat=viewmat, **none)


def _focus(centres: Matrix, axes: Matrix) -> Matrix:  # [C, 3] twice -> [3]
    """The point nearest to all optical axes; where they are parallel, one before the views."""
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # [C, 3, 3]
    total = across.sum(axis=0)
    if np.linalg.eigvalsh(total)[0] < PARALLEL * len(axes):
        spread = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()
        return centres.mean(axis=0) + max(float(spread), 1.0) * axes.mean(axis=0)
    return np.linalg.solve(total, (across @ centres[:, :, None]).sum(axis=0))[:, 0]


def _looking_at(centre: Matrix, target: Matrix, up: Matrix) -> Matrix:  # [4, 4]
    """Camera to world, OpenCV axes."""
    z = target - centre
    z = z / max(float(np.linalg.norm(z)), 1e-12)
    x = np.cross(z, up)
    if np.linalg.norm(x) < 1e-6:  # from right above
        x = np.cross(z, np.roll(up, 1))
    x = x / np.linalg.norm(x)
    turn = np.stack([x, np.cross(z, x), z], axis=1).astype(np.float64)
    return _matrix(turn, centre)


def _quaternion(turn: Matrix) -> Matrix:  # [3, 3] -> [4], w x y z
    """Of a rotation: the eigenvector to the largest eigenvalue (Bar-Itzhack 2000)."""
    (a, b, c), (d, e, f), (g, h, i) = turn.tolist()
    K = np.array(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ]
    )
    return np.linalg.eigh(K)[1][:, -1]


def _spline(knots: Matrix, at: float) -> Matrix:  # [M, D] -> [D]
    last = len(knots) - 1
    first = min(int(at), max(last - 1, 0))
    p0, p1, p2, p3 = (knots[min(max(first + i, 0), last)] for i in (-1, 0, 1, 2))
    t = at - first
    bends = (2 * p0 - 5 * p1 + 4 * p2 - p3) * t + (3 * p1 - p0 - 3 * p2 + p3) * t**2
    return 0.5 * (2 * p1 + (p2 - p0) * t + bends * t)
