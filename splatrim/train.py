"""Train 3D Gaussians on a scene, and prune them: `splatrim train -s SCENE -m OUT --eval`.

--demo needs no data. --start_ply FILE.ply prunes a finished model instead. The defaults are those
of the --method, --preset, --schedule, --iterations and start given with them.
"""

import dataclasses
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gs import cli, program
from gs.blocks.trainer import BlockTrainer
from gs.cli import Config
from gs.config import resume_arguments, resume_command
from gs.distributed.processes import find_ranks
from gs.distributed.ranks import Ranks, Solo
from gs.distributed.torchrun import closed, is_restart, may_restart
from gs.errors import SplatrimError, is_first, told_by_first
from gs.invocation import command
from gs.logs import show_log
from gs.run_record import BLOCKS, MANIFEST, holds_run, saved_checkpoints
from gs.training.memory import keep_freed_memory
from gs.training.observer import Observer
from gs.training.trainer import Trainer
from gs.viewer.live import watching
from pruning import METHODS

logger = logging.getLogger("splatrim")


def parse(args: list[str]) -> Config[Any, Any, Any]:
    """Read the command line."""
    return cli.parse(args, METHODS, __doc__ or "")


def build_trainer(
    config: Config[Any, Any, Any], ranks: Ranks | None = None, observers: Sequence[Observer] = ()
) -> Trainer[Any] | BlockTrainer:
    """Check every input and make the trainer: gs.program.build_trainer with all methods."""
    return program.build_trainer(config, METHODS, ranks, observers)


def main(
    args: list[str] | None = None,
    *,
    report: bool = True,
    compiler: subprocess.Popen[str] | None = None,
) -> None:
    """Train, measure and report, or say what to run next.

    Args:
        args: The command line.
        report: Whether to do so where no flag says.
        compiler: What compiles the run's kernels (gs.compiler.start_compiler).
    """
    args = sys.argv[1:] if args is None else args
    if report:
        args = ["--report", *args]  # first, as the last of --report and --no_report counts
    with told_by_first():
        config = parse(args)
    train = config.train
    show_log(quiet=train.quiet or not is_first())
    keep_freed_memory()
    ranks = find_ranks(train.device, backend=train.rank_backend, timeout=train.rank_timeout)
    program.warm_up_device(ranks.device, compiler)
    with closed(ranks, args, train.model_path):
        config = restarted(config, args, ranks)
        if config.choice.demo:
            ranks.first_only(lambda: program.write_demo(config.scene.source_path))
        many = None if isinstance(ranks, Solo) else ranks
        if train.viewer and many is not None:
            raise SplatrimError("--viewer shows a training on one GPU: leave it out, or torchrun")
        with watching(train.viewer, train.viewer_host, train.viewer_port) as observers:
            trainer = ranks.together(lambda: build_trainer(config, many, observers))
            checkpoint = trainer.fit()
    if ranks.rank == 0:
        _conclude(trainer, config, args, checkpoint, ranks.size)
    if checkpoint is not None:
        # what torchrun takes for a failure it starts again
        sys.exit(0 if may_restart() else 130)


def restarted(
    config: Config[Any, Any, Any], args: list[str], ranks: Ranks
) -> Config[Any, Any, Any]:
    """The settings of a run that torchrun has started again: it goes on by itself."""
    if not is_restart():
        return config
    out = config.train.model_path
    blocks = [out / BLOCKS] if (out / BLOCKS / MANIFEST).is_file() else []
    saved = ranks.agree(ranks.first_only(lambda: blocks or list(saved_checkpoints(out).values())))
    if saved:
        logger.info(f"started again by torchrun: going on from {saved[-1]}")
        return parse(resume_arguments(args, out, saved[-1]))
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, overwrite=holds_run(out))
    )


def _conclude(
    trainer: Trainer[Any] | BlockTrainer,
    config: Config[Any, Any, Any],
    args: list[str],
    checkpoint: Path | None,
    n_ranks: int,
) -> None:
    """Measure and report, or say how to go on."""
    out = config.train.model_path
    if checkpoint is not None:
        line = resume_command(args, out, checkpoint, n_ranks)
        print(f"stopped; go on with: {line}", file=sys.stderr)
    elif config.train.report or config.choice.demo:
        report = program.conclude(trainer)
        if n_ranks == 1 and not program.add_baseline(config, METHODS):
            print(f"stopped; {report} is there, without the baseline", file=sys.stderr)
            sys.exit(130)
    else:
        lines = [command("render", "-m", out, "--skip_train")]
        lines += [command(name, "-m", out) for name in ("metrics", "report")]
        logger.info(f"next: {' && '.join(lines)}")
