"""What each block is trained with, and what it begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.scene import Scene
from ..data.visibility import check_points, check_sight
from ..errors import SplatrimError
from ..model.gaussians import Gaussians
from ..model.rates import OptimConfig
from ..neural.config import NeuralConfig
from ..neural.momentum import MomentumConfig
from ..seeds import derive_seed
from ..training.strategy import Strategy
from .config import BlocksConfig
from .live import BlockPlan, first_state
from .partition import Partition
from .schedule import Schedule, densifier_in_block, in_share, run_in_block

MOST_IDS = 2**31 - 1
TOGETHER = 5_000_000  # points of which distances to neighbours are found in one piece


class Densification(Protocol):
    """Settings of a densifier."""

    @property
    def densify_until_iter(self) -> int: ...
    def scaled(self, factor: float) -> Any: ...
    def build(self) -> Strategy[Any]: ...


class Pruning(Protocol):
    """Settings of a pruning method."""

    def scaled(self, factor: float) -> Any: ...
    def build(self, *, densify_until: int) -> Strategy[Any]: ...


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run in blocks."""

    train: TrainConfig
    blocks: BlocksConfig
    optim: OptimConfig
    densify: Densification
    pruning: Pruning
    method: str
    white_background: bool
    described: dict[str, Any]
    """As config.json has them."""
    neural: NeuralConfig | None = None
    """Of anchors; None for Gaussians."""
    momentum: MomentumConfig = field(default_factory=MomentumConfig)
    """What blocks of anchors have in common."""


def make_plans(
    run: RunSettings, scene: Scene, partition: Partition, schedule: Schedule
) -> list[BlockPlan]:
    """A plan for each block."""
    plans, n_blocks = [], partition.n_blocks
    weighted = run.train.regularise == "all" and run.blocks.surroundings == "live"
    for block in range(n_blocks):
        share = schedule.share(block)
        seed = run.train.seed if n_blocks == 1 else derive_seed(run.train.seed, "block", block)
        points = partition.n_points
        densify = densifier_in_block(
            run.densify, share, points[block], sum(points), weighted and share < 1
        )
        cameras = partition.cameras[block]
        plans.append(
            BlockPlan(
                block,
                run_in_block(run.train, schedule, block, seed),
                in_share(run.optim, share),
                partial(_strategies, densify, in_share(run.pruning, share)),
                dataclasses.replace(scene, train=[scene.train[i] for i in cameras], test=[]),
                cameras,
                1.0 / share if weighted else 1.0,
                1.0 / share if run.train.adam_rows == "all" else 1.0,
                first_id(scene, block, n_blocks, run.blocks) + ids_per_block(scene, n_blocks),
                run.method,
                run.described,
                run.white_background,
            )
        )
    return plans


def _strategies(densify: Densification, pruning: Pruning) -> list[Strategy[Any]]:
    until = densify.densify_until_iter
    return [densify.build(), pruning.build(densify_until=until)]


def n_first_ids(scene: Scene, n_blocks: int, settings: BlocksConfig) -> int:
    """Ids of Gaussians that runs begin with."""
    copies = n_blocks if settings.block_init == "whole" else 1
    return copies * len(scene.points)


def ids_per_block(scene: Scene, n_blocks: int) -> int:
    """Ids that each block has for its new Gaussians: a range of its own."""
    return (MOST_IDS - n_blocks * len(scene.points)) // n_blocks


def first_id(scene: Scene, block: int, n_blocks: int, settings: BlocksConfig) -> int:
    """The first of them."""
    return n_first_ids(scene, n_blocks, settings) + block * ids_per_block(scene, n_blocks)


def first_states(
    run: RunSettings,
    scene: Scene,
    partition: Partition,
    blocks: Sequence[int],
    device: torch.device,
) -> dict[int, dict[str, Any]]:
    """States of blocks at their points, on the device; those without a point have none.

    Scales follow from the distances to neighbours among all points, as in one piece; of more than
    5 million points from those among the block's own.

    Raises:
        SplatrimError: the points are not usable.
    """
    check_points(scene.points)
    check_sight(scene.train, scene.points, "starting points")
    if ids_per_block(scene, partition.n_blocks) < 1:
        raise SplatrimError("the scene has too many starting points: there are 2^31 ids")
    degree, n = run.train.sh_degree, partition.n_blocks
    owners = partition.owner(scene.points)
    whole = None
    if len(scene.points) <= TOGETHER:
        whole = Gaussians.from_points(scene.points, scene.colors, sh_degree=degree, device=device)
    found = {}
    for block in blocks:
        rows = torch.arange(len(owners))
        if run.blocks.block_init == "points":
            rows = (owners == block).nonzero()[:, 0]
        if not len(rows):
            continue
        model = _part(whole, rows) if whole is not None else None
        if model is None:
            points, colors = scene.points[rows], scene.colors[rows]
            model = Gaussians.from_points(points, colors, sh_degree=degree, device=device)
        ids = rows.to(device, torch.int32)
        if run.blocks.block_init == "whole":
            ids = ids * n + block
        next_id = first_id(scene, block, n, run.blocks)
        found[block] = first_state(model, ids, next_id, run.method, scene.extent)
    return found


def _part(whole: Gaussians, rows: Tensor) -> Gaussians:
    at = rows.to(whole.device)
    tensors = {name: x[at] for name, x in whole.to_tensors().items()}
    return Gaussians(tensors, active_sh_degree=whole.active_sh_degree)
