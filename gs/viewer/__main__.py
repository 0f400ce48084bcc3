"""Write a trained run as a 3D page to send: `python -m gs.viewer -m OUT [--output page.html]`."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..data.scene import load_scene
from ..errors import SplatrimError, run_cli
from ..logs import show_log
from ..model.ply import load_ply
from ..neural.baking import bake
from ..neural.loading import is_neural, load_anchors
from ..run_record import find_model
from ..run_settings import read_settings
from .page import write_page

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class PageConfig:
    """Which model becomes a page."""

    model_path: Annotated[Path, tyro.conf.arg(aliases=("-m",))]
    """Output folder of a run."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """The page; by default view.html in the run's folder."""
    iteration: int = -1
    """Which saved model; -1 is the latest."""
    sh_degree: int | None = None
    """Highest SH degree to keep, 0 to 3: fewer make a smaller page. By default all."""
    source_path: Annotated[Path | None, tyro.conf.arg(aliases=("-s",))] = None
    """The scene, if it has moved since training."""


def write_run_page(config: PageConfig) -> Path:
    """Write the page of a run, with its test cameras or, where it has none, its training cameras.

    Raises:
        SplatrimError: no such run, model or scene, nothing to show, or an unwritable file.
    """
    if config.sh_degree is not None and not 0 <= config.sh_degree <= 3:
        raise SplatrimError(f"--sh_degree {config.sh_degree}: choose 0, 1, 2 or 3")
    settings = read_settings(config.model_path)
    iteration, ply = find_model(config.model_path, config.iteration)
    source = config.source_path or settings.get("source_path")
    if not source:
        raise SplatrimError("the run does not say where its scene is: give it with -s")
    scene = load_scene(
        Path(source),
        images=settings.get("images"),
        resolution=int(settings.get("resolution", -1)),
        eval=bool(settings.get("eval", False)),
        init_points=1,  # the points play no part here
    )
    tensors = load_ply(ply) if not is_neural(ply) else bake(load_anchors(ply), scene.train)
    output = config.output or config.model_path / "view.html"
    white = float(bool(settings.get("white_background", False)))
    try:
        size = write_page(
            output,
            tensors,
            scene.test or scene.train,
            title=f"{Path(source).name}, iteration {iteration}",
            background=(white, white, white),
            sh_degree=config.sh_degree,
        )
    except ValueError as error:
        raise SplatrimError(f"{ply} cannot be shown: {error}") from error
    logger.info(f"{output}: {size / 1e6:.1f} MB")
    return output


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m gs.viewer`."""
    config: PageConfig = tyro.cli(
        PageConfig,
        args=sys.argv[1:] if args is None else args,
        description=__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
        use_underscores=True,
    )
    show_log(quiet=False)
    write_run_page(config)


if __name__ == "__main__":
    run_cli(main)
