"""Cameras that keep their lenses: what the loader makes of each model, and who uses it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gs.blocks.surroundings import seen_rows
from gs.data.camera import Camera, cameras_json
from gs.data.colmap_text import _lens
from gs.data.lens import Lens
from gs.data.posed import PosedImage, camera_of, make_cameras
from gs.data.tracks import Tracks, depths_of
from gs.data.visibility import near_plane, sees
from gs.errors import SplatrimError
from gs.model.view import pack_view, unpack_view, view_of
from gs.training.batch import grouped
from kernels import Distortion, lenses

pycolmap = pytest.importorskip("pycolmap")

CPU = torch.device("cpu")
LENSES = {
    "SIMPLE_RADIAL": (60, 50, 40, -0.12),
    "RADIAL": (60, 50, 40, -0.12, 0.03),
    "OPENCV": (61, 59, 50, 39, -0.15, 0.04, 0.002, -0.0015),
    "FULL_OPENCV": (61, 59, 50, 39, -0.15, 0.04, 0.002, -0.0015, 0.01, 0.05, -0.02, 0.004),
    "OPENCV_FISHEYE": (40, 39.5, 50.5, 39.5, 0.03, -0.008, 0.002, -0.0004),
    "SIMPLE_RADIAL_FISHEYE": (40, 50, 40, -0.02),
    "RADIAL_FISHEYE": (40, 50, 40, -0.02, 0.003),
    "THIN_PRISM_FISHEYE": (
        40,
        39.5,
        50.5,
        39.5,
        0.03,
        -0.008,
        0.001,
        -0.0008,
        0.002,
        -0.0004,
        0.0012,
        -0.0007,
    ),
    "SIMPLE_FISHEYE": (40, 50, 40),
    "FISHEYE": (40, 41, 50, 40),
    "EQUIRECTANGULAR": (100, 80),
}


def image(folder: Path, model: str, params: Any, size: tuple[int, int] = (100, 80)) -> PosedImage:
    path = folder / f"{model}.png"
    Image.new("RGB", size).save(path)
    lens = Lens(model, 100, 80, tuple(map(float, params)))
    return PosedImage(f"{model}.png", path, lens, np.eye(3), np.zeros(3))


def native(folder: Path, model: str, params: Any = None, **options: Any) -> Camera:
    posed = image(folder, model, LENSES.get(model) if params is None else params, **options)
    (camera,) = make_cameras([posed], 1, distortion="native")
    return camera


@pytest.mark.parametrize("model", LENSES)
def test_points_appear_where_colmap_puts_them(tmp_path: Path, model: str) -> None:
    camera = native(tmp_path, model)
    assert camera.undistortion is None and camera.distortion is not None
    points = np.array([[0.3, -0.2, 1.5], [-0.5, 0.4, 1.3], [0.0, 0.0, 2.0], [0.7, 0.6, 1.0]])
    theirs = pycolmap.Camera(model=model, width=100, height=80, params=LENSES[model])
    pixels, depths = camera.project(torch.from_numpy(points))
    assert np.allclose(pixels.numpy(), theirs.img_from_cam(points), atol=1e-4)  # K is float32
    by_distance = "FISHEYE" in model or model == "EQUIRECTANGULAR"
    want = np.linalg.norm(points, axis=1) if by_distance else points[:, 2]
    assert np.allclose(depths.numpy(), want)
    _, known = depths_of(
        Tracks(torch.from_numpy(points), {camera.image_name: torch.arange(4)}), camera
    )
    assert np.allclose(np.sort(known.numpy()), np.sort(want))


def test_images_of_another_size_keep_their_coefficients(tmp_path: Path) -> None:
    camera = native(tmp_path, "OPENCV_FISHEYE", size=(50, 40))
    full = native(tmp_path, "OPENCV_FISHEYE")
    assert camera.distortion == full.distortion
    point = torch.tensor([[0.4, 0.3, 0.5]])
    assert torch.allclose(2 * camera.project(point)[0], full.project(point)[0], atol=1e-4)
    panorama = native(tmp_path, "EQUIRECTANGULAR", size=(200, 160))
    assert panorama.K[0, 0].item() == pytest.approx(200 / (2 * math.pi))


def test_pinholes_stay_pinholes(tmp_path: Path) -> None:
    camera = native(tmp_path, "OPENCV", (61, 59, 50, 39, 0, 0, 0, 0))
    assert camera.distortion is None and camera.lens == lenses.PINHOLE
    assert view_of(camera, CPU).lenses is None


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(SplatrimError, match="the model FOV are not drawn .*--distortion undistort"):
        native(tmp_path, "FOV", (60, 60, 50, 40, 0.5))
    panorama = image(tmp_path, "EQUIRECTANGULAR", (100, 80))
    with pytest.raises(SplatrimError, match="panoramas have no .*--distortion native"):
        make_cameras([panorama], 1, distortion="undistort")


def test_views_carry_lenses(tmp_path: Path) -> None:
    camera = native(tmp_path, "OPENCV_FISHEYE")
    words = torch.from_numpy(pack_view(camera))
    view = unpack_view(words, 100, 80, 0.2, camera.lens)
    assert view.lenses is not None
    assert view.lenses.kind == lenses.LensKind("fisheye", 4)
    assert torch.equal(view.lenses.words[0], camera.lens_words.float())
    words.zero_()  # a captured step's inputs change in place
    assert (view.lenses.words == 0).all()


def test_steps_render_lenses_of_a_kind_at_once(tmp_path: Path) -> None:
    models = ("OPENCV_FISHEYE", "RADIAL_FISHEYE", "OPENCV_FISHEYE", "OPENCV")
    cameras = [native(tmp_path, model) for model in models]
    order, views = grouped(cameras, [0, 1, 2, 3], CPU, together=True)
    assert order == [0, 2, 1, 3]
    assert [view.n_cameras for view in views] == [2, 1, 1]
    assert views[0].one(1).lens_words is not None
    assert torch.equal(views[0].lens_words[1:], views[0].one(1).lens_words)  # pyright: ignore[reportOptionalSubscript, reportArgumentType]


def test_who_sees_what(tmp_path: Path) -> None:
    camera = native(tmp_path, "FISHEYE")
    points = torch.tensor(
        [[0.0, 0, 1], [2.0, 1.0, 0.1], [1, 0.9, -0.05], [0, 0, -1.0], [0.0, 0, 0.1]]
    )
    # ahead; right, beyond the border; in the corner, 92 degrees off; behind; too near
    assert sees(camera, points).tolist() == [True, False, False, False, False]
    wide = native(tmp_path, "FISHEYE", (30, 30, 50, 40))
    assert sees(wide, points).tolist() == [True, True, True, False, False]
    scales = torch.full((5, 3), math.log(0.05))
    assert seen_rows([wide], points, scales).tolist() == [True, True, True, False, True]
    assert seen_rows([wide], points, scales + 3.0).all()


def test_near_plane_of_a_fisheye_is_a_distance(tmp_path: Path) -> None:
    posed = image(tmp_path, "FISHEYE", (30, 30, 50, 40))
    beside = np.array([[1.0, 0.5, 0.01], [0.8, 0.0, 0.3]])
    assert near_plane([posed], beside, native=True) == 0.2
    near = np.array([[0.08, 0.0, -0.0005], [0.8, 0.0, 0.3]])  # beside the camera
    assert near_plane([posed], near, native=True) == pytest.approx(0.04, abs=1e-4)


@pytest.mark.parametrize("model", LENSES)
def test_colmaps_text_holds_every_lens(tmp_path: Path, model: str) -> None:
    camera = native(tmp_path, model)
    name, width, height, *numbers = _lens(camera).split()
    lens = Lens(name, int(width), int(height), tuple(map(float, numbers)))
    again = camera_of(image(tmp_path, model, LENSES[model]), lens, (100, 80))
    points = torch.tensor([[0.3, -0.2, 1.5], [-0.5, 0.4, 1.3]])
    assert torch.allclose(again.project(points)[0], camera.project(points)[0], atol=1e-4)


def test_cameras_json_says_which_lens(tmp_path: Path) -> None:
    entry, plain = cameras_json(
        [native(tmp_path, "OPENCV_FISHEYE"), native(tmp_path, "PINHOLE", (60, 60, 50, 40))], []
    )
    assert entry["distortion"]["family"] == "fisheye"
    assert Distortion(**entry["distortion"]).radial == (0.03, -0.008, 0.002, -0.0004)
    assert "distortion" not in plain
