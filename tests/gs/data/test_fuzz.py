"""Damaged and absurd files: every loader returns, or refuses in one sentence; soon and in 2 GB.

20 inputs per loader by default, $SPLATRIM_FUZZ of them where it is set.
"""

import json
import os
import re
import resource
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gs.data.image_file import image_size
from gs.data.loader import ImageLoader
from gs.data.points import read_point_cloud
from gs.data.scene import load_scene
from gs.errors import SplatrimError
from gs.model.ply import load_opacities, load_ply, read_offset, save_ply
from gs.training.run_files import write_points

SECONDS = 10
BYTES = 2 << 30
COUNT = int(os.environ.get("SPLATRIM_FUZZ", "20"))
fuzz = settings(
    max_examples=COUNT,
    deadline=SECONDS * 1000,
    database=None,
    derandomize=COUNT <= 20,  # the same inputs in every short run
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.function_scoped_fixture,
    ],
)

WORDS = [
    "nan",
    "inf",
    "-1",
    "0",
    "1e400",
    "-1e20",
    "1e20",
    "99999999999999999999",
    "",
    "é",
    "a b",
    "#",
    "PINHOLE",
    "OPENCV",
    "EQUIRECTANGULAR",
    "/",
    "..",
    "\0",
    "\ufeff",
    "x" * 5000,
]
NUMBERS = [
    struct.pack("<d", value) for value in (np.nan, np.inf, -1.0, 0.0, 1e20, 1e308, 1e-320)
] + [struct.pack("<Q", value) for value in (0, 1, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)]


@st.composite
def damage(draw: st.DrawFn, data: bytes) -> bytes:
    """Up to four changes: of words, of numbers' bytes, of bits, of length, of order."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["word", "number", "bit", "cut", "double", "insert", "head"]))
        if kind == "word":
            spans = [match.span() for match in re.finditer(rb"[^\s,:\[\]{}\"]+", data)]
            if spans:
                start, end = draw(st.sampled_from(spans))
                data = data[:start] + draw(st.sampled_from(WORDS)).encode() + data[end:]
        elif kind == "number":
            number = draw(st.sampled_from(NUMBERS))[: draw(st.sampled_from([2, 4, 8]))]
            data = data[:at] + number + data[at + len(number) :]
        elif kind == "head":  # where counts and magic numbers are
            at = min(at % 64, len(data))
            data = data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at + 1 :]
        elif kind == "bit" and data:
            flipped = data[at] ^ (1 << draw(st.integers(0, 7)))
            data = data[:at] + bytes([flipped]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "double":
            data = data[:at] + data[at // 2 :]
        else:
            data = data[:at] + draw(st.binary(max_size=12)) + data[at:]
    return data


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """For one damaged file after the other."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < BYTES


def returns_or_refuses(load: Callable[[], object]) -> None:
    """Anything but SplatrimError, with one line, comes through."""
    try:
        load()
    except SplatrimError as error:
        assert str(error) and "\n" not in str(error)


def load_all(folder: Path) -> None:
    """A scene and its first image, as a run begins."""
    scene = load_scene(folder, eval=True, init_points=None)
    with ImageLoader(scene.train, threads=1) as loader:
        loader.check()
        loader[0]
    assert torch.isfinite(scene.points).all()
    for camera in scene.train:
        assert torch.isfinite(camera.viewmat).all() and torch.isfinite(camera.K).all()


def colmap_scene(folder: Path, end: str) -> Path:
    model = pycolmap.Reconstruction()
    for camera_id, name in ((1, "PINHOLE"), (2, "OPENCV")):
        camera = pycolmap.Camera.create_from_model_name(camera_id, name, 20.0, 20, 16)
        model.add_camera_with_trivial_rig(camera)
    (folder / "images").mkdir(parents=True)
    for i in range(1, 4):
        image = pycolmap.Image(name=f"{i}.png", camera_id=1 + i % 2, image_id=i)
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(np.array([1.0, 2.0]))])
        pose = pycolmap.Rigid3d(np.column_stack([np.eye(3), [0.1 * i, 0, 4]]))
        model.add_image_with_trivial_frame(image, pose)
        Image.new("RGB", (20, 16), (i, 0, 0)).save(folder / "images" / image.name)
    for i in range(6):
        track = pycolmap.Track()
        track.add_element(1, 0) if i == 0 else None
        model.add_point3D(np.array([0.1 * i, 0, 0]), track, np.zeros(3, np.uint8))
    (folder / "sparse").mkdir()
    getattr(model, "write_text" if end == "txt" else "write_binary")(str(folder / "sparse"))
    return folder


@pytest.mark.parametrize("end", ["bin", "txt"])
@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_colmap(folder: Path, name: str, end: str) -> None:
    scene = colmap_scene(folder / f"colmap {name} {end}", end)
    path = scene / "sparse" / f"{name}.{end}"

    @fuzz
    @given(damage(path.read_bytes()))
    def run(data: bytes) -> None:
        path.write_bytes(data)
        returns_or_refuses(lambda: load_all(scene))

    run()


