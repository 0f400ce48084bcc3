"""Photographs are copied upright and small; of a video's windows the sharpest frame is taken."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray
from PIL import Image

from gs.errors import SplatrimError
from gs.prepare.pictures import (
    ORIENTATION,
    copy_photos,
    extract_frames,
    find_photos,
    sharpest,
    sharpness,
)

FOCAL_LENGTH = 0x920A


def silent(done: int, total: int) -> None:
    """Progress that nobody sees."""


def test_every_nth_photograph_by_name(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "a.jpg", "deep/c.jpeg", "notes.txt", ".hidden.jpg", "d.tif"):
        (tmp_path / name).touch()
    names = [path.name for path in find_photos(tmp_path, 1)]
    assert names == ["a.jpg", "b.PNG", "d.tif", "c.jpeg"]
    assert [path.name for path in find_photos(tmp_path, 3)] == ["a.jpg", "c.jpeg"]
    with pytest.raises(SplatrimError, match="1 photographs to use: a scene needs two"):
        find_photos(tmp_path, 4)


def test_photographs_become_upright_and_small(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    left_red = Image.new("RGB", (80, 40), "blue")
    left_red.paste((255, 0, 0), (0, 0, 40, 40))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # turn right to see it upright
    exif.get_ifd(0x8769)[FOCAL_LENGTH] = 35.0
    left_red.save(source / "turned.jpg", exif=exif, quality=95)
    left_red.save(source / "small.png")
    Image.new("L", (300, 150)).save(source / "wide.tif")
    seen: list[tuple[int, int]] = []
    photos = find_photos(source, 1)
    copy_photos(photos, source, target, 100, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert sorted(path.name for path in target.iterdir()) == ["small.png", "turned.jpg", "wide.jpg"]
    assert (target / "small.png").read_bytes() == (source / "small.png").read_bytes()
    with Image.open(target / "turned.jpg") as image:
        assert image.size == (40, 80)
        red, _, blue = image.getpixel((20, 10))  # type: ignore[misc]
        assert red > 200 and blue < 60
        assert image.getexif().get(ORIENTATION, 1) == 1
        assert image.getexif().get_ifd(0x8769)[FOCAL_LENGTH] == 35.0
    with Image.open(target / "wide.jpg") as image:
        assert (image.size, image.mode) == ((100, 50), "RGB")


def test_broken_photographs_and_names_of_two(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(source / name)
    (source / "b.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(SplatrimError, match=r"cannot read the photograph .*b\.png"):
        copy_photos(find_photos(source, 1), source, tmp_path / "out", 100, silent)
    Image.new("RGB", (8, 8)).save(source / "a.jpg")
    with pytest.raises(SplatrimError, match="several photographs called a: keep one"):
        copy_photos(find_photos(source, 1), source, tmp_path / "out", 100, silent)


def frames(*scores: int) -> Iterator[ndarray]:
    """Frames of 8x8 with stripes of these contrasts, which are in their first pixel."""
    for score in scores:
        frame = np.zeros((8, 8, 3), np.uint8)
        frame[:, ::2] = score
        yield frame


def test_of_each_window_the_sharpest() -> None:
    def chosen(window: float, *scores: int) -> list[int]:
        return [int(frame[0, 0, 0]) for frame in sharpest(frames(*scores), window)]

    assert chosen(3, 1, 9, 2, 8, 3, 4, 5) == [9, 8, 5]
    assert chosen(2.5, 1, 2, 3, 9, 8, 7, 6, 5) == [3, 9, 7]
    assert chosen(0.5, 4, 6) == [4, 6]  # more than the video has
    assert chosen(100, 4, 6) == [6]
    sharp, flat = next(frames(200)), np.full((8, 8, 3), 90, np.uint8)
    assert sharpness(sharp) > 100 * sharpness(flat) == 0


def test_frames_of_a_video(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs the package imageio-ffmpeg")
    video = tmp_path / "v.mp4"
    writer = ffmpeg.write_frames(str(video), (64, 48), fps=10, macro_block_size=1)
    writer.send(None)
    for index in range(20):
        # a checkerboard is sharp, its blur is not: every fifth is the sharpest of its window
        board = np.indices((48, 64)).sum(0) // 8 % 2 * (200 if index % 5 == 3 else 60)
        writer.send(np.repeat(board[..., None], 3, 2).astype(np.uint8).tobytes())
    writer.close()
    extract_frames(video, tmp_path / "out", 32, 2.0, silent)
    paths = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == [f"{i:05d}.jpg" for i in range(4)]
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (32, 24) and np.asarray(image).max() > 130
    with pytest.raises(SplatrimError, match="gave 1 frames: a scene needs two or more"):
        extract_frames(video, tmp_path / "few", 32, 0.1, silent)
    video.write_bytes(b"no video")
    with pytest.raises(SplatrimError, match=r"cannot read the video .*v\.mp4"):
        extract_frames(video, tmp_path / "none", 32, 2.0, silent)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(SplatrimError, match=r'pip install "splatrim\[video\]"'):
        extract_frames(tmp_path / "v.mp4", tmp_path / "out", 32, 2.0, silent)
