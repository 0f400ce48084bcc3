"""Cameras of images that were resized or turned after their description was written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gs.data.camera import Camera
from gs.data.lens import Lens
from gs.data.loader import ImageLoader
from gs.data.posed import PosedImage, make_cameras, resized
from gs.errors import SplatrimError

LENS = Lens("PINHOLE", 40, 30, (50.0, 45.0, 10.0, 20.0))
TALL = Lens("PINHOLE", 30, 40, (50.0, 45.0, 10.0, 20.0))


def pixels(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


def posed(path: Path, lens: Lens = LENS) -> PosedImage:
    return PosedImage(path.name, path, lens, np.eye(3), np.zeros(3))


def save(path: Path, data: np.ndarray, orientation: int | None = None) -> Path:
    options: dict[str, Any] = {}
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    Image.fromarray(data).save(path, **options)
    return path


def make(images: list[PosedImage], **options: Any) -> list[Camera]:
    return make_cameras(images, 1, distortion="undistort", **options)


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        ((40, 30), True),
        ((20, 15), True),
        ((13, 10), True),
        ((10, 7), True),
        ((10, 8), True),
        ((80, 60), True),
        ((39, 29), True),
        ((41, 30), False),
        ((40, 29), False),
        ((20, 12), False),
        ((30, 40), False),
        ((30, 30), False),
        ((80, 57), False),
    ],
)
def test_resized(size: tuple[int, int], fits: bool) -> None:
    assert resized(size, (40, 30)) is fits


def test_intrinsics_follow_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="splatrim")
    images = [posed(save(tmp_path / "a.png", pixels(20, 15)))]
    images += [posed(save(tmp_path / "b.png", pixels(40, 30)))]
    half, whole = make(images)
    assert half.K.tolist() == [[25, 0, 5], [0, 22.5, 10], [0, 0, 1]]
    assert whole.K.tolist() == [[50, 0, 10], [0, 45, 20], [0, 0, 1]]
    assert (half.original_width, half.original_height) == (40, 30)
    assert "1 of 2 images have another size than their cameras say (20x15 for 40x30)" in caplog.text


def test_another_shape_is_refused(tmp_path: Path) -> None:
    image = posed(save(tmp_path / "a.png", pixels(30, 40)))
    with pytest.raises(SplatrimError, match=r"a\.png has the wrong size: 30x40.*on its side"):
        make([image])


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_exif_turns_what_its_camera_has_upright(tmp_path: Path, orientation: int) -> None:
    path = save(tmp_path / "a.png", pixels(40, 30), orientation)
    (camera,) = make([posed(path, TALL)])
    assert camera.upright and camera.expected_file_size == (30, 40)
    assert (camera.width, camera.height) == (30, 40)
    turned = {5: "transpose", 6: "rot90cw", 7: "transverse", 8: "rot90ccw"}[orientation]
    want = {
        "transpose": pixels(40, 30).transpose(1, 0, 2),
        "rot90cw": np.rot90(pixels(40, 30), -1),
        "transverse": np.rot90(pixels(40, 30).transpose(1, 0, 2), 2),
        "rot90ccw": np.rot90(pixels(40, 30), 1),
    }[turned]
    with ImageLoader([camera]) as loader:
        loader.check()
        np.testing.assert_array_equal(loader[0].numpy(), want)


def test_exif_is_ignored_where_the_file_fits_as_it_lies(tmp_path: Path) -> None:
    """COLMAP itself ignores it."""
    (camera,) = make([posed(save(tmp_path / "a.png", pixels(40, 30), 6))])
    assert not camera.upright
    with ImageLoader([camera]) as loader:
        np.testing.assert_array_equal(loader[0].numpy(), pixels(40, 30))


def test_one_turned_image_turns_those_that_fit_either_way(tmp_path: Path) -> None:
    square = Lens("PINHOLE", 30, 30, (50.0, 50.0, 15.0, 15.0))
    images = [
        posed(save(tmp_path / "square.png", pixels(30, 30), 6), square),
        posed(save(tmp_path / "half turn.png", pixels(40, 30), 3)),
        posed(save(tmp_path / "plain.png", pixels(40, 30))),
    ]
    assert [camera.upright for camera in make(images)] == [False] * 3
    images += [posed(save(tmp_path / "tall.png", pixels(40, 30), 6), TALL)]
    assert [camera.upright for camera in make(images)] == [True, True, False, True]
