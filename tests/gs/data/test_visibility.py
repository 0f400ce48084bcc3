"""Near planes of small scenes, and scenes in which no camera sees a point."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from gs.data.camera import Camera
from gs.data.lens import Lens
from gs.data.posed import PosedImage
from gs.data.visibility import check_points, check_sight, near_plane
from gs.errors import SplatrimError

LENS = Lens("PINHOLE", 40, 30, (40.0, 40.0, 20.0, 15.0))


def image(name: str = "a.png", seen: list[int] | None = None) -> PosedImage:
    """At the origin, looking along z."""
    rows = np.array(seen or [], np.int64)
    return PosedImage(name, Path(name), LENS, np.eye(3), np.zeros(3), rows)


def along_z(*depths: float) -> np.ndarray:
    return np.array([[0, 0, depth] for depth in depths], float)


def test_published_where_nothing_is_nearer(caplog: pytest.LogCaptureFixture) -> None:
    behind_or_beside = [[0, 0, -0.1], [5, 0, 0.1], [0, 9, 0.05]]
    points = np.concatenate([along_z(0.2001, 3, 9), behind_or_beside])
    assert near_plane([image()], points) == 0.2
    assert near_plane([image()], np.zeros((0, 3))) == 0.2
    assert not caplog.text


def test_half_of_the_nearest_depth(caplog: pytest.LogCaptureFixture) -> None:
    back = dataclasses.replace(image("b.png"), translation=np.array([0, 0, 0.02]))
    assert near_plane([image(), back], along_z(0.03, 0.05, 4)) == 0.015
    assert "the near plane is 0.015 instead of 0.2: image a.png sees points" in caplog.text
    assert "at a depth of 0.03" in caplog.text


def test_one_in_a_thousand_may_be_wrong() -> None:
    points = np.concatenate([along_z(0.001, 0.002), along_z(*np.linspace(1, 2, 1998))])
    assert near_plane([image()], points) == 0.001, "the second of two thousand counts"
    points = np.concatenate([along_z(0.001, 0.002), along_z(*np.linspace(1, 2, 3000))])
    assert near_plane([image()], points) == 0.2
    # a point in the camera itself: not beyond a thousandth of what it looks at
    assert near_plane([image()], along_z(1e-9, 1, 1, 1.4)) == 0.0005


def test_observations_count_where_they_are_known() -> None:
    points = along_z(0.05, 0.1, 3.0)
    assert near_plane([image(seen=[1, 2])], points) == 0.05
    assert near_plane([image(seen=[2])], points) == 0.2


def camera(near: float = 0.2) -> Camera:
    K = torch.tensor([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]])
    return Camera("a.png", None, 40, 30, torch.eye(4), K, 40, 30, near=near)


def test_a_start_needs_points_in_sight() -> None:
    points = torch.tensor([[0.0, 0, 0.1], [0, 0, -3], [9, 0, 1], [0, -9, 1]])
    with pytest.raises(SplatrimError, match="no training camera sees any of the 4 starting points"):
        check_sight([camera()], points, "starting points")
    check_sight([camera(), camera(near=0.05)], points, "starting points")
    check_points(points)
    for n in (1, 3):
        with pytest.raises(SplatrimError, match=rf"too few starting points \({n}\).*--init_points"):
            check_points(points[:n])
