"""Pictures for COLMAP: photographs, upright and of limited width, or sharp frames of a video."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import Image, ImageOps

from ..data.find_images import SUFFIXES
from ..data.image_file import UNREADABLE
from ..errors import SplatrimError

VIDEOS = {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts"}
QUALITY = 95  # of JPEGs that are written
ORIENTATION = 0x0112  # EXIF's tag
KEPT = {"JPEG", "PNG"}  # formats that are taken as they are

Tell = Callable[[int, int], None]
"""Gets how many are done, and of how many (0: not known)."""


def find_photos(folder: Path, every: int) -> list[Path]:
    """The photographs of a folder and of those within, by name; every n-th of them.

    Raises:
        SplatrimError: there are fewer than two.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    chosen = [path for path in found if path.is_file() and not path.name.startswith(".")][::every]
    if len(chosen) < 2:
        raise SplatrimError(
            f"{folder} has {len(chosen)} photographs to use: a scene needs two or more"
        )
    return chosen


def copy_photos(photos: list[Path], source: Path, folder: Path, width: int, tell: Tell) -> None:
    """Copy photographs upright and at most `width` pixels wide, under their names.

    Those that are so already are copied byte by byte; the others become JPEGs with their EXIF data,
    from which COLMAP reads the focal length.

    Raises:
        SplatrimError: one is broken, or two have one name without its extension.
    """
    names = [path.relative_to(source).with_suffix("") for path in photos]
    for name in {name for name in names if names.count(name) > 1}:
        raise SplatrimError(f"{source} has several photographs called {name}: keep one of them")

    def copy(path: Path, name: Path) -> None:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with Image.open(path) as image:
                turned = image.getexif().get(ORIENTATION, 1) not in (0, 1)
                if image.format in KEPT and image.width <= width and not turned:
                    shutil.copyfile(path, target.with_name(target.name + path.suffix))
                    return
                upright = ImageOps.exif_transpose(image)
                upright.thumbnail((width, upright.height), Image.Resampling.LANCZOS)
                exif = upright.getexif()
                upright.convert("RGB").save(
                    target.with_name(target.name + ".jpg"), "JPEG", quality=QUALITY, exif=exif
                )
        except UNREADABLE as error:
            raise SplatrimError(f"cannot read the photograph {path}: {error}") from error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(copy, photos, names), 1):
            tell(done, len(photos))


def extract_frames(video: Path, folder: Path, width: int, rate: float, tell: Tell) -> None:
    """Write `rate` frames per second of a video, of each window the sharpest, as 00000.jpg, ...

    Raises:
        SplatrimError: imageio-ffmpeg is missing, or the video cannot be read.
    """
    try:
        ffmpeg: Any = importlib.import_module("imageio_ffmpeg")
    except ImportError as error:
        raise SplatrimError(
            'videos need imageio-ffmpeg: `pip install "splatrim[video]"` brings it'
        ) from error
    scale = f"scale='min({width},iw)':-2"
    reader = ffmpeg.read_frames(str(video), output_params=["-vf", scale])
    try:
        meta = next(reader)
    except (OSError, RuntimeError, StopIteration) as error:
        raise SplatrimError(f"cannot read the video {video}") from error
    columns, rows = meta["size"]
    expected = int(float(meta.get("duration") or 0) * rate)
    frames = (np.frombuffer(data, np.uint8).reshape(rows, columns, 3) for data in reader)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for count, frame in enumerate(sharpest(frames, float(meta["fps"]) / rate), 1):
        Image.fromarray(frame).save(folder / f"{count - 1:05d}.jpg", "JPEG", quality=QUALITY)
        tell(count, max(expected, count))
    if count < 2:
        raise SplatrimError(f"{video} gave {count} frames: a scene needs two or more, raise --fps")


def sharpest(frames: Iterator[ndarray], window: float) -> Iterator[ndarray]:
    """Of every `window` frames [H, W, 3] uint8, which need not be a whole number, the sharpest."""
    best: ndarray | None = None
    best_score, ends = -1.0, window
    for index, frame in enumerate(frames):
        if index >= ends and best is not None:
            yield best
            best, best_score = None, -1.0
            while ends <= index:
                ends += window
        if (score := sharpness(frame)) > best_score:
            best, best_score = frame, score
    if best is not None:
        yield best


def sharpness(frame: ndarray) -> float:  # [H, W, 3] uint8
    """Variance of the Laplacian of its green channel: blur takes it away."""
    green = frame[..., 1].astype(np.float32)
    around = green[:-2, 1:-1] + green[2:, 1:-1] + green[1:-1, :-2] + green[1:-1, 2:]
    laplacian = around - 4 * green[1:-1, 1:-1]
    return float(laplacian.var()) if laplacian.size else 0.0
