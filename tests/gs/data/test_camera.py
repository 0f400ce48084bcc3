"""Camera positions, the cameras.json layout, the extent."""

import math

import pytest
import torch

from gs.data.camera import Camera, camera_extent, cameras_json


def camera(name: str, centre: tuple[float, float, float], angle: float = 0.3) -> Camera:
    """Trained at half of 80x60, turned about y by `angle`."""
    c, s = math.cos(angle), math.sin(angle)
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    viewmat[:3, 3] = -viewmat[:3, :3] @ torch.tensor(centre, dtype=torch.float32)
    K = torch.tensor([[50.0, 0, 20], [0, 40.0, 15], [0, 0, 1]])
    return Camera(name, None, 40, 30, viewmat, K, 80, 60)


def test_position() -> None:
    assert camera("a", (1, -2, 3)).position.tolist() == pytest.approx([1, -2, 3], abs=1e-6)


def test_cameras_json() -> None:
    entries = cameras_json([camera("b/1.jpg", (0, 0, 0))], [camera("a.jpg", (1, -2, 3))])
    assert [entry["id"] for entry in entries] == [0, 1]
    assert [entry["img_name"] for entry in entries] == ["a.jpg", "b/1.jpg"], "test cameras first"
    first = entries[0]
    assert (first["width"], first["height"]) == (80, 60)
    assert (first["fx"], first["fy"]) == (100, 80), "focal lengths of the original resolution"
    assert (first["cx"], first["cy"], first["near"]) == (40, 30, 0.2)
    assert first["position"] == pytest.approx([1, -2, 3], abs=1e-6)
    # Camera to world: its last column is the viewing direction.
    forward = [row[2] for row in first["rotation"]]
    assert forward == pytest.approx([math.sin(0.3), 0, math.cos(0.3)], abs=1e-6)


def test_camera_extent() -> None:
    cameras = [camera("a", (0, 0, 0)), camera("b", (4, 0, 0)), camera("c", (-1, 0, 0))]
    assert camera_extent(cameras) == pytest.approx(1.1 * 3)
    assert camera_extent(cameras[:1]) == 1.0, "a single camera leaves no distance to measure"


def test_expected_file_size() -> None:
    assert camera("a", (0, 0, 0)).expected_file_size == (80, 60)
