"""A training from its settings to a finished folder, for the command line and for programs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .blocks.begin import begin_blocks, started_in_blocks
from .blocks.plans import RunSettings
from .blocks.trainer import BlockTrainer
from .cli import DENSIFIERS, Config, Method, baseline_of, describe, parse
from .compiler import cache_folder, cached_labels, start_compiler
from .config import resolve_device
from .data.scene import Scene, load_scene
from .data.undistort import FOLDER as UNDISTORTED
from .distributed.ranks import Ranks
from .errors import SplatrimError
from .files import check_writable
from .neural.anchors import first_anchors
from .neural.config import NeuralConfig
from .training.exposure import Exposure
from .training.memory import keep_freed_memory
from .training.observer import Observer
from .training.pose_refinement import check_poses
from .training.run_folder import RunFolder
from .training.same_run import with_start
from .training.sharded_step import runs_on_ranks
from .training.start import PostRates, in_scene, load_start
from .training.strategy import Strategy
from .training.trainer import Trainer

logger = logging.getLogger("splatrim")


def build_trainer(
    config: Config[Any, Any, Any],
    methods: Mapping[str, type[Method]],
    ranks: Ranks | None = None,
    observers: Sequence[Observer] = (),
    change: Callable[[Scene], Scene] | None = None,
) -> Trainer[Any] | BlockTrainer:
    """Check every input and make the trainer. Of the run, nothing is written yet.

    Args:
        config: All settings.
        methods: Settings of the pruning methods by name.
        ranks: Those that train together, each of which makes a trainer; None for one.
        observers: Look on beside those that every run has.
        change: Makes of the scene that is read the one to train on.
    """
    train, method = config.train, config.choice.method
    device = resolve_device(train.device)
    check_writable(train.model_path)
    if config.blocks.n_blocks > 1:
        return build_block_trainer(config, ranks)
    if started_in_blocks(train.start_checkpoint):
        raise SplatrimError(
            f"{train.start_checkpoint} is of a run in blocks: give its --blocks too, or make one"
            " model of it with python -m gs.merge"
        )
    if ranks is not None:
        check_for_ranks(config, methods)
    representation = config.choice.representation
    start = load_start(train, method, methods, ranks, representation=representation)
    train = with_start(train, start)
    RunFolder.of(train, start, config.scene.source_path).check()
    where = vars(config.scene).copy()
    source = where.pop("source_path")
    if config.choice.demo:
        write_demo(source)
    strategies = strategies_of(dataclasses.replace(config, train=train))
    scene = load_scene(
        source,
        **where,
        seed=train.seed,
        cache=train.model_path / UNDISTORTED,
        world_offset=None if start is None else start.get("world_offset"),
    )
    scene = scene if change is None else change(scene)
    strategies += strategies_in(scene, config)
    start = None if start is None else in_scene(start, scene.world_offset)
    if start is not None and not config.poses.pose_refinement:
        check_poses(start)
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
        observers=observers,
        ranks=ranks,
    )


def build_block_trainer(config: Config[Any, Any, Any], ranks: Ranks | None = None) -> BlockTrainer:
    """The same for --blocks."""
    if config.choice.demo:
        write_demo(config.scene.source_path)
    device = resolve_device(config.train.device) if ranks is None else ranks.device
    if config.poses.pose_refinement or config.depths.depth_loss:
        raise SplatrimError("poses and depths are learnt from in one piece: leave them or --blocks")
    return begin_blocks(run_settings(config), vars(config.scene), device, ranks)


def run_settings(config: Config[Any, Any, Any]) -> RunSettings:
    """What training in blocks takes of a run's settings."""
    return RunSettings(
        config.train,
        config.blocks,
        config.optim,
        config.densify,
        config.pruning,
        config.choice.method,
        config.scene.white_background,
        describe(config),
        config.neural if isinstance(config.neural, NeuralConfig) else None,
        config.momentum,
    )


def strategies_of(config: Config[Any, Any, Any]) -> list[Strategy[Any]]:
    """The densifier and the pruner of a run, in the order in which they are called."""
    strategies: list[Strategy[Any]] = [config.densify.build()]
    if (start := config.train.post_start) is not None:
        iterations = config.train.iterations
        strategies += [PostRates(config.optim, start=start, iterations=iterations)]
    # last, as a pruner may set the rate of its own parameter
    strategies += [config.pruning.build(densify_until=config.densify.densify_until_iter)]
    return strategies


def strategies_in(scene: Scene, config: Config[Any, Any, Any]) -> list[Strategy[Any]]:
    """Those that know the scene's cameras and points, which come after the others."""
    built = config.poses.build(scene), config.depths.build(scene)
    found: list[Strategy[Any]] = [strategy for strategy in built if strategy is not None]
    if config.train.exposure != "none":
        found.append(Exposure(config.train.exposure, scene.train))
    return found


def check_for_ranks(config: Config[Any, Any, Any], methods: Mapping[str, type[Method]]) -> None:
    """Raise SplatrimError where something of a run does not run on several ranks."""
    if isinstance(config.neural, NeuralConfig):
        raise SplatrimError(
            "--representation neural does not run on several GPUs yet: use explicit, or one GPU"
        )
    of_one = {
        "resolution_schedule": config.train.resolution_schedule,
        "multi_view_updates": config.train.multi_view_updates,
        "pose_refinement": config.poses.pose_refinement,
        "depth_loss": config.depths.depth_loss,
    }
    for flag in (flag for flag, given in of_one.items() if given):
        raise SplatrimError(f"--{flag} does not run on several GPUs yet: leave it out, or use one")
    densifiers = {name: settings().build() for name, settings in DENSIFIERS.items()}
    pruners = {
        name: settings.preset(next(iter(settings.PRESETS))).build(densify_until=0)
        for name, settings in methods.items()
    }
    for flag, known in (("densifier", densifiers), ("method", pruners)):
        chosen = getattr(config.choice, flag)
        if not runs_on_ranks(known[chosen]):
            fine = " or ".join(name for name, strategy in known.items() if runs_on_ranks(strategy))
            raise SplatrimError(
                f"--{flag} {chosen} does not run on several GPUs yet: use {fine}, or one GPU"
            )


