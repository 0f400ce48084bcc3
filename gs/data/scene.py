"""Reading a scene from its folder: cameras, train and test split, initial points."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import SplatrimError
from . import blender, colmap
from .camera import Camera, camera_extent
from .resolution import check_resolution

TEST_EVERY = 8
BLENDER_POINTS = 100_000
BLENDER_BOX = 1.3
COLMAP_BOX = 3.0


@dataclass(frozen=True)
class Scene:
    """What training needs of a scene; images stay on disk until the loader decodes them."""

    train: list[Camera]
    test: list[Camera]
    points: Tensor
    """Initial points. [M, 3] float32"""
    colors: Tensor
    """Their colours in 0..1. [M, 3] float32"""
    extent: float
    """1.1 times the largest distance of a train camera to the mean centre, in world units."""
    source: Path
    kind: str
    """ "colmap" or "blender"."""


def load_scene(
    source: Path,
    *,
    images: str | None = None,
    resolution: int = -1,
    eval: bool = False,
    white_background: bool = False,
    init_points: int | None = None,
    seed: int = 0,
) -> Scene:
    """Read a COLMAP scene (sparse/0 or sparse) or a Blender one (transforms_train.json).

    Args:
        source: The scene's folder.
        images: Folder of the images of a COLMAP scene; default "images". The images of
            "images_N" are N times smaller than the cameras say.
        resolution: 1, 2, 4, 8: divide by that. -1: images wider than 1600 pixels become 1600
            wide. Other values: the width to train at.
        eval: Hold out test cameras: every 8th by name (COLMAP), those of transforms_test.json
            (Blender). Otherwise every camera is a train camera.
        white_background: Not read here: images are composited by `ImageLoader`.
        init_points: Start from so many random points instead of the scene's: in [-1.3, 1.3]^3
            (Blender; default 100,000), within 3 extents of the cameras' mean (COLMAP).
        seed: Seed of the random points.

    Raises:
        SplatrimError: The folder, its description or an image's header is missing or broken.
    """
    source = Path(source)
    if not source.is_dir():
        raise SplatrimError(f"no such folder: {source}")
    check_resolution(resolution)
    if init_points is not None and init_points < 1:
        raise SplatrimError(f"--init_points {init_points}: at least one point is needed")

    model = colmap.find_model(source)
    if model is not None:
        kind = "colmap"
        cameras, points, colors = colmap.read(source, model, images, resolution)
        cameras.sort(key=_split_key)
        test = cameras[::TEST_EVERY] if eval else []
        train = [c for i, c in enumerate(cameras) if i % TEST_EVERY] if eval else cameras
    elif (source / blender.TRAIN).is_file():
        kind = "blender"
        train, test = blender.read(source, resolution, eval)
        points = colors = torch.zeros(0, 3)
        init_points = init_points or BLENDER_POINTS
    else:
        raise SplatrimError(
            f"{source} is not a scene: it holds neither sparse/0 (COLMAP) "
            f"nor {blender.TRAIN} (Blender)"
        )
    if not train:
        raise SplatrimError(f"{source} has no camera to train on ({len(test)} held out for test)")

    extent = camera_extent(train)
    if init_points is not None:
        if kind == "colmap":
            centre = torch.stack([camera.position for camera in train]).mean(dim=0)
            box = COLMAP_BOX * extent
        else:
            centre, box = torch.zeros(3), BLENDER_BOX
        points, colors = random_points(init_points, centre, box, seed)
    elif len(points) == 0:
        raise SplatrimError(
            f"the point cloud of {source} is missing or empty: "
            "start from random points with --init_points 100000"
        )
    return Scene(train, test, points, colors, extent, source, kind)


def random_points(
    count: int,
    centre: Tensor,  # [3]
    half_side: float,
    seed: int,
) -> tuple[Tensor, Tensor]:  # [M, 3], [M, 3] float32
    """Uniform points in a cube, nearly grey as 3DGS starts (SH coefficients below 1/255)."""
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 3, generator=generator) * 2 - 1) * half_side + centre
    colors = 0.5 + 0.28209479177387814 * torch.rand(count, 3, generator=generator) / 255
    return points, colors


def _split_key(camera: Camera) -> tuple[str, str]:
    """Sort by name without the extension, which decides the published test splits."""
    folder, _, base = camera.image_name.rpartition("/")
    return f"{folder}/{base.split('.')[0]}", camera.image_name
