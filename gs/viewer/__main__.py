"""Write a trained run as a 3D page to send: `python -m gs.viewer -m OUT [--output page.html]`.

`splatrim view OUT --live` shows it in the browser with the project's own renderer instead.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..command_line import read_settings_of
from ..errors import SplatrimError, run_cli
from ..logs import show_log
from .live import show_run
from .page import write_page
from .run_model import in_block_colors, load_shown

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class PageConfig:
    """Which model is shown."""

    model_path: Annotated[Path, tyro.conf.arg(aliases=("-m",))]
    """Output folder of a run, or a file of Gaussians: .ply, SPZ, SOG, .splat, .glb, ..."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """The page; by default view.html in the run's folder, or beside the file."""
    iteration: int = -1
    """Which saved model; -1 is the latest."""
    sh_degree: int | None = None
    """Highest SH degree to keep, 0 to 3: fewer make a smaller page. By default all."""
    source_path: Annotated[Path | None, tyro.conf.arg(aliases=("-s",))] = None
    """The scene, if it has moved since training."""
    blocks: bool = False
    """Colour Gaussians by the block that owns them, of a run in blocks."""
    live: bool = False
    """Show the model at http://localhost:8080 until Ctrl-C, and write nothing (needs viser)."""
    host: str = "127.0.0.1"
    """Address that --live listens on; 0.0.0.0 lets other machines in."""
    port: int = 8080
    """Port of --live; the next free one where it is taken."""
    device: str = "auto"
    """Device on which --live renders: auto, cpu or cuda."""


def write_run_page(config: PageConfig) -> Path:
    """Write the page of a run, with its test cameras or, where it has none, its training cameras.

    Raises:
        SplatrimError: no such run, model or scene, nothing to show, or an unwritable file.
    """
    if config.sh_degree is not None and not 0 <= config.sh_degree <= 3:
        raise SplatrimError(f"--sh_degree {config.sh_degree}: choose 0, 1, 2 or 3")
    shown = load_shown(config.model_path, config.iteration, config.source_path)
    if config.blocks:
        shown = in_block_colors(shown)
    beside = config.model_path.is_file()
    default = config.model_path.with_suffix(".html") if beside else config.model_path / "view.html"
    output = config.output or default
    try:
        size = write_page(
            output,
            shown.tensors,
            shown.cameras,
            title=shown.title,
            background=shown.background,
            sh_degree=config.sh_degree,
            antialiased=shown.antialiased,
        )
    except ValueError as error:
        raise SplatrimError(f"{config.model_path} cannot be shown: {error}") from error
    logger.info(f"{output}: {size / 1e6:.1f} MB")
    return output


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m gs.viewer`."""
    config = read_settings_of(PageConfig, args, __doc__, with_negations=True)
    show_log(quiet=False)
    if config.live:
        show_run(
            config.model_path,
            iteration=config.iteration,
            source_path=config.source_path,
            host=config.host,
            port=config.port,
            device=config.device,
            by_block=config.blocks,
        )
    else:
        write_run_page(config)


if __name__ == "__main__":
    run_cli(main)