def write_demo(source: Path) -> None:
    """Write the built-in scene where nothing is yet."""
    from .data.demo import write_demo_scene

    if not source.exists():
        logger.info(f"writing the built-in scene to {source} (a few seconds)")
        write_demo_scene(source)


def conclude(trainer: Trainer[Any] | BlockTrainer) -> Path:
    """Measure the test views of a finished run, where it has some, and write its report.

    Returns:
        report.html.
    """
    # what comes after training is imported after it: start-up does not wait for it
    from .blocks.seam_figures import write_seams
    from .report.sections import write_report

    measure(trainer)
    if isinstance(trainer, BlockTrainer) and trainer.scene.test:
        write_seams(trainer.config.model_path, device=trainer.config.device)
    report = write_report(trainer.config.model_path)
    logger.info(f"report: {report}")
    return report


def measure(trainer: Trainer[Any] | BlockTrainer) -> None:
    """Render the test views of a finished run, where it has some, and take its metrics."""
    from .evaluation.metrics import compute_metrics
    from .evaluation.render import render_views

    config = trainer.config
    if trainer.scene.test:
        out, device = config.model_path, config.device
        render_views(out, skip_train=True, quiet=config.quiet, device=device)
        compute_metrics([out], device=device)


def add_baseline(config: Config[Any, Any, Any], methods: Mapping[str, type[Method]]) -> bool:
    """Train and measure what the demo's report compares with, and write the report again.

    The run itself is finished by then: whoever stops here keeps it and its report.

    Returns:
        Whether it was not stopped; True also where there is none to train.
    """
    from .report.sections import write_report

    baseline = baseline_of(config, methods)
    if baseline is None:
        return True
    logger.info(f"baseline: {baseline.choice.method} for as many iterations")
    trainer = build_trainer(baseline, methods)
    if trainer.fit() is not None:
        return False
    measure(trainer)
    logger.info(f"report, with the baseline: {write_report(config.train.model_path)}")
    return True


def warm_up_device(device: torch.device, compiler: subprocess.Popen[str] | None = None) -> None:
    """Make a GPU ready in the background, while the scene is loaded.

    Args:
        device: Where the run trains.
        compiler: What compiles the run's kernels (gs.compiler.start_compiler).
    """
    if device.type != "cuda":
        return
    if compiler is not None and compiler.stdout is not None:
        logger.info(f"kernels are compiled while the scene is loaded: once, into {cache_folder()}")
        from kernels import Foreseen, foresee

        major, minor = torch.cuda.get_device_capability(device)
        foreseen = Foreseen(cached_labels(10 * major + minor))
        foresee(foreseen)
        threading.Thread(target=foreseen.follow, args=(compiler.stdout,), daemon=True).start()
    elif _is_empty(cache_folder()):
        logger.info("kernels are compiled for the first time: that takes up to a minute")
    threading.Thread(target=_warm_up, args=(device,)).start()


def train(
    source_path: str | Path,
    model_path: str | Path,
    *,
    methods: Mapping[str, type[Method]],
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> Trainer[Any] | BlockTrainer:
    """Train a scene, as `splatrim train` does, without its report unless report=True.

    Args:
        source_path: The scene.
        model_path: Output folder.
        methods: Pruning methods by name, of which the first is the default: pruning.METHODS.
        observers: Look on beside those that every run has (gs.Observer).
        settings: Flags by their names: method="mask-gaussian", iterations=7000, eval=True. None is
            the default; sequences are several values.

    Returns:
        The trainer after its last iteration, or where Ctrl-C ended it: its `gaussians`, `evaluate`.

    Raises:
        SplatrimError: what the command would say.
    """
    words = ["--source_path", str(source_path), "--model_path", str(model_path)]
    words += _as_words(settings)
    config = _parse_quietly(words, methods)
    keep_freed_memory()
    warm_up_device(resolve_device(config.train.device), start_compiler(words))
    trainer = build_trainer(config, methods, observers=observers)
    if trainer.fit() is None and config.train.report:
        conclude(trainer)
    return trainer


def _as_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the command line has them."""
    words: list[str] = []
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, (list, tuple)):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words += [f"--{name}", str(value)]
    return words


def _parse_quietly(words: list[str], methods: Mapping[str, type[Method]]) -> Config[Any, Any, Any]:
    """`parse`, which prints what is wrong with a flag and exits, as a program wants it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return parse(words, methods, "")
    except SystemExit as error:
        # a frame, whose strokes depend on the terminal, around a title and then the sentence
        lines = [line.strip(" -│╭╮╰╯─") for line in said.getvalue().splitlines()]
        texts = [line for line in lines if line]
        raise SplatrimError(texts[1] if len(texts) > 1 else "unknown settings") from error


def _is_empty(folder: Path) -> bool:
    return not folder.is_dir() or not any(folder.iterdir())


def _warm_up(device: torch.device) -> None:
    # without Triton none of this is needed, and a GPU that fails is told of by what needs it next
    with contextlib.suppress(ImportError, RuntimeError):
        from kernels import warm_up

        warm_up(device)
