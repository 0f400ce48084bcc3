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
from typing import Any

from gs import cli
from gs.cli import Config, describe
from gs.config import resolve_device, resume_command
from gs.data.demo import write_demo_scene
from gs.data.scene import load_scene
from gs.data.undistort import FOLDER as UNDISTORTED
from gs.errors import run_cli
from gs.evaluation.metrics import compute_metrics
from gs.evaluation.render import render_views
from gs.files import check_writable
from gs.logs import show_log
from gs.neural.anchors import first_anchors
from gs.neural.config import NeuralConfig
from gs.report.sections import write_report
from gs.training.memory import keep_freed_memory
from gs.training.run_folder import RunFolder
from gs.training.same_run import with_start
from gs.training.start import PostRates, in_scene, load_start
from gs.training.strategy import Strategy
from gs.training.trainer import Trainer
from pruning import METHODS

logger = logging.getLogger("splatrim")


def parse(args: list[str]) -> Config[Any, Any, Any]:
    """Read the command line."""
    return cli.parse(args, METHODS, __doc__ or "")


def build_trainer(config: Config[Any, Any, Any]) -> Trainer[Any]:
    """Check every input and make the trainer. Of the run, nothing is written yet."""
    train, method = config.train, config.choice.method
    device = resolve_device(train.device)
    check_writable(train.model_path)
    start = load_start(train, method, METHODS, representation=config.choice.representation)
    train = with_start(train, start)
    RunFolder.of(train, start, config.scene.source_path).check()
    where = vars(config.scene).copy()
    source = where.pop("source_path")
    if config.choice.demo and not source.exists():
        logger.info(f"writing the built-in scene to {source}")
        write_demo_scene(source)
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
    )


def _warm_up(device: str) -> None:
    # without Triton none of this is needed, and a GPU that fails is told of by what needs it next
    with contextlib.suppress(ImportError, RuntimeError):
        from kernels import warm_up

        warm_up(resolve_device(device))


def main(args: list[str] | None = None) -> None:
    """Train, and say what to run next."""
    args = sys.argv[1:] if args is None else args
    config = parse(args)
    out = config.train.model_path
    show_log(quiet=config.train.quiet)
    keep_freed_memory()
    if resolve_device(config.train.device).type == "cuda":
        threading.Thread(target=_warm_up, args=(config.train.device,)).start()
    checkpoint = build_trainer(config).fit()
    if checkpoint is not None:
        print(f"stopped; go on with: {resume_command(args, out, checkpoint)}", file=sys.stderr)
        sys.exit(130)
    if config.choice.demo:
        device = config.train.device
        render_views(out, skip_train=True, quiet=config.train.quiet, device=device)
        compute_metrics([out], device=device)
        logger.info(f"report: {write_report(out)}")
    else:
        path = shlex.quote(str(out))
        logger.info(f"next: python -m gs.render -m {path} && python -m gs.metrics -m {path}")


if __name__ == "__main__":
    run_cli(main)
