"""Partition: which block owns which part of a scene, and which cameras it is trained on.

It follows from the scene and these settings alone, never from the number of GPUs. A point counts 1
and once more for every camera that sees it, as work follows pixels as well as points. A camera
belongs to every block that owns more than a share of the points in its image, and to the block that
owns most of them whatever the share, so that every camera has a block.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..data.camera import Camera
from ..data.scene import Scene
from ..data.visibility import sees
from ..errors import SplatrimError
from ..ranges import AT_LEAST_ONE, SHARE, check_ranges
from .cells import Cells, full_grid, split
from .frame import Frame, find_frame

LEAST_CAMERAS = 8  # of a block
MOST_TESTS = 1 << 26  # points times cameras; of more points a sample is looked at
KINDS = ("kd", "grid")

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class PartitionConfig:
    """How a scene is cut into blocks."""

    blocks: Annotated[int, AT_LEAST_ONE] = 1
    """Blocks that are trained in turn, or at once on several GPUs; 1: in one piece."""
    partition: str = "kd"
    """kd: halves of about equal work, any number; grid: Momentum-GS's contracted cells."""
    block_dims: tuple[int, int, int] | None = None
    """Cells of the grid along x, y and z, instead of --blocks."""
    aabb: tuple[float, float, float, float, float, float] | None = None
    """Box x0 y0 z0 x1 y1 z1, in the scene's coordinates, that becomes the grid's inner half."""
    up: tuple[float, float, float] | None = None
    """The up axis; default: found from cameras and points."""
    camera_share: Annotated[float, SHARE] = 0.02
    """A camera belongs to a block with more than this share of the points that it sees."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.partition not in KINDS:
            raise SplatrimError(f"--partition {self.partition}: choose {' or '.join(KINDS)}")
        if self.partition == "kd":
            if self.block_dims is not None or self.aabb is not None:
                raise SplatrimError("--block_dims and --aabb belong to --partition grid")
            return
        if self.block_dims is None or self.aabb is None:
            raise SplatrimError("--partition grid needs --block_dims and --aabb")
        if min(self.block_dims) < 1:
            raise SplatrimError("--block_dims: at least one cell along each axis is needed")
        if self.blocks not in (1, math.prod(self.block_dims)):
            raise SplatrimError(
                f"--blocks {self.blocks} contradicts --block_dims: leave it out with a grid"
            )
        low, high = self.aabb[:3], self.aabb[3:]
        if not all(-1e30 < a < b < 1e30 for a, b in zip(low, high, strict=True)):
            raise SplatrimError("--aabb: expected x0 y0 z0 x1 y1 z1, each second above its first")

    @property
    def n_blocks(self) -> int:
        """Blocks asked for, before small ones are merged."""
        return self.blocks if self.block_dims is None else math.prod(self.block_dims)

    def to_json(self) -> dict[str, Any]:
        """Settings by name, as JSON has them."""
        return json.loads(json.dumps(vars(self)))


@dataclass(frozen=True)
class Partition:
    """A scene's blocks."""

    settings: PartitionConfig
    frame: Frame
    cells: Cells
    cameras: tuple[tuple[int, ...], ...]
    """Of each block, the training cameras that it is trained on, by index, ascending."""
    n_points: tuple[int, ...]
    """Starting points that each block owns."""
    outside: tuple[float, ...]
    """Of each block, points outside that its cameras see, over its own points."""
    names: tuple[str, ...]
    """The scene's training cameras by name."""
    hash: str
    """Of the scene and the settings."""

    @property
    def n_blocks(self) -> int:
        return self.cells.n_blocks

    def owner(self, points: Tensor) -> Tensor:  # [N, 3] -> [N] int64
        """The block that each point belongs to, on the points' device."""
        return self.cells.owner(points)


