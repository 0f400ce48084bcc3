"""Scenes of transforms_train.json and transforms_test.json, and of nerfstudio's transforms.json."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gs.data.scene import load_scene
from gs.errors import SplatrimError
from gs.training.run_files import write_points

ANGLE = 0.8
FLAT = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


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
    frames = [frame("train/r_0", 0.0)]
    (folder / "transforms_train.json").write_text(json.dumps({"frames": frames}))
    with pytest.raises(SplatrimError, match="train/r_0 lacks 'camera_angle_x' or 'fl_x'"):
        load_scene(folder)
    (folder / "transforms_train.json").write_text("{}")
    with pytest.raises(SplatrimError, match="lacks 'frames'"):
        load_scene(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"camera_angle_x": 4.0}, "camera_angle_x is 4.0"),
        ({"frames": 3}, "not a list of cameras"),
        ({"frames": []}, "no camera to train on"),
        ({"frames": [{"file_path": "train/r_0", "transform_matrix": [[1, 2]]}]}, "no finite 4x4"),
        ({"frames": [frame("train/r_0", 0.0) | {"transform_matrix": FLAT}]}, "no inverse"),
    ],
)
def test_bad_values(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    edit(folder, **changes)
    with pytest.raises(SplatrimError, match=sentence):
        load_scene(folder, eval=True)


def test_image_missing(folder: Path) -> None:
    (folder / "train" / "r_2.png").unlink()
    with pytest.raises(SplatrimError, match="image train/r_2 is missing"):
        load_scene(folder)


def test_no_test_file(folder: Path) -> None:
    (folder / "transforms_test.json").unlink()
    assert len(load_scene(folder).train) == 4
    with pytest.raises(SplatrimError, match=r"transforms_test\.json is missing"):
        load_scene(folder, eval=True)


def single(tmp_path: Path, n: int = 10, **content: Any) -> Path:
    """A nerfstudio scene of `n` images of 40x30 pixels."""
    frames = content.pop("frames", None)
    (tmp_path / "images").mkdir(exist_ok=True)
    for i in range(n):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / f"frame_{i:05d}.png")
    frames = frames or [frame(f"images/frame_{i:05d}.png", i / 2) for i in range(n)]
    top = {"fl_x": 50.0, "fl_y": 45.0, "cx": 12.0, "cy": 22.0, "w": 40, "h": 30}
    top = {key: value for key, value in (top | content).items() if value is not None}
    (tmp_path / "transforms.json").write_text(json.dumps(top | {"frames": frames}))
    return tmp_path


def test_single_file(tmp_path: Path) -> None:
    scene = load_scene(single(tmp_path))
    assert scene.kind == "nerfstudio" and len(scene.train) == 10 and not scene.test
    assert scene.train[3].K.tolist() == [[50, 0, 12], [0, 45, 22], [0, 0, 1]]
    torch.testing.assert_close(scene.train[3].viewmat[:3, 3], torch.tensor([0.0, 0, 4]))


def test_single_file_holds_out_every_eighth(tmp_path: Path) -> None:
    scene = load_scene(single(tmp_path), eval=True)
    names = [camera.image_name for camera in scene.test]
    assert names == ["images/frame_00000.png", "images/frame_00008.png"]
    assert len(scene.train) == 8


def test_single_file_with_lists_of_its_split(tmp_path: Path) -> None:
    names = [f"images/frame_{i:05d}.png" for i in range(10)]
    folder = single(tmp_path, train_filenames=names[:6], val_filenames=names[6:8])
    scene = load_scene(folder, eval=True)
    assert [camera.image_name for camera in scene.train] == names[:6]
    assert [camera.image_name for camera in scene.test] == names[6:8]
    assert len(load_scene(folder).train) == 10
    scene = load_scene(single(tmp_path, test_filenames=names[:1]), eval=True)
    assert len(scene.test) == 1 and len(scene.train) == 9


@pytest.mark.parametrize(
    ("top", "own", "want"),
    [
        ({}, {"fl_x": 60, "fl_y": 61, "cx": 1, "cy": 2}, (60, 61, 1, 2)),
        ({"fl_y": None}, {}, (50, 50, 12, 22)),
        ({"fl_x": None}, {}, (45, 45, 12, 22)),
        ({"cx": None, "cy": None}, {}, (50, 45, 20, 15)),
        ({"fl_x": None, "fl_y": None, "camera_angle_y": ANGLE}, {}, None),
        ({"camera_angle_x": 2.5}, {}, (50, 45, 12, 22)),
        ({"fl_x": None, "fl_y": None, "y_fov": math.degrees(ANGLE)}, {}, None),
        ({}, {"camera_angle_y": ANGLE}, None),
        ({}, {"fx": 60, "fy": 61}, (60, 61, 12, 22)),
        ({}, {"K": [[60, 0, 1], [0, 61, 2], [0, 0, 1]]}, (60, 61, 1, 2)),
        ({}, {"intrinsics": [60, 0, 1, 0, 61, 2, 0, 0, 1]}, (60, 61, 1, 2)),
        ({"w": 80, "h": 60}, {}, (25, 22.5, 6, 11)),
        ({"camera_model": "PINHOLE", "k1": 0, "k2": 0.0}, {}, (50, 45, 12, 22)),
    ],
)
def test_intrinsics(
    tmp_path: Path, top: dict[str, Any], own: dict[str, Any], want: tuple[float, ...] | None
) -> None:
    """A frame's own numbers count, focal lengths before angles, the file's size before w and h."""
    frames = [frame(f"images/frame_{i:05d}.png", i) for i in range(3)]
    frames[1] |= own
    cameras = load_scene(single(tmp_path, frames=frames, **top)).train
    focal = 15 / math.tan(ANGLE / 2)
    fx, fy, cx, cy = want or (focal, focal, 12, 22)
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float32)
    torch.testing.assert_close(cameras[1].K, K)
    if own:
        assert cameras[0].K.tolist() == [[50, 0, 12], [0, 45, 22], [0, 0, 1]]


@pytest.mark.parametrize(
    ("top", "model"),
    [
        ({"k1": 0.1, "p2": 0.01}, "OPENCV"),
        ({"k1": 0.1, "k3": 0.01}, "FULL_OPENCV"),
        ({"camera_model": "OPENCV_FISHEYE", "k1": 0.01}, "OPENCV_FISHEYE"),
        ({"is_fisheye": True}, "OPENCV_FISHEYE"),
        ({"distortion_params": [0.1, 0, 0, 0, 0, 0]}, "OPENCV"),
    ],
)
def test_distortion_is_not_dropped(tmp_path: Path, top: dict[str, Any], model: str) -> None:
    camera = load_scene(single(tmp_path, **top)).train[0]
    assert camera.undistortion is not None and camera.undistortion.lens.model == model
    with pytest.raises(SplatrimError, match=f"{model} with distortion"):
        load_scene(tmp_path, distortion="refuse")


@pytest.mark.parametrize(
    ("top", "sentence"),
    [
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR, which is not read"),
        ({"camera_model": "PUSHBROOM"}, "PUSHBROOM, which is not read"),
        ({"fl_x": "wide"}, "fl_x is wide, expected a number"),
        ({"fl_x": -3}, "is damaged: 40x30 pixels"),
        ({"w": 41}, "has the wrong size: 40x30 pixels.* 41x30"),
        ({"ply_file_path": "gone.ply"}, "ply_file_path names .*gone.ply, which is missing"),
        ({"train_filenames": 3}, "train_filenames is not a list"),
        ({"distortion_params": [1]}, "distortion_params are not six numbers"),
    ],
)
def test_bad_intrinsics(tmp_path: Path, top: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SplatrimError, match=sentence):
        load_scene(single(tmp_path, **top))


def test_matrices_that_scale_keep_the_position(tmp_path: Path) -> None:
    scaled = frame("images/frame_00000.png", 0.3)
    want = load_scene(single(tmp_path, frames=[scaled], n=1)).train[0].viewmat
    matrix = scaled["transform_matrix"]
    for row in matrix[:3]:
        row[:3] = [2.5 * x for x in row[:3]]
    got = load_scene(single(tmp_path, frames=[scaled], n=1)).train[0].viewmat
    torch.testing.assert_close(got, want)
    scaled["transform_matrix"] = matrix[:3]
    got = load_scene(single(tmp_path, frames=[scaled], n=1)).train[0].viewmat
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [((1, 1, -1), "mirrors"), ((1, 2, 1), "stretches or skews"), ((1, 1, 0), "no inverse")],
)
def test_matrices_that_are_no_rotations(
    tmp_path: Path, axes: tuple[float, float, float], sentence: str
) -> None:
    wrong = frame("images/frame_00000.png", 0.3)
    for row in wrong["transform_matrix"][:3]:
        row[:3] = [x * axis for x, axis in zip(row[:3], axes, strict=True)]
    with pytest.raises(SplatrimError, match=sentence):
        load_scene(single(tmp_path, frames=[wrong], n=1))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(folder: Path, encoding: str) -> None:
    path = folder / "transforms_train.json"
    path.write_bytes(path.read_text().encode(encoding))
    assert len(load_scene(folder).train) == 6


@pytest.mark.parametrize("name", ["points3d.ply", "sparse_pc.ply", "clouds/mine.ply"])
def test_point_cloud(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_points(path, torch.rand(50, 3), torch.rand(50, 3))
    named: dict[str, Any] = {"ply_file_path": name} if "/" in name else {}
    folder = single(tmp_path, **named)
    assert len(load_scene(folder).points) == 50
    assert len(load_scene(folder, init_points=7).points) == 7


def test_images_of_another_folder(tmp_path: Path) -> None:
    folder = single(tmp_path)
    (folder / "images_2").mkdir()
    for i in range(10):
        Image.new("RGB", (20, 15)).save(folder / "images_2" / f"frame_{i:05d}.png")
    camera = load_scene(folder, images="images_2").train[0]
    assert camera.K.tolist() == [[25, 0, 6], [0, 22.5, 11], [0, 0, 1]]


def test_lego(data_root: Path) -> None:
    folder = data_root / "data" / "lego_400"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    scene = load_scene(folder, eval=True, resolution=4, init_points=10_000)
    assert (len(scene.train), len(scene.test), len(scene.points)) == (100, 25, 10_000)
    assert (scene.train[0].width, scene.train[0].height) == (100, 100)
    assert scene.train[0].K[0, 0].item() == pytest.approx(1111.111 / 8, rel=1e-5)
