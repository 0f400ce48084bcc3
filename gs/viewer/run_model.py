"""A run's saved model and cameras, as a view of it needs them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.camera import Camera
from ..errors import SplatrimError
from ..evaluation.camera_path import cameras_for
from ..evaluation.run_scene import load_run_scene
from ..formats.model_file import is_antialiased, load_model, load_offset
from ..neural.baking import bake
from ..neural.loading import is_neural, load_anchors
from ..run_record import OWNERS, PLAN, find_model, saved_models
from ..run_settings import read_settings
from .block_colors import from_above, tinted


class Shown(NamedTuple):
    """A model to look at."""

    tensors: dict[str, Tensor]
    """As `gs.formats.model_file.load_model` gives them."""
    cameras: list[Camera]
    """Test views or, where there are none, training views; of a file, its run's or a ring."""
    background: tuple[float, float, float]
    """Colour behind it, in 0..1."""
    title: str
    antialiased: bool
    """Whether it is to be drawn so."""
    blocks: Tensor | None = None
    """The block of each Gaussian, where it was trained in blocks. [N]"""


def load_shown(model_path: Path, iteration: int = -1, source_path: Path | None = None) -> Shown:
    """Read a saved model of a run, and its cameras from the scene.

    Args:
        model_path: The run's output folder, or a file of Gaussians in any format that is read.
        iteration: Which saved model; -1 is the latest.
        source_path: The scene, if it has moved since training.

    Raises:
        SplatrimError: no such run, model or scene, or a broken file.
    """
    if model_path.is_file():
        tensors = load_model(model_path)
        cameras = cameras_for(model_path, tensors["means"])
        return Shown(tensors, cameras, (0.0, 0.0, 0.0), model_path.name, is_antialiased(model_path))
    plan = model_path / PLAN
    if plan.is_file() and not saved_models(model_path):
        raise SplatrimError(f"{model_path} has a plan of blocks and no model yet: open {plan}")
    settings = read_settings(model_path)
    iteration, ply = find_model(model_path, iteration)
    offset = load_offset(ply)
    scene = load_run_scene(settings, model_path, offset, source_path=source_path, model=ply)
    white = float(bool(settings.get("white_background", False)))
    title = f"{scene.source.name}, iteration {iteration}"
    background = (white, white, white)
    tensors = bake(load_anchors(ply), scene.train) if is_neural(ply) else load_model(ply)
    owners = ply.with_name(OWNERS)
    blocks = torch.from_numpy(np.load(owners)).long() if owners.is_file() else None
    cameras = scene.test or scene.train
    return Shown(tensors, cameras, background, title, is_antialiased(ply), blocks)


def in_block_colors(shown: Shown) -> Shown:
    """The same in the colours of its blocks, first from above.

    Raises:
        SplatrimError: it was not trained in blocks, or its blocks are of neural Gaussians.
    """
    if shown.blocks is None:
        raise SplatrimError("--blocks: this model was not trained in blocks")
    if len(shown.blocks) != len(shown.tensors["means"]):
        raise SplatrimError("--blocks: blocks of neural Gaussians cannot be told apart once baked")
    cameras = [from_above(shown.tensors["means"], shown.cameras), *shown.cameras]
    return shown._replace(tensors=tinted(shown.tensors, shown.blocks), cameras=cameras)
