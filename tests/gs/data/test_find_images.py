"""Image files whose names differ from those of the scene's description."""

from pathlib import Path

import pytest

from gs.data.find_images import find_images
from gs.errors import SplatrimError


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a/1.jpg", "a/1.jpg"),
        ("./a/1.jpg", "a/1.jpg"),
        ("a\\1.jpg", "a/1.jpg"),
        ("my photo (1).jpg", "my photo (1).jpg"),
        ("1.jpg", "1.png"),
        ("1.JPG", "1.jpg"),
        ("Room/1.jpeg", "room/1.JPG"),
        ("1.tif", "1.WEBP"),
        ("1", "1.jpeg"),
        ("1.5", "1.5.jpg"),
        ("1.5", "1.5.bmp"),
        ("a.b.jpg", "a.b.png"),
        ("images/1.png", "1.png"),
        ("C:\\photos\\a\\1.png", "a/1.png"),
        ("/home/me/photos/1.jpg", "1.png"),
        ("1.png", "cam0/1.png"),
    ],
)
def test_finds(tmp_path: Path, name: str, file: str) -> None:
    make(tmp_path, file, "other/2.png", ".hidden/1.png", "notes/1.txt")
    assert find_images(tmp_path, [name]) == [tmp_path / file]


def test_a_whole_path_goes_before_its_end(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "a/1.png", "b/a/1.png")
    assert find_images(tmp_path, ["1.jpg", "a/1.jpg"]) == [tmp_path / "1.png", tmp_path / "a/1.png"]


def test_several_that_fit_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "1.tif")
    with pytest.raises(SplatrimError, match=r"1\.jpg is no file, and several fit it: .* and "):
        find_images(tmp_path, ["1.jpg"])
    assert find_images(tmp_path, ["1.tif"]) == [tmp_path / "1.tif"]


def test_all_that_are_missing_are_listed(tmp_path: Path) -> None:
    make(tmp_path, "a/0.png", "a/1.png")
    with pytest.raises(SplatrimError, match=r"^image a/2\.png is missing: no file .*a/2\.png$"):
        find_images(tmp_path, ["a/0.png", "a/2.png"])
    with pytest.raises(SplatrimError, match=r"2 of 3 images are missing .*: b/0\.png, a/7\.png$"):
        find_images(tmp_path, ["a/0.png", "b/0.png", "a/7.png"])
    names = [f"x{i}.png" for i in range(900)]
    with pytest.raises(SplatrimError, match=r"900 of 900 .*: x0\.png, .*x4\.png and 895 more$"):
        find_images(tmp_path, names)


def test_one_file_is_no_two_images(tmp_path: Path) -> None:
    make(tmp_path, "b/0.png")
    with pytest.raises(SplatrimError, match=r"image a/0\.png is missing"):
        find_images(tmp_path, ["a/0.png", "b/0.png"])


def test_renamed_images_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "0.png", "1.png", "2.png")
    caplog.set_level("INFO", logger="splatrim")
    find_images(tmp_path, ["0.png", "1", "2"])
    assert not caplog.text, "left-out extensions are usual"
    find_images(tmp_path, ["0.png", "1.jpg", "2.jpg"])
    assert "2 of 3 images have other names in" in caplog.text
    assert "1.jpg is 1.png (and 1 more)" in caplog.text
