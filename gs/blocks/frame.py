"""The ground of a scene: its up axis, and two axes on the ground along which it is cut.

A survey has no common "up" of its cameras: a drone that turns round at the end of each strip and
looks down points its image's upper edge everywhere, and the mean of that is noise. So up is

    the cameras' mean up axis, if it is longer than 0.5 (all agree: hand-held, a car, an orbit)
        and does not lie in the plane of flat points (a drone that never turns)
    else the reverse of their mean viewing direction, if that is longer than 0.7 (they look down)
    else the normal of the points' plane, towards the cameras

The first axis on the ground is the one along which the points extend most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.camera import Camera
from ..errors import SplatrimError

UP_LENGTH = 0.5  # of the mean of unit vectors; random ones of 75 cameras have 0.1
VIEW_LENGTH = 0.7
CENTRAL = (2.5, 97.5)  # percentiles per axis: outliers of a reconstruction are far away
FLAT = 0.1  # smallest over middle deviation of points on a plane
IN_PLANE = 0.5  # cosine between an up axis and the normal of flat points
SAMPLE = 200_000  # points that are looked at

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Frame:
    """A rotation into ground coordinates (along, across, up), in units of the scene."""

    axes: tuple[Vector, Vector, Vector]
    """Rows of the rotation: two unit vectors on the ground, and up."""
    origin: Vector
    """Where ground coordinates are zero."""
    found_by: str
    """ "camera up", "viewing direction", "plane of the points" or "given"."""

    def to_ground(self, points: Tensor) -> Tensor:  # [N, 3] -> [N, 3] float64
        """Ground coordinates of points, on their device."""
        shifted = points.double() - torch.tensor(self.origin, dtype=torch.float64).to(points.device)
        x, y, z = shifted.unbind(1)
        return torch.stack([x * a + y * b + z * c for a, b, c in self.axes], dim=1)

    def to_world(self, ground: Tensor) -> Tensor:  # [N, 3] -> [N, 3] float64
        """The inverse of `to_ground`."""
        axes = torch.tensor(self.axes, dtype=torch.float64, device=ground.device)
        origin = torch.tensor(self.origin, dtype=torch.float64, device=ground.device)
        return ground.double() @ axes + origin


def find_frame(
    cameras: Sequence[Camera],
    points: Tensor,  # [N, 3]
    up: Vector | None = None,
) -> Frame:
    """Find the ground as the module's docstring says.

    Args:
        cameras: The training cameras, at least one.
        points: Starting points; those that are not finite are not looked at. [N, 3]
        up: The up axis, where the user knows it; any length.

    Raises:
        SplatrimError: `up` is not a direction.
    """
    xyz = points[:: len(points) // SAMPLE + 1].double().cpu().numpy()
    xyz = xyz[np.isfinite(xyz).all(axis=1)]
    centres = np.stack([camera.position.double().numpy() for camera in cameras])
    core = _central(xyz if len(xyz) else centres)
    origin = core.mean(axis=0)
    deviations, principal = _principal_axes(core - origin)
    above = (centres - origin).mean(axis=0)
    direction, found_by = _given(up) if up is not None else _up(cameras, deviations, principal)
    if found_by == "plane of the points" and above @ direction < 0:
        direction = -direction
    axes = _ground_axes(direction, core - origin)
    return Frame((_vector(axes[0]), _vector(axes[1]), _vector(axes[2])), _vector(origin), found_by)


def _up(
    cameras: Sequence[Camera],
    deviations: NDArray[np.float64],  # [3], ascending
    principal: NDArray[np.float64],  # [3, 3], rows
) -> tuple[NDArray[np.float64], str]:
    """A unit vector, and where it comes from; that of a plane may point either way."""
    rotations = np.stack([camera.viewmat[:3, :3].double().numpy() for camera in cameras])
    up, view = -rotations[:, 1].mean(axis=0), rotations[:, 2].mean(axis=0)
    length, view_length = float(np.linalg.norm(up)), float(np.linalg.norm(view))
    normal = principal[0]
    is_flat = deviations[0] < FLAT * deviations[1]
    lies_in_plane = is_flat and abs(up @ normal) < IN_PLANE * length
    if length > UP_LENGTH and not lies_in_plane:
        return up / length, "camera up"
    if view_length > VIEW_LENGTH:
        return -view / view_length, "viewing direction"
    return normal, "plane of the points"


def _given(up: Vector) -> tuple[NDArray[np.float64], str]:
    direction = np.array(up, np.float64)
    length = float(np.linalg.norm(direction))
    if direction.shape != (3,) or not 1e-12 < length < 1e12:
        raise SplatrimError(f"--up {' '.join(f'{x:g}' for x in up)} is not a direction")
    return direction / length, "given"


def _central(points: NDArray[np.float64]) -> NDArray[np.float64]:  # [M, 3] -> [K, 3], K > 0
    low, high = np.percentile(points, CENTRAL, axis=0)
    core = points[((points >= low) & (points <= high)).all(axis=1)]
    return core if len(core) else np.median(points, axis=0, keepdims=True)


def _principal_axes(
    centred: NDArray[np.float64],  # [M, K]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # [K], [K, K]
    """Standard deviations, ascending, and their unit axes as rows."""
    scale = np.abs(centred).max() or 1.0
    unit = centred / scale
    variances, columns = np.linalg.eigh(unit.T @ unit / len(unit))
    return np.sqrt(np.maximum(variances, 0)) * scale, columns.T


def _ground_axes(
    up: NDArray[np.float64],  # [3], unit
    centred: NDArray[np.float64],  # [M, 3]
) -> NDArray[np.float64]:  # [3, 3]
    """A right-handed rotation whose last row is `up` and whose first is where points extend."""
    helper = np.eye(3)[np.abs(up).argmin()]
    a = np.cross(helper, up)
    a /= np.linalg.norm(a)
    b = np.cross(up, a)
    along = _principal_axes(centred @ np.stack([a, b], axis=1))[1][1]
    # a sign of its own, so that it does not depend on the library that finds eigenvectors
    along *= np.sign(along[np.abs(along).argmax()])
    first = along[0] * a + along[1] * b
    return np.stack([first, np.cross(up, first), up])


def _vector(x: NDArray[np.float64]) -> Vector:
    return float(x[0]), float(x[1]), float(x[2])