def transforms_scene(folder: Path) -> tuple[Path, dict[str, Any]]:
    (folder / "images").mkdir(parents=True)
    frames = []
    for i in range(3):
        Image.new("RGB", (20, 16), (i, 0, 0)).save(folder / "images" / f"{i}.png")
        matrix = [[1, 0, 0, 0.1 * i], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": matrix, "cx": 9.5})
    write_points(folder / "points.ply", torch.rand(9, 3), torch.rand(9, 3))
    content = {
        "camera_model": "OPENCV",
        "fl_x": 20.0,
        "fl_y": 21.0,
        "cy": 8.0,
        "w": 20,
        "h": 16,
        "k1": 0.01,
        "ply_file_path": "points.ply",
        "train_filenames": ["images/0.png", "images/1.png"],
        "test_filenames": ["images/2.png"],
        "frames": frames,
    }
    return folder, content


def test_transforms_bytes(folder: Path) -> None:
    scene, content = transforms_scene(folder / "bytes")
    path = scene / "transforms.json"

    @fuzz
    @given(damage(json.dumps(content).encode()))
    def run(data: bytes) -> None:
        path.write_bytes(data)
        returns_or_refuses(lambda: load_all(scene))

    run()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(WORDS)
    | st.sampled_from([10**400, 1e308, -0.0, [[1] * 4] * 4, "nan"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def test_transforms_values(folder: Path) -> None:
    """Valid JSON in which one value, at any depth, is another."""
    scene, content = transforms_scene(folder / "values")
    path = scene / "transforms.json"

    def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        if isinstance(value, (dict, list)):
            for key in value if isinstance(value, dict) else range(len(value)):
                yield (*at, key)
                yield from places(value[key], (*at, key))

    @fuzz
    @given(st.lists(st.tuples(st.sampled_from(list(places(content))), VALUES), max_size=2))
    def run(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
        changed = json.loads(json.dumps(content))
        for at, value in changes:
            parent = changed
            for key in at[:-1]:
                parent = (
                    parent[key] if isinstance(parent, (dict, list)) and _has(parent, key) else {}
                )
            if isinstance(parent, dict) or (isinstance(parent, list) and _has(parent, at[-1])):
                parent[at[-1]] = value
        path.write_text(json.dumps(changed))
        returns_or_refuses(lambda: load_all(scene))

    run()


def _has(parent: Any, key: Any) -> bool:
    if isinstance(parent, dict):
        return key in parent
    return isinstance(parent, list) and isinstance(key, int) and key < len(parent)


def test_deep_nesting(folder: Path) -> None:
    scene, _ = transforms_scene(folder / "deep")
    for text in ("[" * 100_000, '{"frames":' * 100_000, '{"frames": [' + "[" * 90_000):
        (scene / "transforms.json").write_text(text)
        with pytest.raises(SplatrimError, match="is not valid JSON"):
            load_scene(scene)


@pytest.mark.parametrize("kind", ["gaussians", "points", "text"])
def test_ply(folder: Path, kind: str) -> None:
    path = folder / f"{kind}.ply"
    if kind == "gaussians":
        n, k = 4, 3
        shapes = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,)}
        shapes |= {"sh0": (n, 1, 3), "shN": (n, k, 3)}
        save_ply(path, {name: torch.rand(shape) for name, shape in shapes.items()})
    else:
        write_points(path, torch.rand(4, 3), torch.rand(4, 3))
    data = path.read_bytes()
    if kind == "text":
        rows = "1 2 3 0 0 1 9 9 9\n-1 2e3 nan 0 0 1 9 9 9\n" * 2
        header = data[: data.index(b"end_header")].replace(b"binary_little_endian", b"ascii")
        data = header + b"end_header\n" + rows.encode()

    @fuzz
    @given(damage(data))
    def run(damaged: bytes) -> None:
        path.write_bytes(damaged)
        for load in (load_ply, load_opacities, read_offset, read_point_cloud):
            returns_or_refuses(lambda load=load: load(path))

    run()


@pytest.mark.parametrize("end", ["png", "jpg", "tiff", "webp", "gif", "ppm", "bmp", "jp2"])
def test_images(folder: Path, end: str) -> None:
    path = folder / f"image.{end}"
    mode = {"png": "RGBA", "webp": "RGBA", "tiff": "I;16", "gif": "P"}.get(end, "RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, Any] = {"exif": exif} if end in ("jpg", "webp") else {}
    Image.new(mode, (20, 16)).save(path, **options)

    @fuzz
    @given(damage(path.read_bytes()), st.booleans())
    def run(data: bytes, upright: bool) -> None:
        path.write_bytes(data)
        returns_or_refuses(lambda: decode_as_it_is(path, upright))

    run()


def decode_as_it_is(path: Path, upright: bool) -> None:
    from gs.data.image_file import decode

    size = image_size(path, path.name, upright=upright)
    pixels = decode(path, path.name, size, (8, 6), True, upright=upright)
    assert pixels.shape == (6, 8, 3)
