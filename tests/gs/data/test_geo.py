"""Coordinates of the size of the Earth, and positions where numbers end."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gs.data.geo import check_positions, find_offset, sound_points
from gs.data.lens import Lens
from gs.data.posed import PosedImage
from gs.data.scene import load_scene
from gs.errors import SplatrimError

UTM = np.array([465_123.25, 5_248_456.75, 350.0])
LENS = Lens("PINHOLE", 40, 30, (50.0, 45.0, 19.0, 16.0))


def images(centre: np.ndarray, size: float = 4.0, n: int = 6) -> list[PosedImage]:
    """Cameras on a ring about `centre` that look at it."""
    found = []
    for i in range(n):
        a = 2 * np.pi * i / n
        place = centre + size * np.array([np.cos(a), np.sin(a), 0.3])
        z = (centre - place) / np.linalg.norm(centre - place)
        x = np.cross(z, [0, 0, 1.0]) / np.linalg.norm(np.cross(z, [0, 0, 1.0]))
        rotation = np.stack([x, np.cross(z, x), z]).astype(np.float64)
        found.append(PosedImage(f"{i}.png", Path(f"{i}.png"), LENS, rotation, -rotation @ place))
    return found


def points(centre: np.ndarray, n: int = 50) -> np.ndarray:
    return centre + np.random.default_rng(0).normal(size=(n, 3))


def test_ordinary_scenes_are_not_shifted() -> None:
    for centre in ([0, 0, 0], [3, -20, 1], [30, 20, 1]):
        place = np.array(centre, float)
        assert find_offset(images(place), points(place)) == (0, 0, 0)
    # a panorama: cameras close together, points far away
    assert find_offset(images(np.array([1.0, 2, 3]), size=0.01), points(np.zeros(3))) == (0, 0, 0)


def test_offset_is_round() -> None:
    assert find_offset(images(UTM), points(UTM)) == (465_123, 5_248_457, 351)
    assert find_offset(images(UTM, size=300.0), np.zeros((0, 3))) == (465_100, 5_248_500, 400)


def write(folder: Path, posed: list[PosedImage], xyz: np.ndarray) -> Path:
    """A text model, with floats as exact as Python prints them."""
    model = folder / "sparse/0"
    model.mkdir(parents=True)
    (folder / "images").mkdir()
    model.joinpath("cameras.txt").write_text("1 PINHOLE 40 30 50 45 19 16\n")
    lines = []
    for image in posed:
        Image.new("RGB", (40, 30)).save(folder / "images" / image.name)
        # the rotation by its eigenvector would do too: this is the usual formula
        r = image.rotation
        w = np.sqrt(max(1 + np.trace(r), 0)) / 2
        q = (w, *((r[(2, 0, 1), (1, 2, 0)] - r[(1, 2, 0), (2, 0, 1)]) / (4 * w)))
        numbers = " ".join(repr(float(x)) for x in (*q, *image.translation))
        lines.append(f"1 {numbers} 1 {image.name}\n\n")
    model.joinpath("images.txt").write_text("".join(lines))
    rows = [f"{i} {' '.join(map(repr, p))} 9 9 9 0\n" for i, p in enumerate(xyz.tolist(), 1)]
    model.joinpath("points3D.txt").write_text("".join(rows))
    return folder


def test_pixels_are_exact(tmp_path: Path) -> None:
    posed, xyz = images(UTM), points(UTM)
    scene = load_scene(write(tmp_path / "s", posed, xyz))
    assert scene.world_offset == (465_123, 5_248_457, 351)
    for camera, image in zip(scene.train, posed, strict=True):
        x = xyz @ image.rotation.T + image.translation
        want = x[:, :2] / x[:, 2:] * [50, 45] + [19, 16]
        # float32, as the rasterizer has it
        got = scene.points @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
        got = got @ camera.K.T
        np.testing.assert_allclose((got[:, :2] / got[:, 2:]).numpy(), want, atol=2e-3)
        place = camera.position.double().numpy() + scene.world_offset
        np.testing.assert_allclose(place, image.centre, atol=1e-5)
    random = load_scene(tmp_path / "s", init_points=100)
    assert random.world_offset == scene.world_offset
    assert random.points.abs().max() < 100


def test_a_recorded_offset_is_used(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", images(UTM), points(UTM))
    scene = load_scene(folder)
    other = (465_000.0, 5_248_000.0, 300.0)
    moved = load_scene(folder, world_offset=other)
    assert moved.world_offset == other and moved.record["world_offset"] == list(other)
    difference = torch.tensor(scene.world_offset) - torch.tensor(other)
    torch.testing.assert_close(moved.points, scene.points + difference, atol=1e-3, rtol=0)
    for wrong in ("far", [1, 2], [1, 2, float("nan")]):
        with pytest.raises(SplatrimError, match="world_offset is damaged"):
            load_scene(folder, world_offset=wrong)  # pyright: ignore[reportArgumentType]


def test_matrices_are_shifted_too(tmp_path: Path) -> None:
    frames = []
    (tmp_path / "images").mkdir()
    for image in images(UTM):
        matrix = np.eye(4)
        matrix[:3, :3] = image.rotation.T * [1, -1, -1]
        matrix[:3, 3] = image.centre
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / image.name)
        name = f"images/{image.name}"
        frames.append({"file_path": name, "transform_matrix": matrix.tolist()})
    content = {"fl_x": 50, "frames": frames}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    scene = load_scene(tmp_path, init_points=20)
    assert scene.world_offset[0] == pytest.approx(UTM[0], abs=2)
    for camera, image in zip(scene.train, images(UTM), strict=True):
        place = camera.position.double().numpy() + scene.world_offset
        np.testing.assert_allclose(place, image.centre, atol=1e-5)


def moved(image: PosedImage, place: list[float]) -> PosedImage:
    return dataclasses.replace(image, translation=-image.rotation @ np.array(place))


def test_cameras_where_numbers_end() -> None:
    posed = images(np.zeros(3))
    check_positions(posed)
    check_positions(images(UTM))
    check_positions(posed[:1])
    for place in ([1e20, 0, 0], [0, np.nan, 0], [0, 1e308, 1e308]):
        everywhere = [moved(image, place) for image in posed]
        with pytest.raises(SplatrimError, match=r"image .\.png stands at .*cannot be told apart"):
            check_positions(everywhere)
    with pytest.raises(SplatrimError, match=r"image 4\.png stands at \(.*from the others"):
        check_positions([*posed[:4], moved(posed[4], [0, 1e9, 0]), posed[5]])


@pytest.mark.parametrize("value", [1e20, -1e20, 1e308, np.nan, np.inf])
def test_points_where_numbers_end(value: float, caplog: pytest.LogCaptureFixture) -> None:
    xyz = points(np.zeros(3))
    xyz[7, 1] = value
    sound = sound_points(images(np.zeros(3)), xyz)
    assert np.flatnonzero(~sound).tolist() == [7]
    assert "1 of 50 starting points are not finite or lie further" in caplog.text
    assert sound_points(images(UTM), points(UTM)).all()
