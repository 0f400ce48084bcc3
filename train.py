"""Train 3D Gaussians on a scene, and prune them: `python train.py -s SCENE -m OUT --eval`.

`python train.py --demo -m OUT` needs no data. `--start_ply FILE.ply` prunes a finished model
instead. The defaults that --help shows are those of the --method, --preset, --schedule,
--iterations and start given with it.
"""

import contextlib
import dataclasses
import logging
import shlex
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gs import cli
from gs.cli import DENSIFIERS, Config, describe
from gs.config import resolve_device, resume_arguments, resume_command
from gs.data.demo import write_demo_scene
from gs.data.scene import load_scene
from gs.data.undistort import FOLDER as UNDISTORTED
from gs.distributed.processes import find_ranks
from gs.distributed.ranks import Ranks, Solo
from gs.distributed.torchrun import closed, is_first, is_restart, may_restart, told_by_first
from gs.errors import SplatrimError, run_cli
from gs.evaluation.metrics import compute_metrics
from gs.evaluation.render import render_views
from gs.files import check_writable
from gs.logs import show_log
from gs.neural.anchors import first_anchors
from gs.neural.config import NeuralConfig
from gs.report.sections import write_report
from gs.run_record import holds_run, saved_checkpoints
from gs.training.memory import keep_freed_memory
from gs.training.observer import Observer
from gs.training.run_folder import RunFolder
from gs.training.same_run import with_start
from gs.training.sharded_step import runs_on_ranks
from gs.training.start import PostRates, in_scene, load_start
from gs.training.strategy import Strategy
from gs.training.trainer import Trainer
from gs.viewer.live import watching
from pruning import METHODS

logger = logging.getLogger("splatrim")


def parse(args: list[str]) -> Config[Any, Any, Any]:
    """Read the command line."""
    return cli.parse(args, METHODS, __doc__ or "")


def build_trainer(
    config: Config[Any, Any, Any], ranks: Ranks | None = None, observers: Sequence[Observer] = ()
) -> Trainer[Any]:
    """Check every input and make the trainer. Of the run, nothing is written yet.

    Args:
        config: All settings.
        ranks: Those that train together, each of which makes a trainer; None for one.
        observers: Beside those that every run has.
    """
    train, method = config.train, config.choice.method
    device = resolve_device(train.device)
    check_writable(train.model_path)
    if ranks is not None:
        check_for_ranks(config)
    start = load_start(train, method, METHODS, ranks, representation=config.choice.representation)
    train = with_start(train, start)
    RunFolder.of(train, start, config.scene.source_path).check()
    where = vars(config.scene).copy()
    source = where.pop("source_path")
    if config.choice.demo:
        _write_demo(source)
    strategies: list[Strategy[Any]] = [config.densify.build()]
    if train.post_start is not None:
        iterations = train.iterations
        strategies += [PostRates(config.optim, start=train.post_start, iterations=iterations)]
    # last, as a pruner may set the rate of its own parameter
    strategies += [config.pruning.build(densify_until=config.densify.densify_until_iter)]
    scene = load_scene(
        source,
        **where,
        seed=train.seed,
        cache=train.model_path / UNDISTORTED,
        world_offset=None if start is None else start.get("world_offset"),
    )
    start = None if start is None else in_scene(start, scene.world_offset)
    model = None
    if isinstance(config.neural, NeuralConfig):
        model = first_anchors(config.neural, scene, start, seed=train.seed, device=device)
    return Trainer(
        train,
        scene,
        strategies=strategies,
        optim=config.optim,
        method=method,
        white_background=config.scene.white_background,
        settings=describe(dataclasses.replace(config, train=train)),
        start=start,
        model=model,
        ranks=ranks,
        observers=observers,
    )


def _warm_up(device: str) -> None:
    # without Triton none of this is needed, and a GPU that fails is told of by what needs it next
    with contextlib.suppress(ImportError, RuntimeError):
        from kernels import warm_up

        warm_up(resolve_device(device))


