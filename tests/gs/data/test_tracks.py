"""Which points images show: read from COLMAP's files, projected, one to a pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gs.data.camera import Camera
from gs.data.colmap_files import read_points
from gs.data.scene import load_scene
from gs.data.tracks import Tracks, depths_of, find_tracks

K = torch.tensor([[10.0, 0.0, 8.0], [0.0, 10.0, 6.0], [0.0, 0.0, 1.0]])


def write_text_scene(folder: Path) -> None:
    """Two images and five points in COLMAP's text files, of which points 1 and 4 are inexact."""
    (folder / "images").mkdir(parents=True)
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (16, 12)).save(folder / "images" / f"{name}.png")
    (sparse / "cameras.txt").write_text("1 PINHOLE 16 12 10 10 8 6\n")
    (sparse / "images.txt").write_text(
        "1 1 0 0 0 0 0 0 1 a.png\n4 4 7 5 5 1 6 6 2 1 1 -1\n"
        "2 1 0 0 0 0 0 1 1 b.png\n5 5 9 4 4 3 6 6 4\n"
    )
    (sparse / "points3D.txt").write_text(
        "7 0 0 4 10 20 30 0.5 1 0 2 0 3 0\n"
        "1 0.5 0 4 10 20 30 2.5 1 1 2 1 3 1\n"
        "3 -1 -1 5 10 20 30 2.0 1 0 2 0 3 0 4 0\n"
        "9 1 0.5 6 10 20 30 0.1 1 1 2 0 3 0\n"
        "4 1 1 6 10 20 30 0.1 1 1 2 0\n"
        "2 -1 1 6 10 20 30 1.0 1 1 2 0 3 4\n"
    )


def test_a_text_model_has_errors_and_lengths(tmp_path: Path) -> None:
    write_text_scene(tmp_path)
    points = read_points(tmp_path / "sparse" / "0" / "points3D.txt")
    assert points.ids.tolist() == [1, 2, 3, 4, 7, 9]
    assert points.errors.tolist() == [2.5, 1.0, 2.0, 0.1, 0.5, 0.1]
    assert points.lengths.tolist() == [3, 3, 4, 2, 3, 3]


def test_a_binary_model_has_the_same(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    write_text_scene(tmp_path)
    model = tmp_path / "sparse" / "0"
    (model / "rigs.txt").unlink(missing_ok=True)
    reconstruction = pycolmap.Reconstruction()
    rng = np.random.default_rng(0)
    for k in range(4):
        xyz, color = rng.standard_normal(3), np.array([1, 2, 3], np.uint8)
        point = reconstruction.add_point3D(xyz, pycolmap.Track(), color)
        reconstruction.points3D[point].error = 0.25 * k
    out = tmp_path / "binary"
    out.mkdir()
    reconstruction.write_binary(str(out))
    points = read_points(out / "points3D.bin")
    assert points.errors.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert points.lengths.tolist() == [0] * 4


def test_a_scene_knows_the_exact_points_that_images_show(tmp_path: Path) -> None:
    write_text_scene(tmp_path)
    tracks = load_scene(tmp_path).tracks
    assert tracks is not None
    shown = {name: tracks.points[rows].tolist() for name, rows in tracks.rows.items()}
    # point 1 is off by more than two pixels, point 4 in two images only
    assert shown == {"a.png": [[0, 0, 4], [-1, 1, 6]], "b.png": [[1, 0.5, 6], [-1, -1, 5]]}


def test_without_observations_every_image_may_show_every_exact_point(tmp_path: Path) -> None:
    write_text_scene(tmp_path)
    sparse = tmp_path / "sparse" / "0"
    (sparse / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.png\n\n2 1 0 0 0 0 0 1 1 b.png\n\n")
    lines = (sparse / "points3D.txt").read_text().splitlines()
    (sparse / "points3D.txt").write_text("\n".join(" ".join(x.split()[:8]) for x in lines))
    tracks = load_scene(tmp_path).tracks
    assert tracks is not None and not tracks.rows
    assert len(tracks.points) == 5  # point 1 is off by more than two pixels
    assert find_tracks([], np.zeros((0, 3)), np.zeros(0, np.bool_)) is None


def test_unobserved_points_are_hidden_by_nearer_ones() -> None:
    """A plane at depth 2 covers the left half of one at depth 5."""
    rng = np.random.default_rng(0)
    K = torch.tensor([[100.0, 0.0, 80.0], [0.0, 100.0, 60.0], [0.0, 0.0, 1.0]])
    pixels = rng.uniform([0, 0], [160, 120], (6000, 2))
    z = np.where((pixels[:, 0] < 80) & (np.arange(6000) % 2 == 0), 2.0, 5.0)
    points = torch.from_numpy(np.c_[(pixels - [80, 60]) / 100 * z[:, None], z])
    camera = Camera("a", None, 160, 120, torch.eye(4), K, 160, 120)
    places, depths = depths_of(Tracks(points, {}), camera)
    near = places % 160 < 80
    assert int(near.sum()) > 150 and int((~near).sum()) > 150
    assert float((depths[near] == 2.0).double().mean()) > 0.99
    assert bool((depths[~near] == 5.0).all())


def test_depths_are_those_of_the_nearest_point_of_a_pixel() -> None:
    camera = Camera("a", None, 16, 12, torch.eye(4), K, 16, 12, near=0.5)
    points = [
        [0.1, 0.1, 4.0],  # pixel (8, 6)
        [0.05, 0.05, 2.0],  # the same, and nearer
        [-1.0, -1.0, 2.0],  # (3, 1)
        [5.0, 0.0, 2.0],  # beside the image
        [0.0, 0.0, 0.4],  # before the near plane
        [0.0, 0.0, -3.0],  # behind the camera
        [0.7, 0.5, 1.0],  # (15, 11), the last one
    ]
    tracks = Tracks(torch.tensor(points, dtype=torch.float64), {"a": torch.arange(7)})
    pixels, depths = depths_of(tracks, camera)
    assert pixels.tolist() == [16 + 3, 6 * 16 + 8, 11 * 16 + 15]
    assert depths.tolist() == [2.0, 2.0, 1.0]
    assert pixels.dtype == torch.int32 and depths.dtype == torch.float32
    nothing, _ = depths_of(tracks, Camera("b", None, 16, 12, torch.eye(4), K, 16, 12))
    assert len(nothing) == 0
