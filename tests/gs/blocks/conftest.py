"""A small survey in two and more blocks, and what its blocks are trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gs.blocks.config import BlocksConfig
from gs.blocks.partition import make_partition
from gs.blocks.plans import RunSettings
from gs.blocks.trainer import BlockTrainer
from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.adaptive import DensifyConfig
from gs.distributed.ranks import Ranks
from gs.model.rates import OptimConfig
from pruning import MaskGaussianConfig

DENSIFY = DensifyConfig(
    densify_from_iter=4,
    densify_until_iter=30,
    densification_interval=8,
    densify_grad_threshold=4e-5,
)
# few logits' steps are enough to prune
MASKS = MaskGaussianConfig(lambda_mask=1.0, mask_prune_iter=10, mask_lr=0.5, final_threshold=0.3)


@pytest.fixture(scope="session")
def survey(write_scene: Callable[..., Scene]) -> Scene:
    """28 views 32x24 from above of 200 Gaussians on a plane, 26 of them to train on."""
    g = torch.Generator().manual_seed(0)
    points = torch.rand(200, 3, generator=g) * torch.tensor([4.0, 3.0, 0.2])
    views = []
    for k in range(28):
        viewmat = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
        place = torch.tensor([0.4 + 3.2 * (k % 7) / 6, 0.3 + 2.4 * (k // 7) / 3, 1.6])
        viewmat[:3, 3] = -viewmat[:3, :3] @ place
        views.append(viewmat)
    views = [*views[1:11], *views[12:], views[0], views[11]]
    start = points + 0.03 * torch.randn(200, 3, generator=g), torch.rand(200, 3, generator=g)
    return write_scene(points, torch.rand(200, 3, generator=g), views, 26, (32, 24), 30.0, start)


def run_settings(folder: Path, blocks: dict[str, Any] | None = None, **train: Any) -> RunSettings:
    config = TrainConfig(
        folder,
        **{
            "iterations": 36,
            "device": "cpu",
            "quiet": True,
            "sh_degree": 1,
            "sh_degree_interval": 12,
            "test_iterations": (),
            "save_iterations": (),
            **train,
        },
    )
    return RunSettings(
        config,
        BlocksConfig(**{"blocks": 2, "block_interval": 7, **(blocks or {})}),
        OptimConfig(position_lr_max_steps=36),
        DENSIFY,
        MASKS,
        "mask-gaussian",
        False,
        {"seed": config.seed},
    )


@pytest.fixture
def settings() -> Callable[..., RunSettings]:
    """settings(folder, blocks, **train): of a run in blocks."""
    return run_settings


@pytest.fixture
def block_trainer(survey: Scene) -> Callable[..., BlockTrainer]:
    """block_trainer(folder, blocks, start=, ranks=, method=, **train): not begun yet."""

    def make(
        folder: Path,
        blocks: dict[str, Any] | None = None,
        *,
        start: Path | None = None,
        ranks: Ranks | None = None,
        change: Callable[[RunSettings], RunSettings] | None = None,
        **train: Any,
    ) -> BlockTrainer:
        run = run_settings(folder, blocks, **train)
        if start is not None:
            known = dataclasses.replace(run.train, start_checkpoint=start / "blocks")
            run = dataclasses.replace(run, train=known)
        run = run if change is None else change(run)
        partition = make_partition(survey, run.blocks.cut())
        return BlockTrainer(run, survey, partition, torch.device("cpu"), start=start, ranks=ranks)

    return make
