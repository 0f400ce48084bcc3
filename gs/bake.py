"""Bake neural Gaussians into plain ones: `python -m gs.bake -m OUT [--views 32] [--polish 2000]`.

Writes OUT/baked.ply, a model that every viewer of 3DGS draws, and OUT/bake.json: what it costs.
`--polish` trains the result on for so many iterations, into the run OUT/baked.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from .command_line import read_settings_of
from .config import PUBLISHED_ITERATIONS, TrainConfig, as_plain, resolve_device
from .data.loader import ImageLoader
from .data.scene import Scene
from .errors import SplatrimError, run_cli
from .evaluation.run_scene import load_run_scene
from .evaluation.views import evaluate_views, mean_scores
from .files import check_writable, write_json
from .logs import show_log
from .model.gaussians import Gaussians
from .model.model import Model
from .model.ply import read_offset, save_ply
from .model.rates import OptimConfig
from .neural.anchors import Anchors
from .neural.baking import bake
from .neural.loading import load_model
from .ranges import AT_LEAST_ONE, COUNT, ITERATION, check_ranges
from .run_record import find_model
from .run_settings import read_settings
from .training.run_folder import RunFolder
from .training.start import PostRates, in_scene, load_start
from .training.strategy import Strategy
from .training.trainer import Trainer

BAKED, REPORT, POLISHED = "baked.ply", "bake.json", "baked"

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class BakeConfig:
    """What to bake; where the scene is and how it is read comes from the run's config.json."""

    model_path: Annotated[Path, tyro.conf.arg(aliases=("-m",))]
    """Output folder of a run with --representation neural."""
    iteration: Annotated[int, ITERATION] = -1
    """Which saved model; -1 is the latest."""
    views: Annotated[int, AT_LEAST_ONE] = 32
    """Training views that count for an anchor, at most: those that show most of it."""
    polish: Annotated[int, COUNT] = 0
    """Train the result on for so many iterations, into OUT/baked; a run that is there is set
    aside."""
    source_path: Annotated[Path | None, tyro.conf.arg(aliases=("-s",))] = None
    """The scene, if it has moved since training."""
    device: str = "auto"
    """auto, cpu or cuda."""
    quiet: bool = False
    """Show warnings only."""

    def __post_init__(self) -> None:
        check_ranges(self)


def bake_run(config: BakeConfig) -> dict[str, Any]:
    """Bake a run's model, measure what it costs and polish it if that is asked for.

    Returns:
        What OUT/bake.json says: numbers of anchors and Gaussians, bytes, and mean PSNR in dB of the
        test views (training views where there are none) of the neural model, the baked one and the
        polished one.

    Raises:
        SplatrimError: no such run or model, a model that is not neural, a broken scene, an
            unwritable folder.
    """
    out, device = config.model_path, resolve_device(config.device)
    settings = read_settings(out)
    iteration, ply = find_model(out, config.iteration)
    check_writable(out)
    model = load_model(ply, device)
    if not isinstance(model, Anchors):
        raise SplatrimError(f"{ply} holds Gaussians already: there is nothing to bake")
    offset = read_offset(ply)
    scene = load_run_scene(settings, out, offset, source_path=config.source_path, model=ply)
    tensors = bake(model, scene.train, views=config.views)
    options = {"world_offset": scene.world_offset, "antialiased": model.antialiased}
    save_ply(out / BAKED, tensors, **options)
    white = bool(settings.get("white_background", False))
    found: dict[str, Any] = {
        "iteration": iteration,
        "views": config.views,
        "n_anchors": len(model),
        "n_gaussians": len(tensors["means"]),
        "neural_bytes": sum(x.stat().st_size for x in ply.parent.iterdir()),
        "baked_bytes": (out / BAKED).stat().st_size,
        "psnr_neural": _psnr(model, scene, white),
        "psnr_baked": _psnr(
            Gaussians.from_tensors(tensors, antialiased=model.antialiased), scene, white
        ),
    }
    if config.polish:
        polished = _polish(config, settings, scene, white)
        found |= {"polish": config.polish, "psnr_polished": _psnr(polished, scene, white)}
    write_json(out / REPORT, found)
    _tell(found)
    return found


def _psnr(model: Model, scene: Scene, white: bool) -> float:
    cameras = scene.test or scene.train
    loader = ImageLoader(cameras, white_background=white, device=model.device)
    background = torch.full((3,), float(white), device=model.device)
    try:
        return mean_scores(evaluate_views(model, cameras, loader, background))["psnr"]
    finally:
        loader.close()


def _polish(config: BakeConfig, settings: dict[str, Any], scene: Scene, white: bool) -> Model:
    """Post-train the baked model as `train.py --start_ply` would, without a pruning method."""
    last = PUBLISHED_ITERATIONS + config.polish
    train = TrainConfig(
        config.model_path / POLISHED,
        iterations=last,
        lambda_dssim=float(settings.get("lambda_dssim", 0.2)),
        start_ply=config.model_path / BAKED,
        post_start=PUBLISHED_ITERATIONS,
        test_iterations=(),
        save_iterations=(),
        overwrite=True,
        seed=int(settings.get("seed", 0)),
        device=config.device,
        quiet=config.quiet,
    )
    start = load_start(train, "3dgs", {})
    assert start is not None
    RunFolder.of(train, start, scene.source).check()
    optim = OptimConfig(position_lr_max_steps=last)
    rates = PostRates(optim, start=PUBLISHED_ITERATIONS, iterations=last)
    strategies: list[Strategy] = [rates]
    own = {"method": "3dgs", "optim": as_plain(optim), "representation": "explicit"}
    kept = {k: x for k, x in settings.items() if k not in ("neural", "densify", "pruning")}
    trainer = Trainer(
        train,
        scene,
        strategies=strategies,
        optim=optim,
        white_background=white,
        settings=kept | as_plain(train) | own,
        start=in_scene(start, scene.world_offset),
    )
    if trainer.fit() is not None:
        raise SplatrimError("polishing was stopped; the baked model is complete")
    return trainer.exported()


def _tell(found: dict[str, Any]) -> None:
    lost = found["psnr_neural"] - found["psnr_baked"]
    text = (
        f"{found['n_anchors']} anchors became {found['n_gaussians']} Gaussians,"
        f" {found['baked_bytes'] / 1e6:.3g} MB in place of {found['neural_bytes'] / 1e6:.3g};"
        f" PSNR {found['psnr_neural']:.2f} -> {found['psnr_baked']:.2f} dB ({-lost:+.2f})"
    )
    if "psnr_polished" in found:
        text += f", polished {found['psnr_polished']:.2f} dB"
    logger.info(text)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m gs.bake`."""
    config = read_settings_of(BakeConfig, args, __doc__)
    show_log(quiet=config.quiet)
    bake_run(config)


if __name__ == "__main__":
    run_cli(main)
