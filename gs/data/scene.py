"""Reading a scene from its folder: cameras, train and test split, initial points."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SplatrimError
from ..invocation import command
from . import colmap, transforms
from .camera import NEAR_PLANE, Camera, camera_extent
from .find_images import SUFFIXES
from .geo import Offset, check_positions, find_offset, sound_points
from .masks import has_mask, with_masks
from .posed import PosedImage, make_cameras, shifted
from .resolution import check_resolution
from .tracks import Tracks, find_tracks
from .visibility import near_plane

TEST_EVERY = 8
LISTED = "test.txt"  # test images of a COLMAP scene, a name per line
BLENDER_POINTS = 100_000
BLENDER_BOX = 1.3
COLMAP_BOX = 3.0
DISTORTION = ("undistort", "native", "refuse")

logger = logging.getLogger("splatrim")


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
    """ "colmap", "blender" (transforms_train.json) or "nerfstudio" (transforms.json)."""
    world_offset: Offset = (0.0, 0.0, 0.0)
    """Add it to positions for those of the scene's files: zero unless they were large."""
    near: float = NEAR_PLANE
    """Near plane of all its cameras, in world units."""
    tracks: Tracks | None = None
    """Points that its images show, where its files say it."""

    @property
    def record(self) -> dict[str, Any]:
        """What a run's config.json says of how the scene was read."""
        record: dict[str, Any] = {"world_offset": list(self.world_offset), "near_plane": self.near}
        n_masked = sum(map(has_mask, [*self.train, *self.test]))
        return record | ({"masked_images": n_masked} if n_masked else {})


def load_scene(
    source: Path,
    *,
    images: str | None = None,
    resolution: int = -1,
    eval: bool = False,
    white_background: bool = False,
    init_points: int | None = None,
    distortion: str = "undistort",
    seed: int = 0,
    cache: Path | None = None,
    world_offset: Sequence[float] | None = None,
    near: float | None = None,
    masks: str = "auto",
) -> Scene:
    """Read a COLMAP scene (sparse/0 and the like), or one of transforms*.json.

    Args:
        source: The scene's folder.
        images: Folder of the images; default: the first usual one that has them ("images").
        resolution: 1, 2, 4, 8: divide by that. -1: images wider than 1600 pixels become 1600
            wide. Other values: the width to train at.
        eval: Hold out test cameras: those of transforms_test.json, those that transforms.json or,
            beside a COLMAP model, test.txt lists, else every 8th by name. Otherwise every camera is
            a train camera.
        white_background: Not read here: images are composited by `ImageLoader`.
        init_points: Start from so many random points instead of the scene's: in [-1.3, 1.3]^3
            (Blender; 100,000 where it has none), within 3 extents of the cameras' mean (others).
        distortion: "undistort" removes the distortion of lenses, "native" keeps the images as they
            are and draws through the lenses, "refuse" raises.
        seed: Seed of the random points.
        cache: Folder that keeps undistorted images.
        world_offset: What to subtract from coordinates, as a run recorded it; None: nothing, or
            what makes large coordinates small. [3]
        near: Near plane as a run recorded it; None: 0.2, or less where points are nearer.
        masks: "auto" (those of masks/, if it is there), "none", "alpha", or a folder in the scene.

    Raises:
        SplatrimError: The folder, its description or an image's header is missing or broken.
    """
    source = Path(source)
    if not source.is_dir():
        raise SplatrimError(f"no such folder: {source}")
    check_resolution(resolution)
    if init_points is not None and init_points < 1:
        raise SplatrimError(f"--init_points {init_points}: at least one point is needed")
    if distortion not in DISTORTION:
        raise SplatrimError(f"--distortion {distortion}: choose {', '.join(DISTORTION)}")

    kind, found = _read(source, images, eval, need_points=init_points is None)
    posed = [*found.train, *(found.test or [])]
    if not posed:
        raise SplatrimError(f"{source} has no camera to train on (0 held out for test)")
    check_positions(posed)
    sound = sound_points(posed, found.xyz)
    rows = np.cumsum(sound) - 1
    xyz, rgb = found.xyz[sound], found.rgb[sound]
    offset = find_offset(posed, xyz) if world_offset is None else _checked_offset(world_offset)
    if any(offset):
        shift = np.array(offset)
        xyz = xyz - shift
        if world_offset is None:
            logger.info(f"coordinates are large: {list(offset)} is subtracted from them")
    else:
        shift = np.zeros(3)

    def placed(image: PosedImage) -> PosedImage:
        seen = image.seen[sound[image.seen]]
        return shifted(image, shift, rows[seen])

    moved = [placed(image) for image in posed]
    if near is None:
        near = near_plane(moved, xyz, native=distortion == "native")
    cameras = make_cameras(
        moved, resolution, distortion=distortion, remedy=found.remedy, cache=cache, near=near
    )
    cameras = with_masks(cameras, source, masks)
    listed = _listed_tests(source) if eval and kind == "colmap" else None
    train, test = _split(cameras, None if found.test is None else len(found.train), eval, listed)
    if not train:
        raise SplatrimError(f"{source} has no camera to train on ({len(test)} held out for test)")

    extent = camera_extent(train)
    points, colors = torch.from_numpy(xyz).float(), torch.from_numpy(rgb).float()
    if init_points is None and len(points) == 0:
        if kind == "colmap":
            raise SplatrimError(
                f"the point cloud of {source} is missing or empty: "
                "start from random points with --init_points 100000"
            )
        init_points = BLENDER_POINTS
        logger.info(f"{source} has no point cloud: {init_points} random points are the start")
    if init_points is not None:
        centre, box = torch.zeros(3), BLENDER_BOX
        if kind != "blender" or any(offset):
            centre = torch.stack([camera.position for camera in train]).mean(dim=0)
            box = COLMAP_BOX * extent
        points, colors = random_points(init_points, centre, box, seed)
    tracks = find_tracks(moved, xyz, found.exact[sound] if len(found.exact) else found.exact)
    return Scene(train, test, points, colors, extent, source, kind, offset, near, tracks)