def _measure(config: Config[Any, Any, Any]) -> None:
    out, device = config.train.model_path, config.train.device
    render_views(out, skip_train=True, quiet=config.train.quiet, device=device)
    compute_metrics([out], device=device)


def _train_baseline(config: Config[Any, Any, Any]) -> bool:
    """Train and measure what the demo's report compares with; False where there is none.

    The run itself is finished by then: whoever stops here keeps it and its report.
    """
    baseline = cli.baseline_of(config, METHODS)
    if baseline is None:
        return False
    logger.info(f"baseline: {baseline.choice.method} for as many iterations")
    if build_trainer(baseline).fit() is not None:
        report = config.train.model_path / "report.html"
        print(f"stopped; {report} is there, without the baseline", file=sys.stderr)
        sys.exit(130)
    _measure(baseline)
    return True


def main(args: list[str] | None = None) -> None:
    """Train, and say what to run next."""
    args = sys.argv[1:] if args is None else args
    with told_by_first():
        config = parse(args)
    train = config.train
    show_log(quiet=train.quiet or not is_first())
    keep_freed_memory()
    ranks = find_ranks(train.device, backend=train.rank_backend, timeout=train.rank_timeout)
    if ranks.device.type == "cuda":
        threading.Thread(target=_warm_up, args=(str(ranks.device),)).start()
    with closed(ranks, args, train.model_path):
        config = restarted(config, args, ranks)
        if config.choice.demo:
            ranks.first_only(lambda: _write_demo(config.scene.source_path))
        many = None if isinstance(ranks, Solo) else ranks
        if train.viewer and many is not None:
            raise SplatrimError("--viewer shows a training on one GPU: leave it out, or torchrun")
        with watching(train.viewer, train.viewer_host, train.viewer_port) as observers:
            trainer = ranks.together(lambda: build_trainer(config, many, observers))
            checkpoint = trainer.fit()
    if ranks.rank == 0:
        _conclude(config, args, checkpoint, ranks.size)
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
    saved = ranks.agree(ranks.first_only(lambda: list(saved_checkpoints(out).values())))
    if saved:
        logger.info(f"started again by torchrun: going on from {saved[-1]}")
        return parse(resume_arguments(args, out, saved[-1]))
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, overwrite=holds_run(out))
    )


def check_for_ranks(config: Config[Any, Any, Any]) -> None:
    """Raise SplatrimError where a densifier or method does not run on several ranks."""
    if isinstance(config.neural, NeuralConfig):
        raise SplatrimError(
            "--representation neural does not run on several GPUs yet: use explicit, or one GPU"
        )
    densifiers = {name: settings().build() for name, settings in DENSIFIERS.items()}
    methods = {
        name: settings.preset(next(iter(settings.PRESETS))).build(densify_until=0)
        for name, settings in METHODS.items()
    }
    for flag, known in (("densifier", densifiers), ("method", methods)):
        chosen = getattr(config.choice, flag)
        if not runs_on_ranks(known[chosen]):
            fine = " or ".join(name for name, strategy in known.items() if runs_on_ranks(strategy))
            raise SplatrimError(
                f"--{flag} {chosen} does not run on several GPUs yet: use {fine}, or one GPU"
            )


def _write_demo(source: Path) -> None:
    if not source.exists():
        logger.info(f"writing the built-in scene to {source}")
        write_demo_scene(source)


def _conclude(
    config: Config[Any, Any, Any], args: list[str], checkpoint: Path | None, n_ranks: int
) -> None:
    """Say how to go on; evaluate and report the built-in scene."""
    out = config.train.model_path
    if checkpoint is not None:
        command = resume_command(args, out, checkpoint, n_ranks)
        print(f"stopped; go on with: {command}", file=sys.stderr)
    elif config.choice.demo:
        _measure(config)
        logger.info(f"report: {write_report(out)}")
        if n_ranks == 1 and _train_baseline(config):
            logger.info(f"report, with the baseline: {write_report(out)}")
    else:
        path = shlex.quote(str(out))
        logger.info(f"next: python -m gs.render -m {path} && python -m gs.metrics -m {path}")


if __name__ == "__main__":
    run_cli(main)