def make_partition(scene: Scene, settings: PartitionConfig) -> Partition:
    """Cut a scene into blocks.

    Blocks with fewer than 8 cameras go to their siblings, which is said.

    Raises:
        SplatrimError: the scene has fewer than 8 training cameras per block that is asked for.
    """
    n_cameras, wanted = len(scene.train), settings.n_blocks
    most = max(n_cameras // LEAST_CAMERAS, 1)
    if wanted > most:
        raise SplatrimError(
            f"--blocks {wanted}: the scene has {n_cameras} training cameras; give at most 1 block "
            f"per {LEAST_CAMERAS} cameras (here {most})"
        )
    points = scene.points.float().cpu()
    frame = find_frame(scene.train, points, settings.up)
    sample = points[:: len(points) * n_cameras // MOST_TESTS + 1]
    visible = seen_by(scene.train, sample)
    cells = _cells(scene, settings, frame, sample, 1 + visible.sum(dim=0))
    share = visible_share(cells, visible, sample)
    cameras = camera_blocks(share, cells, scene.train, settings.camera_share)
    merged: list[str] = []
    while cells.n_blocks > 1 and min(map(len, cameras)) < LEAST_CAMERAS:
        smallest = min(range(cells.n_blocks), key=lambda b: len(cameras[b]))
        merged.append(str(len(cameras[smallest])))
        cells = cells.without(smallest)
        share = visible_share(cells, visible, sample)
        cameras = camera_blocks(share, cells, scene.train, settings.camera_share)
    if merged:
        logger.warning(
            f"{len(merged)} of {wanted} blocks had fewer than {LEAST_CAMERAS} cameras "
            f"({', '.join(merged)}) and went to their siblings: {cells.n_blocks} blocks are left"
        )
    owners = cells.owner(points)
    return Partition(
        settings,
        frame,
        cells,
        cameras,
        tuple(owners.bincount(minlength=cells.n_blocks).tolist()),
        _outside(cells.owner(sample), visible, cameras),
        tuple(camera.image_name for camera in scene.train),
        partition_hash(scene, settings),
    )


def seen_by(cameras: list[Camera], points: Tensor) -> Tensor:  # [N, 3] -> [C, N] bool
    """Which points are in the image of each camera."""
    return torch.stack([sees(camera, points) for camera in cameras])


def visible_share(
    cells: Cells,
    visible: Tensor,  # [C, N] bool
    points: Tensor,  # [N, 3]
) -> Tensor:  # [C, B] float64
    """Share of each block in the points that a camera sees; zeros for one that sees none."""
    owners = cells.owner(points)
    counts = torch.stack(
        [owners[row].bincount(minlength=cells.n_blocks) for row in visible.unbind()]
    ).double()
    return counts / counts.sum(dim=1, keepdim=True).clamp_min(1)


def camera_blocks(
    share: Tensor,  # [C, B]
    cells: Cells,
    cameras: list[Camera],
    threshold: float,
) -> tuple[tuple[int, ...], ...]:
    """Of each block, the cameras that it is trained on.

    A camera that sees no point belongs to the block where it stands.
    """
    home = cells.owner(torch.stack([camera.position for camera in cameras]))
    best = torch.where(share.sum(dim=1) > 0, share.argmax(dim=1), home)
    belongs = share > threshold
    belongs[torch.arange(len(share)), best] = True
    return tuple(tuple(column.nonzero()[:, 0].tolist()) for column in belongs.T)


def partition_hash(scene: Scene, settings: PartitionConfig) -> str:
    """A digest of what a partition follows from: names, poses, lenses, points and settings."""
    digest = hashlib.sha256()
    known = [settings.to_json(), list(scene.world_offset), [c.image_name for c in scene.train]]
    digest.update(json.dumps(known, sort_keys=True).encode())
    for camera in scene.train:
        digest.update(camera.viewmat.float().cpu().numpy().tobytes())
    digest.update(scene.points.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _cells(
    scene: Scene,
    settings: PartitionConfig,
    frame: Frame,
    points: Tensor,  # [N, 3]
    weights: Tensor,  # [N]
) -> Cells:
    if settings.block_dims is None or settings.aabb is None:
        return split(frame, points, weights, settings.blocks)
    x, y, z = scene.world_offset
    x0, y0, z0, x1, y1, z1 = settings.aabb
    return full_grid((x0 - x, y0 - y, z0 - z, x1 - x, y1 - y, z1 - z), settings.block_dims)


def _outside(
    owners: Tensor,  # [N]
    visible: Tensor,  # [C, N] bool
    cameras: tuple[tuple[int, ...], ...],
) -> tuple[float, ...]:
    found = []
    for block, rows in enumerate(cameras):
        own = owners == block
        seen = visible[list(rows)].any(dim=0) if rows else torch.zeros_like(own)
        found.append(int((seen & ~own).sum()) / max(int(own.sum()), 1))
    return tuple(found)
