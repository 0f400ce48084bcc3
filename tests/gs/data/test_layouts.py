"""Where COLMAP's models and images lie in the folders of people and programs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from gs.data.scene import load_scene
from gs.errors import SplatrimError
from gs.training.run_files import write_points


def write(
    folder: Path,
    sparse: str = "sparse/0",
    images: str | None = "images",
    n: int = 4,
    points: bool = True,
) -> Path:
    """A text model of `n` images; each of its points is seen by all."""
    model = folder / sparse
    model.mkdir(parents=True, exist_ok=True)
    model.joinpath("cameras.txt").write_text("1 PINHOLE 40 30 50 45 19 16\n")
    lines = [f"{i} 1 0 0 0 0.{i} 0 4 1 {i}.png\n\n" for i in range(n)]
    model.joinpath("images.txt").write_text("".join(lines))
    if points:
        rows = [f"{i} 0.{i} 0 0 9 9 9 0\n" for i in range(1, 6)]
        model.joinpath("points3D.txt").write_text("".join(rows))
    if images is not None:
        (folder / images).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            Image.new("RGB", (40, 30)).save(folder / images / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    "sparse", ["sparse/0", "sparse", "colmap/sparse/0", "colmap", "model", "."]
)
def test_models(tmp_path: Path, sparse: str) -> None:
    assert len(load_scene(write(tmp_path, sparse)).train) == 4


@pytest.mark.parametrize(
    ("sparse", "images"),
    [
        ("sparse/0", "images"),
        ("sparse/0", "rgb"),
        ("sparse/0", "input"),
        ("sparse/0", "."),
        ("colmap/sparse/0", "colmap/images"),
        ("dense/0/sparse", "dense/0/images"),
        ("dense/sparse", "dense/images"),
        ("distorted/sparse/0", "input"),
        ("Sparse/0", "Images"),
    ],
)
def test_image_folders(tmp_path: Path, sparse: str, images: str) -> None:
    write(tmp_path, sparse, images)
    (tmp_path / "database.db").touch()
    (camera, *_) = load_scene(tmp_path).train
    assert camera.image_path == tmp_path / images / "0.png"


@pytest.mark.parametrize("sparse", ["sparse/0", "sparse"])
def test_a_scene_given_by_its_model(tmp_path: Path, sparse: str) -> None:
    assert len(load_scene(write(tmp_path, sparse) / sparse).train) == 4


def test_the_usual_folder_is_named_where_none_has_them(tmp_path: Path) -> None:
    write(tmp_path, images=None)
    with pytest.raises(SplatrimError, match=r"no such image folder: .*/images$"):
        load_scene(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(SplatrimError, match=r"4 of 4 images are missing in .*/images: 0\.png, 1"):
        load_scene(tmp_path)


def test_the_largest_model_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "sparse/0", n=2)
    write(tmp_path, "sparse/1", n=4)
    write(tmp_path, "sparse/10", n=3)
    assert len(load_scene(tmp_path).train) == 4
    assert "holds 3 models: sparse/1 with 4 images is taken" in caplog.text
    assert "sparse/0 with 2, sparse/10 with 3" in caplog.text


def test_the_first_of_equal_models_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "sparse/aligned")
    write(tmp_path, "sparse/0")
    (tmp_path / "sparse/aligned/points3D.txt").unlink()
    assert len(load_scene(tmp_path).points) == 5


@pytest.mark.parametrize("name", ["points3D.ply", "points3d.ply"])
def test_points_of_a_ply(tmp_path: Path, name: str) -> None:
    write(tmp_path, points=False)
    write_points(tmp_path / "sparse/0" / name, torch.rand(30, 3), torch.rand(30, 3))
    assert len(load_scene(tmp_path).points) == 30


def test_points_in_the_other_format(tmp_path: Path) -> None:
    write(tmp_path)
    shutil.move(tmp_path / "sparse/0/points3D.txt", tmp_path / "points3D.txt")
    (tmp_path / "sparse/0/points3D.bin").write_bytes(bytes(8))
    with pytest.raises(SplatrimError, match="point cloud .* is missing or empty"):
        load_scene(tmp_path)
    shutil.move(tmp_path / "points3D.txt", tmp_path / "sparse/0/points3D.txt")
    assert len(load_scene(tmp_path).points) == 5, "that of cameras and images goes first"


def test_nerfstudios_description_goes_before_the_model_it_was_made_from(tmp_path: Path) -> None:
    write(tmp_path, "colmap/sparse/0")
    matrix = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]
    (tmp_path / "transforms.json").write_text(
        f'{{"fl_x": 50, "frames": [{{"file_path": "images/0.png", "transform_matrix": {matrix}}}]}}'
    )
    assert load_scene(tmp_path).kind == "nerfstudio"
    write(tmp_path, "sparse/0")
    assert load_scene(tmp_path).kind == "colmap"


def test_pycolmap_is_imported_only_for_distortion(tmp_path: Path, repo: Path) -> None:
    """It takes half a second."""
    write(tmp_path)
    code = f"import sys, pathlib, gs; gs.load_scene(pathlib.Path({str(tmp_path)!r}));"
    code += "assert 'pycolmap' not in sys.modules and 'gs.data.colmap' in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=repo, check=True, timeout=100)
