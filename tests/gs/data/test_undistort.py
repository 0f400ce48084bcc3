"""Lenses with distortion: what their images show after it is removed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gs.data.lens import Lens
from gs.data.loader import ImageLoader
from gs.data.posed import PosedImage, make_cameras
from gs.data.undistort import undistorted
from gs.errors import SplatrimError

WIDTH, HEIGHT = 160, 120
LENSES = [
    Lens("SIMPLE_RADIAL", WIDTH, HEIGHT, (150.0, 70.0, 65.0, -0.12)),
    Lens("OPENCV", WIDTH, HEIGHT, (150.0, 145.0, 70.0, 65.0, -0.15, 0.04, 0.002, -0.0015)),
    Lens("OPENCV_FISHEYE", WIDTH, HEIGHT, (110.0, 105.0, 75.0, 62.0, 0.03, -0.008, 0.0, 0.0)),
]


def distorted_point(lens: Lens, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a lens images the directions (x, y, 1), by the models' formulas, in pixels."""
    k = [*lens.params[3 if lens.model == "SIMPLE_RADIAL" else 4 :], 0, 0, 0, 0]
    if lens.model == "OPENCV_FISHEYE":
        r = np.hypot(x, y)
        bend = np.arctan(r) / np.maximum(r, 1e-9)
        x, y, p1, p2 = x * bend, y * bend, 0.0, 0.0
    elif lens.model == "OPENCV":
        p1, p2 = k[2:4]
    else:
        p1 = p2 = 0.0
    q = x * x + y * y
    g = 1 + k[0] * q + (k[1] if lens.model != "SIMPLE_RADIAL" else 0) * q * q
    u = x * g + 2 * p1 * x * y + p2 * (q + 2 * x * x)
    v = y * g + 2 * p2 * x * y + p1 * (q + 2 * y * y)
    (fx, fy), (cx, cy) = lens.focal, lens.principal_point
    return fx * u + cx, fy * v + cy


def pattern(x: np.ndarray, y: np.ndarray) -> np.ndarray:  # [..., 3] uint8
    """Smooth colours of the directions (x, y, 1)."""
    waves = np.stack([np.sin(9 * x), np.cos(7 * y), np.sin(5 * (x + y))], -1)
    return np.rint(127.5 + 120 * waves).astype(np.uint8)


def grid(lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Directions that a pinhole lens's pixels show."""
    v, u = np.mgrid[0 : lens.height, 0 : lens.width] + 0.5
    (fx, fy), (cx, cy) = lens.focal, lens.principal_point
    return (u - cx) / fx, (v - cy) / fy


def photograph(lens: Lens) -> np.ndarray:  # [H, W, 3] uint8
    """The pattern as the lens images it; directions are found by iteration."""
    v, u = np.mgrid[0 : lens.height, 0 : lens.width] + 0.5
    (fx, fy), (cx, cy) = lens.focal, lens.principal_point
    x, y = (u - cx) / fx, (v - cy) / fy
    for _ in range(200):
        px, py = distorted_point(lens, x, y)
        x, y = x + 0.7 * (u - px) / fx, y + 0.7 * (v - py) / fy
    return pattern(x, y)


@pytest.mark.parametrize("lens", LENSES, ids=lambda lens: lens.model)
def test_the_image_is_a_pinholes(tmp_path: Path, lens: Lens) -> None:
    path, kept = tmp_path / "a.png", tmp_path / "kept"
    Image.fromarray(photograph(lens)).save(path)
    image = PosedImage("a.png", path, lens, np.eye(3), np.zeros(3))
    (camera,) = make_cameras([image], 1, distortion="undistort", cache=kept)
    flat = undistorted(lens)
    assert (camera.width, camera.height) == (flat.width, flat.height)
    want = pattern(*grid(flat)).astype(int)
    with ImageLoader([camera]) as loader:
        loader.check()
        got = loader[0].numpy()
    # bilinear sampling of rounded colours; blank pixels would be off by a hundred
    assert np.abs(got.astype(int) - want).max() <= 4
    (file,) = kept.iterdir()
    np.testing.assert_array_equal(np.asarray(Image.open(file)), got)
    Image.fromarray(255 - got).save(file)
    with ImageLoader([camera]) as loader:
        np.testing.assert_array_equal(loader[0].numpy(), 255 - got, "what is kept is used")


def test_resized_image(tmp_path: Path) -> None:
    lens = LENSES[1]
    path = tmp_path / "a.png"
    Image.fromarray(photograph(lens.scaled(WIDTH // 2, HEIGHT // 2))).save(path)
    image = PosedImage("a.png", path, lens, np.eye(3), np.zeros(3))
    (camera,) = make_cameras([image], 1, distortion="undistort")
    flat = Lens(
        "PINHOLE",
        camera.width,
        camera.height,
        tuple(float(camera.K[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2))),
    )
    with ImageLoader([camera]) as loader:
        got = loader[0].numpy().astype(int)
    assert np.abs(got - pattern(*grid(flat))).max() <= 8, "half the pixels, twice the slope"
    assert abs(camera.original_width - undistorted(lens).width) <= 2


@pytest.mark.parametrize("model", ["SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV"])
def test_without_coefficients_nothing_is_done(tmp_path: Path, model: str) -> None:
    n = {"SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8, "FULL_OPENCV": 12}[model]
    single = model in ("SIMPLE_RADIAL", "RADIAL")
    params = ([60.0] if single else [60.0, 60.0]) + [20.0, 15.0]
    lens = Lens(model, 40, 30, (*params, *[0.0] * (n - len(params))))
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(path)
    image = PosedImage("a.png", path, lens, np.eye(3), np.zeros(3))
    (camera,) = make_cameras([image], 1, distortion="refuse")
    assert camera.undistortion is None
    assert camera.K.tolist() == [[60, 0, 20], [0, 60, 15], [0, 0, 1]]


def test_fisheye_without_coefficients_is_no_pinhole() -> None:
    assert not Lens("OPENCV_FISHEYE", 40, 30, (60.0, 60.0, 20.0, 15.0, 0, 0, 0, 0)).is_pinhole
    assert not Lens("FISHEYE", 40, 30, (60.0, 60.0, 20.0, 15.0)).is_pinhole


def test_images_are_kept_by_what_they_are_made_of(tmp_path: Path) -> None:
    lens, path = LENSES[0], tmp_path / "a.png"
    image = PosedImage("a.png", path, lens, np.eye(3), np.zeros(3))
    for value in (10, 200):
        Image.new("RGBA", (WIDTH, HEIGHT), (value, value, value, 255)).save(path)
        (camera,) = make_cameras([image], 1, distortion="undistort", cache=tmp_path / "kept")
        with ImageLoader([camera]) as loader:
            assert loader[0][20, 20, 0] == value
        with ImageLoader([camera], white_background=True) as loader:
            assert loader[0][20, 20, 0] == value
    assert len(list((tmp_path / "kept").iterdir())) == 4


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").write_text("in the way")
    path = tmp_path / "a.png"
    Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9)).save(path)
    image = PosedImage("a.png", path, LENSES[0], np.eye(3), np.zeros(3))
    (camera,) = make_cameras([image], 1, distortion="undistort", cache=tmp_path / "kept")
    with ImageLoader([camera]) as loader:
        assert loader[0][20, 20, 0] == 9
    assert "an undistorted image is not kept" in caplog.text


def test_distortion_that_nothing_removes() -> None:
    with pytest.raises(SplatrimError, match="distortion of a .* cannot be removed"):
        undistorted(Lens("EQUIRECTANGULAR", 40, 20, (40.0, 20.0)))
