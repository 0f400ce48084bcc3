"""A training from its settings to a finished folder, for the command line and for programs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cli import Config, Method, describe, parse
from .config import resolve_device
from .data.demo import write_demo_scene
from .data.scene import load_scene
from .data.undistort import FOLDER as UNDISTORTED
from .errors import SplatrimError
from .evaluation.metrics import compute_metrics
from .evaluation.render import render_views
from .files import check_writable
from .report.sections import write_report
from .training.memory import keep_freed_memory
from .training.observer import Observer
from .training.run_folder import RunFolder
from .training.same_run import with_start
from .training.start import PostRates, in_scene, load_start
from .training.strategy import Strategy
from .training.trainer import Trainer

logger = logging.getLogger("splatrim")


def build_trainer(
    config: Config[Any, Any],
    methods: Mapping[str, type[Method]],
    observers: Sequence[Observer] = (),
) -> Trainer:
    """Check every input and make the trainer. Of the run, nothing is written yet.

    Args:
        config: All settings.
        methods: Settings of the pruning methods by name.
        observers: Look on beside those that every run has.
    """
    train, method = config.train, config.choice.method
    resolve_device(train.device)
    check_writable(train.model_path)
    start = load_start(train, method, methods)
    train = with_start(train, start)
    RunFolder.of(train, start, config.scene.source_path).check()
    where = vars(config.scene).copy()
    source = where.pop("source_path")
    if config.choice.demo and not source.exists():
        logger.info(f"writing the built-in scene to {source} (a few seconds)")
        write_demo_scene(source)
    strategies: list[Strategy] = [config.densify.build()]
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
    return Trainer(
        train,
        scene,
        strategies=strategies,
        optim=config.optim,
        method=method,
        white_background=config.scene.white_background,
        settings=describe(dataclasses.replace(config, train=train)),
        start=None if start is None else in_scene(start, scene.world_offset),
        observers=observers,
    )


def fit(trainer: Trainer, *, report: bool) -> Path | None:
    """Train to the end; then, where it is asked for, measure the test views and write the report.

    Args:
        trainer: As `build_trainer` makes it.
        report: Whether to write results.json and report.html. Without test views the report alone.

    Returns:
        None; or, after Ctrl-C or SIGTERM, the checkpoint that was saved.
    """
    checkpoint = trainer.fit()
    if checkpoint is not None or not report:
        return checkpoint
    out, device = trainer.config.model_path, trainer.config.device
    if trainer.scene.test:
        render_views(out, skip_train=True, quiet=trainer.config.quiet, device=device)
        compute_metrics([out], device=device)
    logger.info(f"report: {write_report(out)}")
    return None


def prepare_device(name: str) -> None:
    """Make ready the device that a config names, in the background. Raises SplatrimError."""
    keep_freed_memory()
    if resolve_device(name).type == "cuda":
        threading.Thread(target=_warm_up, args=(name,)).start()


def train(
    source_path: str | Path,
    model_path: str | Path,
    *,
    methods: Mapping[str, type[Method]],
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> Trainer:
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
    config = _parse_quietly([*words, *_as_words(settings)], methods)
    prepare_device(config.train.device)
    trainer = build_trainer(config, methods, observers)
    fit(trainer, report=config.train.report)
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


def _parse_quietly(words: list[str], methods: Mapping[str, type[Method]]) -> Config[Any, Any]:
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


def _warm_up(device: str) -> None:
    # without Triton none of this is needed, and a GPU that fails is told of by what needs it next
    with contextlib.suppress(ImportError, RuntimeError):
        from kernels import warm_up

        warm_up(resolve_device(device))
