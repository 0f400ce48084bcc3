"""Scenes that COLMAP reconstructed: where their model and images lie, and what they hold."""

import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import SplatrimError
from .colmap_files import (
    ModelImage,
    ModelPoints,
    count_images,
    read_cameras,
    read_images,
    read_points,
)
from .find_images import find_images
from .points import read_point_cloud
from .posed import PosedImage

NEEDED = ("cameras", "images")
POINTS = "points3D"
# where models lie, in this order; all that is in the first place that has any is compared
PLACES = (
    "sparse",
    "colmap/sparse",
    "colmap",
    "dense",
    "undistorted",
    "distorted/sparse",
    "model",
    "reconstruction",
    ".",
)
MOST_ERROR, FEWEST_VIEWS = 2.0, 3  # pixels, and observations, of a point that depths are taken from
IMAGE_FOLDERS = ("images", "rgb", "image", "input", "imgs", "color", "frames", "colmap/images")

logger = logging.getLogger("splatrim")


class SourceScene(NamedTuple):
    """A scene as its files describe it, in float64."""

    train: list[PosedImage]
    """All images, where `test` is None: the caller splits them."""
    test: list[PosedImage] | None
    xyz: NDArray[np.float64]
    """[M, 3]"""
    rgb: NDArray[np.float32]
    """[M, 3] in 0..1"""
    remedy: str = ""
    """What to do about distortion, as the end of a sentence."""
    exact: NDArray[np.bool_] = np.zeros(0, np.bool_)
    """Which points are well reconstructed. [M], or empty where observations are not known."""


def find_model(source: Path) -> Path | None:
    """The folder of the sparse model; None where there is none.

    Where several models lie side by side, as COLMAP leaves them when it cannot join all images, the
    one with most images is taken, which is told.
    """
    for place in PLACES:
        models = list(_models(_folder(source, place)))
        if not models:
            continue
        if len(models) == 1:
            return models[0]
        counts = {model: count_images(_image_file(model)) for model in models}
        # the first of equals: sparse/0
        best = max(models, key=lambda model: counts[model])
        others = ", ".join(
            f"{_shown(model, source)} with {counts[model]}" for model in models if model != best
        )
        if any(counts[model] for model in models if model != best):
            logger.warning(
                f"{source} holds {len(models)} models: {_shown(best, source)} with {counts[best]} "
                f"images is taken, not {others}"
            )
        return best
    return None


def _shown(model: Path, source: Path) -> str:
    return model.relative_to(source).as_posix()


def _folder(source: Path, name: str) -> Path:
    """A folder below the scene's; in other case where it is not there as it is called."""
    folder = source
    for part in Path(name).parts:
        there = folder / part
        if not there.exists() and folder.is_dir():
            others = sorted(path for path in folder.iterdir() if path.name.lower() == part.lower())
            there = others[0] if others else there
        folder = there
    return folder


def _models(place: Path) -> Iterator[Path]:
    """Models in numbered or named folders of a place, in order; else the place itself."""
    if not place.is_dir():
        return
    found = False
    if place.name:
        folders = sorted(place.iterdir(), key=lambda path: (not path.name.isdigit(), path.name))
        for folder in folders:
            for model in (folder, folder / "sparse", folder / "sparse" / "0"):
                if _has_model(model):
                    found = True
                    yield model
                    break
    if not found and _has_model(place):
        yield place


def _has_model(folder: Path) -> bool:
    return any((folder / f"{name}.{end}").is_file() for name in NEEDED for end in ("bin", "txt"))


def _image_file(model: Path) -> Path:
    binary = model / "images.bin"
    return binary if binary.is_file() else model / "images.txt"


