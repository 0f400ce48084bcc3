"""Blender scenes: transforms_train.json and transforms_test.json."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gs.data.scene import load_scene
from gs.errors import SplatrimError

ANGLE = 0.8


def frame(file_path: str, turn: float) -> dict[str, Any]:
    """A camera at distance 4 on the x-y plane that looks at the origin, z up. OpenGL axes."""
    c, s = math.cos(turn), math.sin(turn)
    matrix = [[-s, 0, c, 4 * c], [c, 0, s, 4 * s], [0, 1, 0, 0], [0, 0, 0, 1]]
    return {"file_path": file_path, "transform_matrix": matrix}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count, end in (("train", 4, ""), ("test", 2, ".png")):
        (tmp_path / split).mkdir()
        frames = [frame(f"./{split}/r_{index}{end}", index) for index in range(count)]
        content = {"camera_angle_x": ANGLE, "frames": frames}
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps(content))
        for index in range(count):
            Image.new("RGBA", (40, 30)).save(tmp_path / split / f"r_{index}.png")
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "transforms_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_cameras(folder: Path) -> None:
    scene = load_scene(folder, eval=True)
    assert scene.kind == "blender"
    assert [camera.image_name for camera in scene.train] == [f"train/r_{i}.png" for i in range(4)]
    assert [camera.image_name for camera in scene.test] == ["test/r_0.png", "test/r_1.png"]
    focal = 20 / math.tan(ANGLE / 2)
    for index, camera in enumerate(scene.train):
        want = torch.tensor([4 * math.cos(index), 4 * math.sin(index), 0])
        torch.testing.assert_close(camera.position, want)
        # The origin lies straight ahead, and up in the world is up in the image (negative y).
        torch.testing.assert_close(camera.viewmat[:3, 3], torch.tensor([0.0, 0, 4]))
        torch.testing.assert_close(camera.viewmat[:3, 2], torch.tensor([0.0, -1, 0]))
        want = torch.tensor([[focal, 0, 20], [0, focal, 15], [0, 0, 1]])
        torch.testing.assert_close(camera.K, want)


def test_without_eval_all_train(folder: Path) -> None:
    scene = load_scene(folder)
    assert len(scene.train) == 6 and not scene.test


def test_resolution(folder: Path) -> None:
    camera = load_scene(folder, resolution=4).train[0]
    assert (camera.width, camera.height) == (10, 8)
    assert camera.K[:2, 2].tolist() == [5, 4]
    focal = 20 / math.tan(ANGLE / 2)
    assert camera.K[0, 0].item() == pytest.approx(focal / 4)
    assert camera.K[1, 1].item() == pytest.approx(focal * 8 / 30)


def test_random_points(folder: Path) -> None:
    scene = load_scene(folder)
    assert scene.points.shape == scene.colors.shape == (100_000, 3)
    assert 1.29 < scene.points.abs().max() <= 1.3
    assert torch.equal(scene.points, load_scene(folder).points)
    assert len(load_scene(folder, init_points=123).points) == 123


def test_broken_json(folder: Path) -> None:
    (folder / "transforms_train.json").write_text('{"camera_angle_x": 0.6, "frames": [')
    with pytest.raises(SplatrimError, match=r"transforms_train\.json is not valid JSON"):
        load_scene(folder)


def test_missing_key(folder: Path) -> None:
    (folder / "transforms_train.json").write_text('{"frames": []}')
    with pytest.raises(SplatrimError, match="lacks 'camera_angle_x'"):
        load_scene(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"camera_angle_x": 4.0}, "camera_angle_x is 4.0"),
        ({"frames": 3}, "not a list of cameras"),
        ({"frames": []}, "no camera to train on"),
        ({"frames": [{"file_path": "train/r_0", "transform_matrix": [[1, 2]]}]}, "no finite 4x4"),
        ({"frames": [frame("train/r_0", 0.0) | {"transform_matrix": [[0] * 4] * 4}]}, "no inverse"),
    ],
)
def test_bad_values(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    edit(folder, **changes)
    with pytest.raises(SplatrimError, match=sentence):
        load_scene(folder, eval=True)


def test_image_missing(folder: Path) -> None:
    (folder / "train" / "r_2.png").unlink()
    with pytest.raises(SplatrimError, match=r"image train/r_2\.png is missing"):
        load_scene(folder)


def test_no_test_file(folder: Path) -> None:
    (folder / "transforms_test.json").unlink()
    assert len(load_scene(folder).train) == 4
    with pytest.raises(SplatrimError, match=r"transforms_test\.json is missing"):
        load_scene(folder, eval=True)


def test_lego(data_root: Path) -> None:
    folder = data_root / "data" / "lego_400"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    scene = load_scene(folder, eval=True, resolution=4, init_points=10_000)
    assert (len(scene.train), len(scene.test), len(scene.points)) == (100, 25, 10_000)
    assert (scene.train[0].width, scene.train[0].height) == (100, 100)
    assert scene.train[0].K[0, 0].item() == pytest.approx(1111.111 / 8, rel=1e-5)
