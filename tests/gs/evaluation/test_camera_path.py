import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gs.data.camera import Camera, cameras_json
from gs.errors import SplatrimError
from gs.evaluation.camera_path import around, cameras_for, interpolate, orbit, read_path, resized


def looking_in(angle: float, height: float = 1.0, distance: float = 4.0) -> Camera:
    """A camera on a circle about (1, 2, 3), z up, that looks at it."""
    target = np.array([1.0, 2.0, 3.0])
    centre = target + [distance * math.cos(angle), distance * math.sin(angle), height]
    z = (target - centre) / np.linalg.norm(target - centre)
    x = np.cross(z, [0, 0, 1])
    x /= np.linalg.norm(x)
    turn = np.stack([x, np.cross(z, x), z])
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.from_numpy(turn)
    viewmat[:3, 3] = torch.from_numpy(-turn @ centre)
    K = torch.tensor([[50.0, 0, 20], [0, 50.0, 15], [0, 0, 1]])
    return Camera(f"{angle:.3f}.png", Path("a.png"), 40, 30, viewmat, K, 80, 60, near=0.1)


RING = [looking_in(angle) for angle in np.linspace(0, 2 * math.pi, 12, endpoint=False)]


def test_orbit_goes_round_what_the_views_look_at() -> None:
    cameras = orbit(RING, 36)
    assert len(cameras) == 36
    torch.testing.assert_close(cameras[0].viewmat, RING[0].viewmat, atol=1e-5, rtol=1e-5)
    centres = torch.stack([camera.position for camera in cameras])
    target = torch.tensor([1.0, 2.0, 3.0])
    distances = (centres - target).norm(dim=1)
    torch.testing.assert_close(distances, torch.full((36,), math.sqrt(17)), atol=1e-4, rtol=0)
    steps = (centres - centres.roll(1, 0)).norm(dim=1)  # the last to the first, too
    torch.testing.assert_close(steps, steps.mean().expand(36), atol=1e-4, rtol=0)
    for camera in cameras:
        seen = camera.viewmat[:3, :3] @ target + camera.viewmat[:3, 3]
        assert seen[:2].abs().max() < 1e-4 and seen[2] > 0
        assert (camera.viewmat[:3, :3].det() - 1).abs() < 1e-5
        assert camera.viewmat[1, 2] < 0, "up is up"
        assert (camera.width, camera.near, camera.image_path) == (40, 0.1, None)


def test_orbit_of_parallel_views_is_finite() -> None:
    ahead = torch.eye(4)
    cameras = [Camera("", None, 8, 6, ahead, torch.eye(3), 8, 6) for _ in range(3)]
    assert all(bool(camera.viewmat.isfinite().all()) for camera in orbit(cameras, 5))
    assert all(bool(camera.viewmat.isfinite().all()) for camera in orbit(cameras[:1], 5))


def test_a_model_alone_is_seen_from_all_sides() -> None:
    points = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) + 5
    points[:20] *= 1000  # strays do not push the cameras away
    cameras = around(points, 8)
    assert len({camera.image_name for camera in cameras}) == 8
    for camera in cameras:
        seen = (points[20:] @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]) @ camera.K.T
        pixels = seen[:, :2] / seen[:, 2:]
        inside = (pixels > 0).all(1) & (pixels < torch.tensor([800.0, 600.0])).all(1)
        assert bool((seen[:, 2] > camera.near).float().mean() > 0.95)
        assert bool(inside.float().mean() > 0.7) and float(pixels[:, 0].std()) > 60
        assert camera.viewmat[1, 1] > 0, "down is y"


def test_a_file_in_a_runs_folder_has_the_runs_cameras(tmp_path: Path) -> None:
    file, means = tmp_path / "run/export/x.spz", torch.randn(50, 3)
    assert len(cameras_for(file, means)) == 8
    file.parent.mkdir(parents=True)
    (tmp_path / "run/cameras.json").write_text(json.dumps(cameras_json(RING[:3], [])))
    for place in (file, tmp_path / "run/point_cloud/iteration_7/point_cloud.ply"):
        cameras = cameras_for(place, means)
        assert [camera.image_name for camera in cameras] == [v.image_name for v in RING[:3]]
        assert [camera.near for camera in cameras] == pytest.approx([0.1] * 3)
        torch.testing.assert_close(cameras[1].viewmat, RING[1].viewmat, atol=1e-4, rtol=1e-4)
    (tmp_path / "run/cameras.json").write_text("[{}]")
    with pytest.raises(SplatrimError, match="cameras.json is no camera path"):
        cameras_for(file, means)


