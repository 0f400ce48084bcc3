"""Rotations from what files hold: quaternions and camera-to-world matrices."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

SKEW = 1e-2  # of a matrix over its scale: more is no rotation


def rotation_matrix(quaternion: Sequence[float]) -> NDArray[np.float64] | None:  # [3, 3]
    """The rotation of a quaternion (w, x, y, z) of any norm; None where it has none."""
    q = np.array(quaternion, np.float64)
    largest = np.abs(q).max()
    if not 0 < largest < np.inf:  # NaN too
        return None
    w, x, y, z = (q / largest / np.linalg.norm(q / largest)).tolist()
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def camera_from_opengl(
    camera_to_world: ArrayLike,  # [4, 4] or [3, 4]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # [3, 3], [3]
    """Rotation and translation, world to camera in OpenCV axes, of a matrix in OpenGL axes.

    A matrix that scales its axes equally keeps its position and loses the scale.

    Raises:
        ValueError: what the matrix is not, as the end of a sentence.
    """
    matrix = np.array(camera_to_world, np.float64)
    if matrix.shape not in ((4, 4), (3, 4)) or not np.isfinite(matrix).all():
        raise ValueError("has no finite 4x4 transform_matrix")
    if matrix.shape == (4, 4):
        if np.abs(matrix[3, :3]).max() > 1e-6 * abs(matrix[3, 3]) or matrix[3, 3] == 0:
            raise ValueError("has a transform_matrix whose last row is not 0 0 0 1")
        matrix = matrix[:3] / matrix[3, 3]
    axes = matrix[:, :3]
    size = np.abs(axes).max()
    u, stretch, vt = np.linalg.svd(axes / size if size > 0 else axes)
    if stretch[2] < 1e-12 or not np.isfinite(matrix).all():
        raise ValueError("has a transform_matrix that has no inverse")
    if stretch[0] > (1 + SKEW) * stretch[2]:
        raise ValueError("has a transform_matrix that is not a rotation: it stretches or skews")
    rotation = u @ vt
    if np.linalg.det(rotation) < 0:
        raise ValueError("has a transform_matrix that mirrors, and is no rotation")
    # OpenGL looks along -z with y up, OpenCV along +z with y down
    rotation = (rotation * [1.0, -1.0, -1.0]).T
    return rotation, -rotation @ matrix[:, 3]
