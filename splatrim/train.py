"""Train 3D Gaussians on a scene, and prune them: `splatrim train -s SCENE -m OUT --eval`.

--demo needs no data. --start_ply FILE.ply prunes a finished model instead. The defaults are those
of the --method, --preset, --schedule, --iterations and start given with them.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gs import Trainer
    from gs.cli import Config

logger = logging.getLogger("splatrim")


# What torch is needed for is imported within: a wrong flag is told before.


def parse(args: list[str]) -> Config[Any, Any]:
    """Read the command line."""
    from gs import cli
    from pruning import METHODS

    return cli.parse(args, METHODS, __doc__ or "")


def build_trainer(config: Config[Any, Any]) -> Trainer:
    """Check every input and make the trainer. Of the run, nothing is written yet."""
    from gs.program import build_trainer
    from pruning import METHODS

    return build_trainer(config, METHODS)


def main(args: list[str] | None = None, *, report: bool = True) -> None:
    """Train, measure and report, or say what to run next.

    Args:
        args: The command line.
        report: Whether to do so where no flag says.
    """
    args = sys.argv[1:] if args is None else args
    # first, as the last of --report and --no_report counts
    config = parse(["--report", *args] if report else args)

    from gs.config import resume_command
    from gs.invocation import command
    from gs.logs import show_log
    from gs.program import fit, prepare_device

    out, iterations = config.train.model_path, config.train.iterations
    show_log(quiet=config.train.quiet)
    prepare_device(config.train.device)
    asked = config.train.report or config.choice.demo
    checkpoint = fit(build_trainer(config), report=asked)
    if checkpoint is not None:
        line = resume_command(args, out, checkpoint, iterations)
        print(f"stopped; go on with: {line}", file=sys.stderr)
        sys.exit(130)
    if not asked:
        lines = [command("render", "-m", out, "--skip_train")]
        lines += [command(name, "-m", out) for name in ("metrics", "report")]
        logger.info(f"next: {' && '.join(lines)}")
