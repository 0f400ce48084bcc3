"""COLMAP scenes: formats, sizes, and input that must stop with one sentence."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from gs.data.colmap_files import read_cameras, read_images, read_points
from gs.data.scene import Scene, load_scene
from gs.errors import SplatrimError

WIDTH, HEIGHT = 40, 30
NAMES = [f"{folder}/{index:04d}.png" for folder in "ab" for index in range(5)]
CENTRES = [(float(index), 0.5 * index, -3.0) for index in range(len(NAMES))]
Write = Callable[..., Path]


def model_of(camera: pycolmap.Camera, names: list[str], n_points: int) -> pycolmap.Reconstruction:
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    half_turn = np.diag([1.0, -1.0, -1.0])
    for index, (name, centre) in enumerate(zip(names, CENTRES, strict=False), start=1):
        image = pycolmap.Image(name=name, camera_id=camera.camera_id, image_id=index)
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(np.array([1.0, 2.0]))])
        pose = np.column_stack([half_turn, -half_turn @ np.array(centre)])
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
    for index in range(n_points):
        track = pycolmap.Track()
        track.add_element(1, 0) if index == 0 else None
        model.add_point3D(np.array([index, 1.0, 2.0]), track, np.array([255, 0, index], np.uint8))
    return model


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a scene of two image folders with equal base names, and return its folder."""

    def write(
        *,
        camera_model: str = "PINHOLE",
        params: tuple[float, ...] = (50.0, 45.0, 19.0, 16.0),
        text: bool = False,
        size: tuple[int, int] = (WIDTH, HEIGHT),
        images: str = "images",
        image_size: tuple[int, int] | None = None,
        n_points: int = 6,
        sparse: str = "sparse/0",
        names: list[str] = NAMES,
    ) -> Path:
        scene = tmp_path / "scene"
        (scene / sparse).mkdir(parents=True)
        camera = pycolmap.Camera(
            model=camera_model, width=size[0], height=size[1], params=params, camera_id=1
        )
        model = model_of(camera, names, n_points)
        getattr(model, "write_text" if text else "write_binary")(str(scene / sparse))
        for index, name in enumerate(names):
            path = scene / images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", image_size or size, (index, 0, 0)).save(path)
        return scene

    return write


def cameras_of(scene: Scene) -> list[str]:
    return [camera.image_name for camera in scene.train]


