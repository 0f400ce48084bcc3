"""COLMAP's files against pycolmap, and text as other writers leave it."""

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from gs.data.colmap_files import count_images, read_cameras, read_images, read_points
from gs.data.lens import MODELS, Lens, parameter_count
from gs.data.pose import rotation_matrix
from gs.errors import SplatrimError


def test_models_are_colmaps() -> None:
    known = pycolmap.CameraModelId.__members__
    assert {k: name for k, (name, _, _) in MODELS.items()} == {
        int(member.value): name for name, member in known.items() if name != "INVALID"
    }
    for name, _, extra in MODELS.values():
        camera = pycolmap.Camera.create_from_model_name(1, name, 7.0, 30, 20)
        assert len(camera.params) == parameter_count(name), name
        if name == "EQUIRECTANGULAR":
            continue
        assert len(camera.extra_params_idxs()) == extra, name
        camera.params = [3.0 + i for i in range(len(camera.params))]
        lens = Lens(name, 30, 20, tuple(camera.params))
        assert lens.focal == (camera.focal_length_x, camera.focal_length_y), name
        assert lens.principal_point == (camera.principal_point_x, camera.principal_point_y), name


def random_model(seed: int) -> pycolmap.Reconstruction:
    rng = np.random.default_rng(seed)
    model = pycolmap.Reconstruction()
    for camera_id, name in ((1, "PINHOLE"), (7, "OPENCV"), (9, "SIMPLE_RADIAL")):
        camera = pycolmap.Camera.create_from_model_name(camera_id, name, 50.0, 40, 30)
        camera.params = rng.uniform(1, 50, len(camera.params)).tolist()
        model.add_camera_with_trivial_rig(camera)
    for image_id in range(1, 7):
        image = pycolmap.Image(
            name=f"folder {image_id % 2}/é{image_id}.jpg",
            camera_id=(1, 7, 9)[image_id % 3],
            image_id=image_id,
        )
        image.points2D = pycolmap.Point2DList(
            [pycolmap.Point2D(rng.uniform(0, 30, 2)) for _ in range(image_id)]
        )
        q = rng.normal(size=4)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(q / np.linalg.norm(q)), rng.normal(size=3))
        model.add_image_with_trivial_frame(image, pose)
    for i in range(1, 20):
        track = pycolmap.Track()
        if i < 5:
            track.add_element(i + 1, i)
            track.add_element(6, i)
        color = rng.integers(0, 256, 3).astype(np.uint8)
        model.add_point3D(rng.normal(size=3), track, color)
    return model


@pytest.mark.parametrize("end", ["bin", "txt"])
def test_what_pycolmap_writes(tmp_path: Path, end: str) -> None:
    model = random_model(3)
    if end == "txt":
        # pycolmap's own text has no spaces in names
        for image in model.images.values():
            image.name = image.name.replace(" ", "_")
    getattr(model, "write_text" if end == "txt" else "write_binary")(str(tmp_path))
    cameras = read_cameras(tmp_path / f"cameras.{end}")
    assert {k: (x.model, x.width, x.height, x.params) for k, x in cameras.items()} == {
        k: (x.model_name, x.width, x.height, tuple(x.params)) for k, x in model.cameras.items()
    }
    images = {image.name: image for image in read_images(tmp_path / f"images.{end}")}
    assert count_images(tmp_path / f"images.{end}") == len(images) == 6
    for want in model.images.values():
        got = images[want.name]
        assert got.camera_id == want.camera_id
        pose = want.cam_from_world().matrix()
        np.testing.assert_allclose(got.rotation, pose[:, :3], atol=1e-12)
        np.testing.assert_allclose(got.translation, pose[:, 3], atol=1e-12)
        seen = [p.point3D_id for p in want.points2D if p.has_point3D()]
        assert got.point_ids.tolist() == seen
    points = read_points(tmp_path / f"points3D.{end}")
    assert points.ids.tolist() == sorted(model.points3D)
    for row, point_id in enumerate(points.ids.tolist()):
        want = model.points3D[point_id]
        np.testing.assert_allclose(points.xyz[row], want.xyz, atol=1e-12)
        np.testing.assert_allclose(points.rgb[row] * 255, want.color, atol=1e-4)


POSE = "1 0 0 0 0 0 1"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (f"1 {POSE} 1 a b (1).png\n\n2 {POSE} 1 c.png\n1 2 -1 3 4 7\n", ["a b (1).png", "c.png"]),
        (f"\ufeff# header\n1 {POSE} 1 a.png\r\n\r\n2 {POSE} 1 b.png\r\n\r\n", ["a.png", "b.png"]),
        (f"1 {POSE} 1 a.png\n2 {POSE} 1 b.png\n3 {POSE} 1 c.png\n", ["a.png", "b.png", "c.png"]),
        (f"1 {POSE} 1 a.png\n\n2 {POSE} 1 b.png", ["a.png", "b.png"]),
        (f"1 {POSE} 1 cam0\\1.png\n\n", ["cam0\\1.png"]),
    ],
)
def test_text_of_other_writers(tmp_path: Path, text: str, names: list[str]) -> None:
    (tmp_path / "images.txt").write_text(text, encoding="utf-8")
    images = read_images(tmp_path / "images.txt")
    assert [image.name for image in images] == names
    assert all(image.translation.tolist() == [0, 0, 1] for image in images)


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("images.txt", "1 1 0 0 0 0 0 1 1\n", "line 1 is not an image"),
        ("images.txt", f"1 {POSE} 1 a.png\n1 2 3 4\n", "line 2 is not an image"),
        ("images.txt", "1 0 0 0 0 0 0 1 1 a.png\n", "no rotation"),
        ("images.txt", "1 nan 0 0 0 0 0 1 1 a.png\n", "not finite"),
        ("images.txt", "1 1 0 0 0 0 inf 1 1 a.png\n", "not finite"),
        ("cameras.txt", "1 PINHOLE 40 30 1 2 3\n", "line 1 is not a camera"),
        ("cameras.txt", "# a\n\n1 BOX 40 30 1 2 3 4\n", "line 3 is not a camera"),
        ("points3D.txt", "1 0 0\n", "line 1 is not a point"),
        ("points3D.txt", "1 0 0 0 1 2 300 0\n", "line 1 is not a point"),
        ("points3D.txt", "-1 0 0 0 1 2 3 0\n", "line 1 is not a point"),
    ],
)
def test_damaged_text(tmp_path: Path, file: str, text: str, sentence: str) -> None:
    (tmp_path / file).write_text(text)
    read = {"i": read_images, "c": read_cameras, "p": read_points}[file[0]]
    with pytest.raises(SplatrimError, match=sentence):
        read(tmp_path / file)


def test_a_model_number_that_is_not_known(tmp_path: Path) -> None:
    random_model(0).write_binary(str(tmp_path))
    path = tmp_path / "cameras.bin"
    data = bytearray(path.read_bytes())
    data[12:16] = (99).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(SplatrimError, match="has the model number 99"):
        read_cameras(path)


def test_quaternions_of_any_norm() -> None:
    q = np.array([0.3, -0.5, 0.7, 0.1])
    want = pycolmap.Rotation3d(np.roll(q / np.linalg.norm(q), -1)).matrix()
    for scale in (1e-300, 1.0, 1e150):
        got = rotation_matrix((scale * q).tolist())
        assert got is not None
        np.testing.assert_allclose(got, want, atol=1e-12)
    for none in ([0, 0, 0, 0], [np.nan, 0, 0, 1], [np.inf, 0, 0, 1]):
        assert rotation_matrix(none) is None