def read(source: Path, model: Path, images: str | None) -> SourceScene:
    """Read all posed images of a sparse model, by name, and its points.

    Points come from points3D.bin, .txt or .ply; none where no such file is there.

    Args:
        source: The scene's folder.
        model: The folder of the sparse model.
        images: Image folder, relative to the scene's; default: the first usual one that holds them.

    Raises:
        SplatrimError: a file is missing or damaged, or an image is not found.
    """
    ends = {
        end: [name for name in NEEDED if not (model / f"{name}.{end}").is_file()]
        for end in ("bin", "txt")
    }
    end = min(ends, key=lambda end: len(ends[end]))
    if ends[end]:
        raise SplatrimError(f"{model} is incomplete: {ends[end][0]}.{end} is missing")
    lenses = read_cameras(model / f"cameras.{end}")
    posed = read_images(model / f"images.{end}")
    if not posed:
        raise SplatrimError(f"{model} holds no image with a pose")
    points = _points(model, end)
    posed.sort(key=lambda image: image.name)
    used = {image.camera_id for image in posed}
    for camera_id in sorted(used):
        if camera_id not in lenses:
            raise SplatrimError(f"{model} is damaged: it lacks camera {camera_id} of an image")
        lenses[camera_id].check(f"camera {camera_id} in {model}")
    folder, paths = _find_images(source, model, images, [image.name for image in posed])
    found = [
        PosedImage(
            image.name.replace("\\", "/"),
            path,
            lenses[image.camera_id],
            image.rotation,
            image.translation,
            _rows(image, points.ids),
        )
        for image, path in zip(posed, paths, strict=True)
    ]
    words = ["colmap", "image_undistorter", "--image_path", str(folder), "--input_path", str(model)]
    command = shlex.join([*words, "--output_path", f"{source}_undistorted"])
    remedy = f": undistort the images with `{command}`"
    # a model without observations has no lengths
    exact = (points.errors <= MOST_ERROR) & (
        (points.lengths >= FEWEST_VIEWS) | ~points.lengths.any()
    )
    return SourceScene(found, None, points.xyz, points.rgb, remedy, exact)


def _points(model: Path, end: str) -> ModelPoints:
    """Points of the model, from the format of its other files first."""
    for suffix in (end, "txt" if end == "bin" else "bin"):
        path = model / f"{POINTS}.{suffix}"
        if path.is_file():
            return read_points(path)
    for name in (f"{POINTS}.ply", "points3d.ply", "points.ply"):
        if (model / name).is_file():
            xyz, rgb = read_point_cloud(model / name)
            logger.info(f"starting points are those of {model / name}")
            # without ids nothing is known of observations
            return ModelPoints(np.zeros(0, np.uint64), xyz, rgb)
    return ModelPoints(np.zeros(0, np.uint64), np.zeros((0, 3)), np.zeros((0, 3), np.float32))


def _rows(image: ModelImage, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Rows of the points that an image observed."""
    if not len(ids) or not len(image.point_ids):
        return np.zeros(0, np.int64)
    rows = np.minimum(np.searchsorted(ids, image.point_ids), len(ids) - 1)
    return rows[ids[rows] == image.point_ids]


def _find_images(
    source: Path, model: Path, images: str | None, names: list[str]
) -> tuple[Path, list[Path]]:
    """The image folder, and the files in it."""
    if images is not None:
        folder = _folder(source, images)
        if not folder.is_dir():
            raise SplatrimError(f"no such image folder: {folder}")
        return folder, find_images(folder, names)
    usual = [_folder(source, name) for name in IMAGE_FOLDERS]
    # beside the model, as COLMAP's undistorter and its automatic reconstruction leave it
    parents = [place for place in model.parents if place.is_relative_to(source)]
    if model == source:  # the scene was given by its model: scene/sparse/0
        usual += [place / "images" for place in source.absolute().parents[:2]]
    usual += [place / "images" for place in parents]
    first: SplatrimError | None = None
    for folder in dict.fromkeys([*usual, *parents, source]):
        if not folder.is_dir() or (folder not in usual and not _may_hold(folder, names)):
            continue
        try:
            return folder, find_images(folder, names)
        except SplatrimError as error:
            first = first or error
    raise first or SplatrimError(f"no such image folder: {source / 'images'}")


def _may_hold(folder: Path, names: list[str]) -> bool:
    """Whether a folder of other things may have the images too: saves a walk through all of it."""
    plain = [name.replace("\\", "/").lower() for name in names]
    stems = {os.path.splitext(name.split("/")[-1])[0] for name in plain}
    folders = {name.split("/")[0] for name in plain if "/" in name}
    return any(
        name in folders if entry.is_dir() else os.path.splitext(name)[0] in stems
        for entry in os.scandir(folder)
        for name in (entry.name.lower(),)
    )
