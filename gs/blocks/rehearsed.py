"""A rehearsal's steps (gs.rehearsal) as those of a block: among frozen copies of its own model."""

from __future__ import annotations

from typing import Any

import torch

from ..training.trainer import Trainer
from .step import BlockStepper
from .surroundings import find_surroundings, reached_boxes


def surround(trainer: Trainer[Any]) -> None:
    """Let a trainer take a block's steps from now on."""
    model, cameras = trainer.gaussians, trainer.scene.train
    reached_boxes(model, cameras)
    alone = {**model.to_tensors(), "ids": model.rows["ids"]}
    boxes = torch.zeros(len(trainer.cameras), 4, dtype=torch.int32, device=model.device)
    found = find_surroundings([alone], cameras, None, model.device, sh_degree=0)
    model.frozen = None if found is None else found._replace(boxes=boxes)
    graphs, trainer.stepper = (
        trainer.stepper.graphs,
        BlockStepper(
            trainer.config,
            trainer.scene,
            model,
            trainer.optimizer,
            trainer.strategies,
            trainer.images,
            trainer.tracker,
            white_background=trainer.white_background,
        ),
    )
    trainer.stepper.graphs = graphs


def set_degree(trainer: Trainer[Any], degree: int) -> None:
    """Use harmonics up to a degree, of the frozen too."""
    model = trainer.gaussians
    model.active_sh_degree = degree
    frozen = getattr(model, "frozen", None)
    if frozen is not None:
        model.frozen = frozen._replace(splats=frozen.splats._replace(sh_degree=degree))
