"""Look at a partition before training: `python -m gs.partition -s SCENE -m OUT --blocks 8`.

Writes OUT/partition.json, which training in OUT takes, OUT/partition.png and, to turn about,
OUT/partition.html, and says what every block has: points, cameras, expected Gaussians and memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ..command_line import read_settings_of
from ..data.scene import Scene, load_scene
from ..data.undistort import FOLDER as UNDISTORTED
from ..errors import SplatrimError
from ..files import check_writable
from ..logs import show_log
from ..ranges import AT_LEAST_ONE, ITERATION, POSITIVE, check_ranges
from .budget import GROWTH, block_gaussians, block_memory, most_gaussians, suggest_blocks
from .manifest import MANIFEST
from .partition import Partition, PartitionConfig, make_partition
from .partition_file import save_partition
from .plan_view import save_plan, save_plan_page

GB = 1e9
MEMORY = 24.0  # GB of the GPU that is assumed where there is none

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class LookConfig:
    """Which scene to cut, and how. Read the scene as training will: with the same flags."""

    source_path: Annotated[Path, tyro.conf.arg(aliases=("-s",))]
    """The scene's folder."""
    model_path: Annotated[Path, tyro.conf.arg(aliases=("-m",))]
    """Where partition.json, partition.png and partition.html go."""
    cut: PartitionConfig = field(default_factory=PartitionConfig)
    images: Annotated[str | None, tyro.conf.arg(aliases=("-i",))] = None
    """Sub-folder with the images."""
    resolution: Annotated[int, tyro.conf.arg(aliases=("-r",)), ITERATION] = -1
    """Resolution as in training."""
    eval: bool = False
    """Hold out test views as training with --eval does."""
    init_points: Annotated[int | None, AT_LEAST_ONE] = None
    """Start from so many random points instead of the scene's."""
    gaussians: Annotated[int | None, AT_LEAST_ONE] = None
    """Gaussians that are expected in all; default: 5 per starting point."""
    gpu_memory: Annotated[float | None, POSITIVE] = None
    """Memory of the GPU in GB (10^9 bytes); default: that of the one here, else 24."""
    quiet: bool = False
    """Show warnings only."""

    def __post_init__(self) -> None:
        check_ranges(self)


def look(config: LookConfig) -> Partition:
    """Cut a scene into blocks, write the plan, and say what it means.

    Raises:
        SplatrimError: the scene is broken, cannot be cut so, or blocks were trained here already.
    """
    if (config.model_path / MANIFEST).is_file():
        raise SplatrimError(
            f"{config.model_path} holds blocks that were trained with its partition.json: "
            "give another -m"
        )
    check_writable(config.model_path)
    scene = load_scene(
        config.source_path,
        images=config.images,
        resolution=config.resolution,
        eval=config.eval,
        init_points=config.init_points,
        cache=config.model_path / UNDISTORTED,
    )
    partition = make_partition(scene, config.cut)
    picture = save_plan(config.model_path, scene, partition)
    page = save_plan_page(config.model_path, scene, partition)
    path = save_partition(config.model_path, partition)
    for line in table(partition, _expected(config, scene)):
        logger.info(line)
    logger.info(advice(config, scene, partition))
    logger.info(f"wrote {path}, {picture} and {page}")
    return partition


def table(partition: Partition, n_gaussians: float) -> list[str]:
    """Points, cameras, expected Gaussians and memory by block, as lines of text."""
    lines = ["block      points  cameras  outside  Gaussians   memory"]
    columns = zip(
        partition.n_points,
        partition.cameras,
        partition.outside,
        block_gaussians(partition, n_gaussians),
        block_memory(partition, n_gaussians),
        strict=True,
    )
    for block, (points, cameras, outside, own, memory) in enumerate(columns):
        lines.append(
            f"{block:5d}  {points:10,d}  {len(cameras):7d}  {outside:6.1f}x  {_millions(own):>9}"
            f"  {memory / GB:4.1f} GB"
        )
    return lines


def advice(config: LookConfig, scene: Scene, partition: Partition) -> str:
    """A sentence on whether the blocks fit into the GPU, and how many would."""
    n, memory = _expected(config, scene), _gpu_memory(config)
    needed = max(block_memory(partition, n))
    start = (
        f"{_millions(n)} Gaussians expected"
        f"{'' if config.gaussians else f' ({GROWTH} per point; say better with --gaussians)'}; "
        f"{memory / GB:.0f} GB hold {_millions(most_gaussians(memory))} in one piece"
    )
    blocks = suggest_blocks(scene, config.cut, n, memory)
    if blocks is None:
        return f"{start}; no number of blocks fits, as each needs 8 of the {len(scene.train)} views"
    if blocks == 1:
        return f"{start}, so no blocks are needed"
    fits = "fit" if needed <= memory else "do not fit"
    now = f"these {partition.n_blocks} {fits} ({needed / GB:.1f} GB)"
    return f"{start}; {now}; --blocks {blocks} suggested"


def _expected(config: LookConfig, scene: Scene) -> float:
    return float(config.gaussians or GROWTH * len(scene.points))


def _gpu_memory(config: LookConfig) -> float:
    if config.gpu_memory is not None:
        return config.gpu_memory * GB
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return MEMORY * GB


def _millions(n: float) -> str:
    return f"{n / 1e6:.1f} M" if n >= 1e5 else f"{n:,.0f}"


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m gs.partition`."""
    config = read_settings_of(LookConfig, args, __doc__)
    show_log(quiet=config.quiet)
    look(config)