def _read(
    source: Path, images: str | None, eval: bool, *, need_points: bool
) -> tuple[str, colmap.SourceScene]:
    """The kind of a scene and what its files say."""
    model = colmap.find_model(source)
    root = model is not None and model.relative_to(source).parts[:1] != ("colmap",)
    if (source / transforms.TRAIN).is_file() and not root:
        return "blender", transforms.read(source, images, eval, need_points=need_points)
    # nerfstudio's own description goes before the model that it was made from
    if (source / transforms.SINGLE).is_file() and not root:
        return "nerfstudio", transforms.read(source, images, eval, need_points=need_points)
    if model is not None:
        return "colmap", colmap.read(source, model, images)
    if any(path.suffix.lower() in SUFFIXES for path in source.iterdir()):
        scene = source.absolute().with_name(f"{source.absolute().name}_scene")
        raise SplatrimError(
            f"{source} holds photographs, but nothing that says where they were taken: "
            f"make a scene of them with `{command('prepare', source, scene)}`"
        )
    raise SplatrimError(
        f"{source} is not a scene: it holds neither sparse/0 (COLMAP) "
        f"nor {transforms.TRAIN} (Blender) nor {transforms.SINGLE} (nerfstudio)"
    )


def _split(
    cameras: list[Camera], n_train: int | None, eval: bool, listed: set[str] | None
) -> tuple[list[Camera], list[Camera]]:
    """Train and test cameras: as the scene's files say, else every 8th by name is for test."""
    if n_train is not None:
        return cameras[:n_train], cameras[n_train:]
    cameras = sorted(cameras, key=_split_key)
    if not eval:
        return cameras, []
    if listed is not None:
        is_test = [bool({c.image_name, _split_key(c)[0].lstrip("/")} & listed) for c in cameras]
        if not any(is_test):
            raise SplatrimError(f"{LISTED} names {len(listed)} images, of which the scene has none")
        return (
            [c for c, held in zip(cameras, is_test, strict=True) if not held],
            [c for c, held in zip(cameras, is_test, strict=True) if held],
        )
    return [c for i, c in enumerate(cameras) if i % TEST_EVERY], cameras[::TEST_EVERY]


def _listed_tests(source: Path) -> set[str] | None:
    """Names in the scene's list of test images, with or without an extension; None without one."""
    path = source / LISTED
    if not path.is_file():
        return None
    try:
        return {line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise SplatrimError(f"cannot read {path}: {error}") from error


def _checked_offset(offset: Sequence[float]) -> Offset:
    try:
        x, y, z = map(float, offset)
    except (TypeError, ValueError):
        x = y = z = float("nan")
    if not np.isfinite([x, y, z]).all():
        raise SplatrimError(f"the recorded world_offset is damaged: {offset!r:.80}")
    return x, y, z


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