@pytest.mark.parametrize("text", [False, True], ids=["bin", "txt"])
@pytest.mark.parametrize("sparse", ["sparse/0", "sparse"])
def test_formats(write: Write, text: bool, sparse: str) -> None:
    scene = load_scene(write(text=text, sparse=sparse))
    assert scene.kind == "colmap" and not scene.test
    assert cameras_of(scene) == NAMES, "sub-folders stay part of the names"
    assert len({camera.image_path for camera in scene.train}) == len(NAMES)
    for camera, centre in zip(scene.train, CENTRES, strict=True):
        torch.testing.assert_close(camera.position, torch.tensor(centre))
        assert camera.viewmat.dtype == camera.K.dtype == torch.float32
        assert camera.viewmat[2, 2] == -1
    assert scene.train[0].K.tolist() == [[50, 0, 19], [0, 45, 16], [0, 0, 1]]
    assert scene.points[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(scene.colors[3], torch.tensor([1, 0, 3 / 255]))
    spread = torch.tensor([9.0, 4.5]).norm().item() / 2
    assert scene.extent == pytest.approx(1.1 * spread, rel=1e-5)


def test_without_rigs_and_frames(write: Write) -> None:
    folder = write()
    for name in ("rigs.bin", "frames.bin"):
        (folder / "sparse/0" / name).unlink()
    assert cameras_of(load_scene(folder)) == NAMES


def test_rig_of_two_sensors(write: Write) -> None:
    folder = write()
    model = pycolmap.Reconstruction()
    rig = pycolmap.Rig(rig_id=1)
    for camera_id in (1, 2):
        camera = pycolmap.Camera(
            model="PINHOLE", width=40, height=30, params=[50, 50, 20, 15], camera_id=camera_id
        )
        model.add_camera(camera)
        if camera_id == 1:
            rig.add_ref_sensor(camera.sensor_id)
        else:
            shifted = pycolmap.Rigid3d(np.eye(3, 4) + [[0, 0, 0, -2], [0, 0, 0, 0], [0, 0, 0, 0]])
            rig.add_sensor(camera.sensor_id, shifted)
    model.add_rig(rig)
    frame = pycolmap.Frame(frame_id=1, rig_id=1)
    for image_id in (1, 2):
        frame.add_data_id(pycolmap.data_t(model.cameras[image_id].sensor_id, image_id))
    frame.rig_from_world = pycolmap.Rigid3d(np.eye(3, 4))
    model.add_frame(frame)
    for image_id, name in ((1, NAMES[0]), (2, NAMES[1])):
        image = pycolmap.Image(name=name, camera_id=image_id, image_id=image_id)
        image.frame_id = 1
        model.add_image(image)
    model.register_frame(1)
    model.add_point3D(np.zeros(3), pycolmap.Track(), np.zeros(3, np.uint8))
    model.write_binary(str(folder / "sparse/0"))

    scene = load_scene(folder)
    assert [camera.position.tolist() for camera in scene.train] == [[0, 0, 0], [2, 0, 0]]


def test_simple_pinhole(write: Write) -> None:
    scene = load_scene(write(camera_model="SIMPLE_PINHOLE", params=(50.0, 21.0, 14.0)))
    assert scene.train[0].K.tolist() == [[50, 0, 21], [0, 50, 14], [0, 0, 1]]


@pytest.mark.parametrize("centre", [(19.0, 22.0), (2.0, 28.0), (-7.0, 45.0)])
def test_principal_points_are_anywhere(write: Write, centre: tuple[float, float]) -> None:
    """Images are cut out of larger ones."""
    scene = load_scene(write(params=(50.0, 45.0, *centre)), resolution=2)
    assert scene.train[0].K[:2, 2].tolist() == [x / 2 for x in centre]


def test_split(write: Write) -> None:
    scene = load_scene(write(), eval=True)
    assert [camera.image_name for camera in scene.test] == ["a/0000.png", "b/0003.png"]
    assert cameras_of(scene) == [name for i, name in enumerate(NAMES) if i not in (0, 8)]


@pytest.mark.parametrize(
    ("resolution", "size"),
    [(-1, (1599, 1201)), (1, (1801, 1352)), (2, (900, 676)), (8, (225, 169)), (640, (640, 480))],
)
def test_resolution(write: Write, resolution: int, size: tuple[int, int]) -> None:
    full = (1801, 1352)
    folder = write(size=full, params=(1500.0, 1400.0, 900.0, 700.0), names=NAMES[:1])
    camera = load_scene(folder, resolution=resolution).train[0]
    assert (camera.width, camera.height) == size
    assert (camera.original_width, camera.original_height) == full
    across, down = size[0] / full[0], size[1] / full[1]
    want = [[1500 * across, 0, 900 * across], [0, 1400 * down, 700 * down], [0, 0, 1]]
    torch.testing.assert_close(camera.K, torch.tensor(want))


@pytest.mark.parametrize("image_size", [(10, 7), (10, 8)])
def test_divided_images(write: Write, image_size: tuple[int, int]) -> None:
    folder = write(images="images_4", image_size=image_size)
    camera = load_scene(folder, images="images_4").train[0]
    assert (camera.width, camera.height) == image_size
    assert (camera.original_width, camera.original_height) == (WIDTH, HEIGHT)
    assert camera.K[0].tolist() == [12.5, 0, 4.75]
    assert camera.K[1, 2].item() == pytest.approx(16 * image_size[1] / HEIGHT)


def test_divided_images_of_another_shape(write: Write) -> None:
    folder = write(images="images_4", image_size=(20, 12))
    with pytest.raises(SplatrimError, match=r"a/0000\.png has the wrong size: 20x12 .* 40x30"):
        load_scene(folder, images="images_4")


def test_random_points(write: Write) -> None:
    folder = write()
    scene = load_scene(folder, init_points=500, seed=3)
    again = load_scene(folder, init_points=500, seed=3)
    assert scene.points.shape == scene.colors.shape == (500, 3)
    assert torch.equal(scene.points, again.points)
    assert not torch.equal(scene.points, load_scene(folder, init_points=500, seed=4).points)
    off = scene.points - torch.tensor(CENTRES).mean(dim=0)
    assert 0.9 * 3 * scene.extent < off.abs().max() <= 3 * scene.extent
    assert 0 <= scene.colors.min() and scene.colors.max() <= 1


def test_points_that_are_not_finite_are_dropped(write: Write) -> None:
    folder = write()
    model = pycolmap.Reconstruction(str(folder / "sparse/0"))
    for bad in (np.nan, np.inf):
        model.add_point3D(np.array([0, bad, 0]), pycolmap.Track(), np.zeros(3, np.uint8))
    model.write_binary(str(folder / "sparse/0"))
    points = load_scene(folder).points
    assert len(points) == 6 and torch.isfinite(points).all()


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(SplatrimError, match="no such folder: .*nowhere"):
        load_scene(tmp_path / "nowhere")


def test_not_a_scene(tmp_path: Path) -> None:
    with pytest.raises(SplatrimError, match=r"neither sparse/0 \(COLMAP\) nor transforms_train"):
        load_scene(tmp_path)


@pytest.mark.parametrize("resolution", [0, -2])
def test_bad_resolution(write: Write, resolution: int) -> None:
    with pytest.raises(SplatrimError, match=f"-r {resolution} is not a resolution"):
        load_scene(write(), resolution=resolution)


def test_bad_init_points(write: Write) -> None:
    with pytest.raises(SplatrimError, match="--init_points 0"):
        load_scene(write(), init_points=0)


@pytest.mark.parametrize(
    ("name", "read"),
    [("cameras", read_cameras), ("images", read_images), ("points3D", read_points)],
)
def test_truncated_anywhere(write: Write, name: str, read: Callable[[Path], object]) -> None:
    path = write() / "sparse/0" / f"{name}.bin"
    content = path.read_bytes()
    read(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(SplatrimError, match=rf"{name}\.bin is truncated or damaged"):
            read(path)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_truncated(write: Write, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write()
    path = folder / "sparse/0" / f"{name}.bin"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SplatrimError, match=rf"{name}\.bin is truncated or damaged"):
        load_scene(folder)
    assert capfd.readouterr() == ("", "")


def test_damaged_text(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write(text=True)
    (folder / "sparse/0/images.txt").write_text("1 0.5 nonsense\n")
    with pytest.raises(SplatrimError, match=r"images\.txt is damaged: line 1 is not an image"):
        load_scene(folder)
    assert capfd.readouterr() == ("", "")


def test_incomplete_model(write: Write) -> None:
    folder = write()
    (folder / "sparse/0/images.bin").unlink()
    with pytest.raises(SplatrimError, match=r"incomplete: images\.bin is missing"):
        load_scene(folder)


def test_distortion_can_be_refused(write: Write) -> None:
    folder = write(camera_model="OPENCV", params=(50, 45, 19, 16, 0.1, 0, 0, 0))
    spaced = folder.rename(folder.parent / "my scene")
    with pytest.raises(SplatrimError, match="model OPENCV.*--distortion refuse") as caught:
        load_scene(spaced, distortion="refuse")
    words = shlex.split(str(caught.value).split("`")[1])
    assert words[:2] == ["colmap", "image_undistorter"]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert given["--image_path"] == str(spaced / "images")
    assert given["--input_path"] == str(spaced / "sparse/0")


def test_panoramas_are_refused(write: Write) -> None:
    with pytest.raises(SplatrimError, match="EQUIRECTANGULAR, and panoramas have no"):
        load_scene(write(camera_model="EQUIRECTANGULAR", params=(40, 30)))


def test_image_missing(write: Write) -> None:
    folder = write()
    (folder / "images" / NAMES[7]).unlink()
    with pytest.raises(SplatrimError, match=f"image {NAMES[7]} is missing"):
        load_scene(folder)


def test_image_folder_missing(write: Write) -> None:
    folder = write()
    with pytest.raises(SplatrimError, match="no such image folder: .*images_2"):
        load_scene(folder, images="images_2")


def test_image_of_wrong_size(write: Write) -> None:
    folder = write()
    Image.new("RGB", (41, 30)).save(folder / "images" / NAMES[2])
    with pytest.raises(SplatrimError, match=f"{NAMES[2]} has the wrong size: 41x30 .* 40x30"):
        load_scene(folder)


def test_image_that_is_none(write: Write) -> None:
    folder = write()
    (folder / "images" / NAMES[2]).write_text("not pixels")
    with pytest.raises(SplatrimError, match=f"image {NAMES[2]} cannot be read"):
        load_scene(folder)


@pytest.mark.parametrize("text", [False, True], ids=["bin", "txt"])
@pytest.mark.parametrize("missing", [False, True], ids=["empty", "missing"])
def test_no_points(write: Write, text: bool, missing: bool) -> None:
    # The images still name points when the file is missing; they name none when it is empty.
    folder = write(text=text, n_points=6 if missing else 0)
    if missing:
        (folder / "sparse/0" / f"points3D.{'txt' if text else 'bin'}").unlink()
    with pytest.raises(SplatrimError, match="missing or empty: start .*--init_points 100000"):
        load_scene(folder)
    assert len(load_scene(folder, init_points=20).points) == 20


def test_too_few_cameras(write: Write) -> None:
    with pytest.raises(SplatrimError, match="no camera to train on"):
        load_scene(write(names=NAMES[:1]), eval=True)


def test_reading_leaves_the_scene_alone(write: Write, tmp_path: Path) -> None:
    folder = write()
    (folder / "sparse/0/points3D.bin").unlink()
    shutil.copytree(folder, tmp_path / "copy")
    load_scene(folder, init_points=10)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    assert files == sorted(p.relative_to(tmp_path / "copy") for p in (tmp_path / "copy").rglob("*"))


@pytest.mark.parametrize(
    ("name", "n_train", "n_test", "n_points", "size"),
    [
        ("fox", 43, 7, 14266, (270, 491)),
        ("bonsai", 220, 32, 84845, (400, 266)),
        ("aerial_caliterra", 65, 10, 34758, (500, 376)),
    ],
)
def test_real_scenes(
    data_root: Path, name: str, n_train: int, n_test: int, n_points: int, size: tuple[int, int]
) -> None:
    folder = data_root / "data" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    scene = load_scene(folder, eval=True, resolution=2)
    assert (len(scene.train), len(scene.test), len(scene.points)) == (n_train, n_test, n_points)
    assert {(camera.width, camera.height) for camera in scene.train} == {size}
    # The cloud is what the cameras look at: most of it projects into the first one's half-space.
    camera = scene.train[0]
    depth = scene.points @ camera.viewmat[2, :3] + camera.viewmat[2, 3]
    assert (depth > 0).float().mean() > 0.5


def test_a_list_of_test_images_stands_for_every_eighth(write: Callable[..., Path]) -> None:
    folder = write()
    everyone = [camera.image_name for camera in load_scene(folder).train]
    held = [everyone[1], everyone[2].rpartition(".")[0]]  # with and without the extension
    (folder / "test.txt").write_text("\n".join([*held, "of another scene.jpg", ""]))
    scene = load_scene(folder, eval=True)
    assert [camera.image_name for camera in scene.test] == everyone[1:3]
    assert [camera.image_name for camera in scene.train] == [everyone[0], *everyone[3:]]
    assert len(load_scene(folder).train) == len(everyone)
    (folder / "test.txt").write_text("of another scene.jpg\n")
    with pytest.raises(SplatrimError, match="test.txt names 1 images, of which the scene has none"):
        load_scene(folder, eval=True)