def test_a_flight_passes_its_keys() -> None:
    cameras = interpolate(RING, 45, every=True)
    assert len(cameras) == 45
    for i, key in enumerate(RING):  # four frames from key to key
        torch.testing.assert_close(cameras[4 * i].viewmat, key.viewmat, atol=1e-4, rtol=1e-4)
    centres = torch.stack([camera.position for camera in cameras])
    steps = (centres[1:] - centres[:-1]).norm(dim=1)
    assert steps.max() < 1.5 * steps.mean(), "nowhere does it jump"
    turns = [camera.viewmat[:3, :3].double() for camera in cameras]
    assert all(abs(float(turn.det()) - 1) < 1e-5 for turn in turns)
    # between keys it still looks at the middle, nearly
    seen = turns[2] @ torch.tensor([1.0, 2.0, 3.0]).double() + cameras[2].viewmat[:3, 3]
    assert seen[:2].norm() < 0.05 * seen[2]


def test_a_short_flight_takes_fewer_keys_from_first_to_last() -> None:
    many = [looking_in(angle) for angle in np.linspace(0, 3, 100)]
    cameras = interpolate(many, 15)
    torch.testing.assert_close(cameras[0].viewmat, many[0].viewmat, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cameras[-1].viewmat, many[-1].viewmat, atol=1e-4, rtol=1e-4)
    (alone,) = interpolate(many[:1], 1)
    torch.testing.assert_close(alone.viewmat, many[0].viewmat, atol=1e-5, rtol=1e-5)


def test_a_runs_cameras_are_a_path(tmp_path: Path) -> None:
    (tmp_path / "cameras.json").write_text(json.dumps(cameras_json(RING[:3], [])))
    cameras = read_path(tmp_path / "cameras.json", 5, near=0.3)
    assert [camera.near for camera in cameras] == [0.3] * 5
    for i in range(3):
        torch.testing.assert_close(cameras[2 * i].viewmat, RING[i].viewmat, atol=1e-4, rtol=1e-4)
    # at the original resolution, twice that of the training
    assert (cameras[0].width, cameras[0].height) == (80, 60)
    torch.testing.assert_close(cameras[0].K[0], torch.tensor([100.0, 0, 40]))


def test_a_path_of_nerfstudio_is_taken_frame_by_frame(tmp_path: Path) -> None:
    flip = torch.diag(torch.tensor([1.0, -1, -1, 1]))  # OpenGL's axes
    frames = [(view.viewmat.inverse() @ flip).flatten().tolist() for view in RING[:4]]
    path = {
        "camera_path": [{"camera_to_world": frame, "fov": 90} for frame in frames],
        "render_width": 64,
        "render_height": 48,
        "fps": 24,
    }
    (tmp_path / "path.json").write_text(json.dumps(path))
    cameras = read_path(tmp_path / "path.json", 99, near=0.2)
    assert len(cameras) == 4
    for camera, view in zip(cameras, RING, strict=False):
        torch.testing.assert_close(camera.viewmat, view.viewmat, atol=1e-4, rtol=1e-4)
    assert (cameras[0].width, cameras[0].height) == (64, 48)
    torch.testing.assert_close(cameras[0].K[:2, :2], 24 * torch.eye(2))  # tan(45 degrees) = 1


ENTRY = {"position": [0, 0, 0], "width": 8, "height": 6, "fx": 9, "fy": 9}
SQUARE = {"rotation": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "there is no camera for a path to begin with"),
        ({"camera_path": []}, "there is no camera"),
        ({}, "is no camera path: .*camera_path"),
        ([{"position": [0, 0, 0]}], "is no camera path: .*rotation"),
        ([ENTRY | {"rotation": [[2, 0, 0], [0, 1, 0], [0, 0, 1]]}], "not placed by a rotation"),
        ([ENTRY | {"rotation": [[1, 0], [0, 1]]}], "not placed by a rotation"),
        ([ENTRY | SQUARE | {"width": 0}], "is no camera path: .*width"),
        ({"camera_path": [{"camera_to_world": [1, 2]}]}, "has a camera that has no finite 4x4"),
        ({"camera_path": [{"camera_to_world": "x"}]}, "has a camera that"),
    ],
)
def test_broken_paths_get_a_sentence(tmp_path: Path, data: Any, sentence: str) -> None:
    (tmp_path / "path.json").write_text(json.dumps(data))
    with pytest.raises(SplatrimError, match=sentence):
        read_path(tmp_path / "path.json", 5, near=0.2)


def test_video_sizes_are_even() -> None:
    odd = Camera("", None, 201, 151, torch.eye(4), 100 * torch.eye(3), 201, 151)
    (same,) = resized([odd], None)
    assert (same.width, same.height) == (200, 150) and torch.equal(same.K, odd.K)
    (twice,) = resized([odd], 402)
    assert (twice.width, twice.height) == (402, 302)
    torch.testing.assert_close(twice.K[:2], 2 * odd.K[:2])
    assert torch.equal(twice.K[2], odd.K[2])
