"""Measure the seams of a run in blocks: `python -m gs.seams -m OUT --one_piece OTHER`.

Writes OUT/seams.json, which gs.report shows: for each test view the error within 8 pixels of a
change of the owning block over the error elsewhere and, with the same scene trained in one piece,
that over the same of the one piece on the same pixels: 1 where borders do not show.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ..command_line import read_settings_of
from ..config import resolve_device
from ..data.loader import ImageLoader
from ..errors import SplatrimError
from ..evaluation.run_scene import load_run_scene
from ..files import write_json
from ..logs import show_log
from ..model.ply import read_offset
from ..run_record import BASELINE, find_model
from ..run_settings import read_settings
from .seams import Seam, load_whole, measure_seams

NAME = "seams.json"

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class SeamsConfig:
    """Whose seams to measure."""

    model_path: Annotated[Path, tyro.conf.arg(aliases=("-m",))]
    """Output folder of a run with --blocks and --eval."""
    one_piece: Path | None = None
    """Output folder of the same scene in one piece; default: OUT/baseline, if there."""
    device: str = "auto"
    """Device to render on."""
    quiet: bool = False
    """Show warnings only."""


def write_seams(folder: Path, one_piece: Path | None = None, device: str = "auto") -> list[Seam]:
    """Measure the seams of a run's test views and write seams.json.

    Args:
        folder: The run's output folder.
        one_piece: That of the scene in one piece; None: a baseline in the run's folder, if there.
        device: Where to render.

    Returns:
        The views with a border.

    Raises:
        SplatrimError: the run has no model of blocks or no test view.
    """
    if one_piece is None and (folder / BASELINE).is_dir():
        one_piece = folder / BASELINE
    place = resolve_device(device)
    model, blocks = load_whole(folder, place)
    if blocks is None or len(blocks) != len(model):
        raise SplatrimError(f"{folder} has no model that was trained in blocks")
    other = None if one_piece is None else load_whole(one_piece, place)[0]
    settings = read_settings(folder)
    offset = read_offset(find_model(folder)[1])
    scene = load_run_scene(settings, folder, offset)
    if not scene.test:
        raise SplatrimError(f"{folder} has no test views: train with --eval")
    cameras = [*scene.train, *scene.test]
    white = bool(settings.get("white_background", False))
    with ImageLoader(cameras, white_background=white, device=place) as images:
        background = torch.full((3,), float(white), device=place)
        tests = range(len(scene.train), len(cameras))
        seams = measure_seams(model, blocks, cameras, images, background, tests, other)
    write_json(folder / NAME, {"views": [asdict(seam) for seam in seams]})
    return seams


def summary(seams: Sequence[Seam]) -> str:
    """Mean and worst view, as a sentence."""
    if not seams:
        return "no test view shows a border between blocks"
    ratios = [seam.ratio for seam in seams]
    said = f"error at borders over that elsewhere: {statistics.fmean(ratios):.3f} on average"
    excesses = [seam.excess for seam in seams if seam.excess is not None]
    if not excesses:
        return said
    mean, worst = statistics.fmean(excesses), max(excesses)
    return f"{said}; over that of one piece {mean:.3f}, in the worst view {worst:.3f}"


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m gs.seams`."""
    config = read_settings_of(SeamsConfig, args, __doc__)
    show_log(quiet=config.quiet)
    seams = write_seams(config.model_path, config.one_piece, config.device)
    logger.info(f"{len(seams)} views: {summary(seams)}")
