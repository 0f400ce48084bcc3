"""A run in blocks from its settings: every input is checked, and nothing of it written yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..data.scene import load_scene
from ..data.undistort import FOLDER as UNDISTORTED
from ..distributed.ranks import Ranks
from ..errors import SplatrimError
from .manifest import read_manifest
from .neural_trainer import NeuralBlockTrainer
from .partition import make_partition
from .partition_file import NAME, partition_of
from .plans import RunSettings
from .saved import blocks_folder
from .trainer import BlockTrainer


def begin_blocks(
    run: RunSettings,
    scene: Mapping[str, Any],
    device: torch.device,
    ranks: Ranks | None = None,
) -> BlockTrainer:
    """The trainer of a run in blocks.

    Args:
        run: All settings.
        scene: What `gs.data.scene.load_scene` takes, and "source_path".
        device: Where to train.
        ranks: Who shares the work; None for one.

    Raises:
        SplatrimError: settings that do not go with blocks, a scene that cannot be cut, or blocks
            of another run.
    """
    train = run.train
    refuse(run)
    folder = blocks_folder(train.start_checkpoint)
    if folder is None and train.start_checkpoint is not None:
        raise SplatrimError(
            f"{train.start_checkpoint} holds no blocks: go on from the folder OUT/blocks, or train"
            " in one piece, without --blocks"
        )
    if folder is not None:
        read_manifest(folder)
    where = {name: value for name, value in scene.items() if name != "source_path"}
    loaded = load_scene(
        scene["source_path"], **where, seed=train.seed, cache=train.model_path / UNDISTORTED
    )
    cut = run.blocks.cut()
    if folder is None and not (train.model_path / NAME).is_file():
        partition = make_partition(loaded, cut)
    else:
        partition = partition_of(folder or train.model_path, loaded, cut)
    described = {**run.described, **loaded.record}
    run = dataclasses.replace(run, described=described)
    kind = BlockTrainer if run.neural is None else NeuralBlockTrainer
    return kind(run, loaded, partition, device, start=folder, ranks=ranks)


def refuse(run: RunSettings) -> None:
    """Raise SplatrimError where something does not go with blocks."""
    train = run.train
    if run.neural is not None and run.method != "3dgs":
        raise SplatrimError(
            f"--method {run.method} does not prune blocks of neural Gaussians yet: leave it out"
        )
    if train.start_ply is not None:
        raise SplatrimError("--start_ply prunes a finished model in one piece: leave --blocks out")
    for flag in ("resolution_schedule", "multi_view_updates"):
        if getattr(train, flag):
            raise SplatrimError(f"--{flag} is for one piece: leave it or --blocks out")
    if train.exposure != "none" or train.random_background:
        raise SplatrimError(
            "--exposure and --random_background are for one piece: leave them or --blocks out"
        )
    if train.viewer:
        raise SplatrimError("--viewer shows a training in one piece: leave it or --blocks out")


def started_in_blocks(start: Path | None) -> bool:
    """Whether a start is the blocks of a run."""
    return blocks_folder(start) is not None
