"""ImageLoader: pixels, memory bound, threads, and failures with the name of the image."""

import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gs.data.camera import Camera
from gs.data.loader import ImageLoader
from gs.errors import SplatrimError

WIDTH, HEIGHT = 12, 8
BYTES = WIDTH * HEIGHT * 3


def camera(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), scale: int = 1) -> Camera:
    shape = (size[0] // scale, size[1] // scale)
    return Camera(path.name, path, *shape, torch.eye(4), torch.eye(3), *size)


@pytest.fixture
def cameras(tmp_path: Path) -> list[Camera]:
    """Five random images."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
    return [camera(path) for path in paths]


def pixels(item: Camera) -> torch.Tensor:
    assert item.image_path is not None
    return torch.from_numpy(np.array(Image.open(item.image_path)))


def test_pixels(cameras: list[Camera]) -> None:
    with ImageLoader(cameras) as loader:
        assert len(loader) == 5
        loader.check()
        for index in (3, 0, -1, 3):
            assert loader[index].dtype == torch.uint8
            assert torch.equal(loader[index], pixels(cameras[index]))
        with pytest.raises(IndexError):
            loader[5]


def test_resized_as_pillow_does(cameras: list[Camera]) -> None:
    path = cameras[0].image_path
    assert path is not None
    with ImageLoader([camera(path, scale=2)]) as loader:
        want = np.array(Image.open(path).resize((WIDTH // 2, HEIGHT // 2)))
        assert torch.equal(loader[0], torch.from_numpy(want))


@pytest.mark.parametrize(("white", "want"), [(True, [180, 230, 255]), (False, [80, 130, 155])])
def test_alpha(tmp_path: Path, white: bool, want: list[int]) -> None:
    path = tmp_path / "a.png"
    rgba = (200, 255, 255, 155)
    Image.new("RGBA", (WIDTH, HEIGHT), rgba).save(path)
    with ImageLoader([camera(path)], white_background=white) as loader:
        back = 255 if white else 0
        want = [round((c * 155 + back * 100) / 255) for c in rgba[:3]]
        assert loader[0][2, 3].tolist() == want


def test_grey_and_palette(tmp_path: Path) -> None:
    path, clear = tmp_path / "grey.png", tmp_path / "clear.png"
    Image.new("L", (WIDTH, HEIGHT), 77).save(path)
    palette = Image.new("P", (WIDTH, HEIGHT), 0)
    palette.putpalette([10, 20, 30])
    palette.save(clear, transparency=0)
    with ImageLoader([camera(path), camera(clear)], white_background=True) as loader:
        assert loader[0][0, 0].tolist() == [77, 77, 77]
        assert loader[1][0, 0].tolist() == [255, 255, 255], "the transparent entry of a palette"


def test_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 40_000, np.uint16)).save(path)
    with ImageLoader([camera(path)]) as loader:
        assert loader[0][0, 0].tolist() == [round(40_000 / 257)] * 3
    path = tmp_path / "deep.tif"
    Image.fromarray(np.full((HEIGHT, WIDTH), 0.5, np.float32)).save(path)
    with ImageLoader([camera(path)]) as loader, pytest.raises(SplatrimError, match=r"deep\.tif"):
        loader[0]


def test_memory_bound(cameras: list[Camera], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = ImageLoader._decode

    def count(self: ImageLoader, index: int) -> torch.Tensor:
        decoded.append(index)
        return original(self, index)

    monkeypatch.setattr(ImageLoader, "_decode", count)
    with ImageLoader(cameras, max_bytes=2 * BYTES + 1) as loader:
        for index in (0, 1, 0, 2, 0, 1):
            assert torch.equal(loader[index], pixels(cameras[index]))
            assert loader.cached_bytes <= 2 * BYTES + 1
    assert decoded == [0, 1, 2, 1], "the least recently used image goes"
    decoded.clear()
    with ImageLoader(cameras, max_bytes=BYTES - 1) as loader:
        loader.prefetch([0])
        assert torch.equal(loader[0], pixels(cameras[0]))
        assert loader.cached_bytes == 0
    assert decoded == [0], "not decoded ahead where it cannot be kept"


def test_dropped_images_are_freed_by_who_asks_for_others(cameras: list[Camera]) -> None:
    """Never by the thread that decodes: it does not know when graphs are captured."""
    freed: list[bool] = []
    asking = threading.current_thread()
    with ImageLoader(cameras, max_bytes=2 * BYTES + 1, threads=1) as loader:
        loader.prefetch([0, 1])
        loader._pool.submit(int).result()
        for k in (0, 1):
            note = lambda: freed.append(threading.current_thread() is asking)  # noqa: E731
            weakref.finalize(loader._cache[k], note)
        loader.prefetch([2, 3])
        loader._pool.submit(int).result()
        assert [*loader._cache] == [2, 3] and not freed
        loader[2]
        assert freed == [True, True]


def test_prefetch(cameras: list[Camera], monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    original = ImageLoader._decode

    def note(self: ImageLoader, index: int) -> torch.Tensor:
        threads.append(threading.current_thread().name)
        return original(self, index)

    monkeypatch.setattr(ImageLoader, "_decode", note)
    with ImageLoader(cameras) as loader:
        loader.prefetch([2, 4])
        loader.prefetch([2, 4])
        assert torch.equal(loader[4], pixels(cameras[4]))
        assert torch.equal(loader[2], pixels(cameras[2]))
    assert len(threads) == 2 and threading.current_thread().name not in threads


def test_many_threads(cameras: list[Camera]) -> None:
    wrong: list[int] = []
    with ImageLoader(cameras, max_bytes=2 * BYTES, threads=3) as loader:

        def read(seed: int) -> None:
            for index in np.random.default_rng(seed).integers(0, 5, 40).tolist():
                loader.prefetch([(index + 1) % 5])
                if not torch.equal(loader[index], pixels(cameras[index])):
                    wrong.append(index)

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout=60)
        assert not any(reader.is_alive() for reader in readers)
    assert not wrong


def test_failure_in_a_thread(cameras: list[Camera]) -> None:
    path = cameras[1].image_path
    assert path is not None
    content = path.read_bytes()
    path.unlink()
    with ImageLoader(cameras) as loader:
        loader.prefetch([0, 1])
        with pytest.raises(SplatrimError, match=r"image 1\.png is missing"):
            loader[1]
        assert torch.equal(loader[0], pixels(cameras[0]))
        path.write_bytes(content)
        assert torch.equal(loader[1], pixels(cameras[1])), "asking again tries again"


def test_truncated_image(cameras: list[Camera]) -> None:
    path = cameras[1].image_path
    assert path is not None
    path.write_bytes(path.read_bytes()[:-60])
    with ImageLoader(cameras) as loader:
        with pytest.raises(SplatrimError, match=r"image 1\.png cannot be read"):
            loader[1]


def test_wrong_size(cameras: list[Camera]) -> None:
    path = cameras[1].image_path
    assert path is not None
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(path)
    with ImageLoader(cameras) as loader:
        for act in (loader.check, lambda: loader[1]):
            with pytest.raises(SplatrimError, match=r"1\.png has the wrong size: 12x9 .* 12x8"):
                act()


def test_check_missing(cameras: list[Camera]) -> None:
    path = cameras[3].image_path
    assert path is not None
    path.unlink()
    with ImageLoader(cameras) as loader, pytest.raises(SplatrimError, match=r"3\.png is missing"):
        loader.check()


def test_no_image() -> None:
    bare = Camera("x", None, WIDTH, HEIGHT, torch.eye(4), torch.eye(3), WIDTH, HEIGHT)
    with ImageLoader([bare]) as loader:
        for act in (loader.check, lambda: loader[0]):
            with pytest.raises(SplatrimError, match="camera x has no image"):
                act()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="threads"):
        ImageLoader([], threads=0)
    with pytest.raises(ValueError, match="max_bytes"):
        ImageLoader([], max_bytes=-1)


@pytest.mark.gpu
def test_gpu(cameras: list[Camera]) -> None:
    with ImageLoader(cameras, device="cuda") as loader:
        loader.prefetch(range(5))
        for index in range(5):
            assert loader[index].device.type == "cuda"
            assert torch.equal(loader[index].cpu(), pixels(cameras[index]))
