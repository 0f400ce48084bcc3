"""Masks: where they are found, what of them counts at the training resolution, and errors."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from gs.data.camera import Camera
from gs.data.loader import ImageLoader
from gs.data.masks import read_mask, with_masks
from gs.errors import SplatrimError

WIDTH, HEIGHT = 12, 8


def camera(path: Path, scale: int = 1) -> Camera:
    size = WIDTH // scale, HEIGHT // scale
    return Camera(path.name, path, *size, torch.eye(4), torch.eye(3), WIDTH, HEIGHT)


def write(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def cameras(tmp_path: Path) -> list[Camera]:
    """Three grey images."""
    grey = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    return [camera(write(tmp_path / "images" / f"{k}.jpg", grey)) for k in range(3)]


def half(dark: slice = slice(0, 5)) -> NDArray[np.uint8]:
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:, dark] = 0
    return mask


def test_files_by_either_convention(tmp_path: Path, cameras: list[Camera]) -> None:
    first = write(tmp_path / "masks" / "0.jpg.png", half())
    second = write(tmp_path / "masks" / "1.png", half())
    found = with_masks(cameras, tmp_path, "auto")
    assert [c.mask_path for c in found] == [first, second, None]
    assert [c.mask_path for c in with_masks(cameras, tmp_path, "none")] == [None] * 3
    assert [c.mask_path for c in with_masks(found, tmp_path, "masks")] == [first, second, None]
    assert with_masks(cameras, tmp_path / "images", "auto") == cameras


def test_loader_gives_them_as_a_fourth_channel(tmp_path: Path, cameras: list[Camera]) -> None:
    write(tmp_path / "masks" / "1.png", half())
    with ImageLoader(with_masks(cameras, tmp_path, "auto")) as loader:
        assert loader.has_masks
        for index, want in ((0, np.full_like(half(), 255)), (1, half())):
            image = loader[index]
            assert image.shape == (HEIGHT, WIDTH, 4) and image.dtype == torch.uint8
            assert np.array_equal(image[..., 3], want)
    with ImageLoader(cameras) as loader:
        assert loader[0].shape == (HEIGHT, WIDTH, 3) and not loader.has_masks


def test_smaller_pixels_count_where_all_beneath_do(tmp_path: Path, cameras: list[Camera]) -> None:
    path = write(tmp_path / "masks" / "0.png", half())
    small = dataclasses.replace(camera(cameras[0].image_path or path, scale=2), mask_path=path)
    assert (read_mask(small)[0] == [0, 0, 0, 255, 255, 255]).all()  # 5 of 12 columns are dark
    # a mask of half the size, and one that a lossy format has blurred
    write(path, half(slice(0, 6))[::2, ::2] // 2 + 100)
    assert (read_mask(small)[0] == [0, 0, 0, 255, 255, 255]).all()


def test_alpha_as_mask_keeps_colours(tmp_path: Path) -> None:
    pixels = np.full((HEIGHT, WIDTH, 4), 200, np.uint8)
    pixels[..., 3] = np.where(half() > 0, 255, 60)
    plain = camera(write(tmp_path / "a.png", pixels))
    (masked,) = with_masks([plain], tmp_path, "alpha")
    with ImageLoader([masked]) as loader:
        assert (loader[0][..., :3] == 200).all()
        assert np.array_equal(loader[0][..., 3], half())
    with ImageLoader([plain]) as loader:
        assert loader[0][0, 0].tolist() == [47, 47, 47]  # over black


def test_transparent_images_keep_alpha_where_asked(tmp_path: Path) -> None:
    pixels = np.full((HEIGHT, WIDTH, 4), 200, np.uint8)
    pixels[..., 3] = np.where(half() > 0, 255, 60)
    plain = camera(write(tmp_path / "a.png", pixels))
    with ImageLoader([plain], transparent=True, white_background=True) as loader:
        assert loader[0][0, 0].tolist() == [47, 47, 47, 60]


@pytest.mark.parametrize("choice", ["masks", "elsewhere"])
def test_wrong_folders_are_refused(tmp_path: Path, cameras: list[Camera], choice: str) -> None:
    (tmp_path / "masks").mkdir()
    with pytest.raises(SplatrimError, match="no such folder|a mask for no image"):
        with_masks(cameras, tmp_path, choice)


def test_broken_files_are_named(tmp_path: Path, cameras: list[Camera]) -> None:
    path = write(tmp_path / "masks" / "0.png", half()[:, :-3])
    (found, *_) = with_masks(cameras, tmp_path, "auto")
    with pytest.raises(SplatrimError, match="0.png has 9x8 pixels, another shape"):
        read_mask(found)
    path.write_bytes(b"no image")
    with pytest.raises(SplatrimError, match="mask 0.png cannot be read"):
        read_mask(found)
