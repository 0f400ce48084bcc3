"""What looks on while a model is trained: progress, evaluation, saving, checkpoints.

An observer is called on the host after every iteration, also where the iteration was a captured
graph whose work the GPU has yet to do. It may call `evaluate`, `save`, `checkpoint` and `exported`
of the run, and render; it changes nothing of the training. What it does not ask for costs nothing.

Whoever has to see the model between gradients and update, before anything is pruned, says so with
`is_due` and is called there, by `report`. Such iterations are not captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..config import TrainConfig
from ..data.loader import ImageLoader
from ..data.scene import Scene
from ..model.model import Model
from ..schedule import multiple_in
from .strategy import StepContext, Strategy
from .tracker import Tracker

KEPT = 2  # checkpoints of an interval
EVALUATION_AHEAD = 1000  # iterations before an evaluation, its images begin to be decoded


class Run(Protocol):
    """What an observer sees of the trainer (gs.training.trainer)."""

    @property
    def config(self) -> TrainConfig: ...

    @property
    def scene(self) -> Scene: ...

    @property
    def images(self) -> ImageLoader: ...

    @property
    def gaussians(self) -> Model: ...

    @property
    def strategies(self) -> Sequence[Strategy[Any]]: ...

    @property
    def tracker(self) -> Tracker: ...

    @property
    def n_rendered(self) -> int: ...

    @property
    def white_background(self) -> bool: ...

    @property
    def stop_requested(self) -> bool: ...

    @property
    def computed(self) -> StepContext[Any] | None: ...

    def exported(self) -> Model: ...

    def evaluate(self, step: int) -> dict[str, float]: ...

    def save(self, step: int) -> Path: ...

    def checkpoint(self, step: int) -> Path: ...

    def drop_checkpoint(self, step: int) -> None: ...


class Observer:
    """Does nothing. Subclasses override what they need."""

    n_images: int = 1
    """Images of the present step, which the trainer sets."""

    def is_due(self, step: int) -> bool:
        """Whether `report` wants to see the model before iteration `step` updates it."""
        return False

    def report(self, run: Run, step: int) -> None:
        """Gradients are there, nothing has been changed: in iterations that are due."""

    def on_step(self, run: Run, step: int) -> None:
        """Iteration `step` is over, or on its way on the GPU."""


class Due:
    """Iterations of the settings at which something happens."""

    def __init__(self, *images: int) -> None:
        self._images = frozenset(images)

    def at(self, step: int, n_images: int) -> bool:
        """Whether the step of `n_images` images that ends with image `step` has one of them."""
        return any(step - k in self._images for k in range(n_images))


class Progress(Observer):
    """Sends losses, counts and what strategies tell to the log, at times."""

    def on_step(self, run: Run, step: int) -> None:
        if not run.tracker.is_due(step):
            return
        scalars: dict[str, float | Tensor] = {}
        for strategy in run.strategies:
            scalars |= strategy.scalars(step)
        run.tracker.log(step, run.n_rendered, scalars)


class Evaluation(Observer):
    """Evaluates at iterations of the settings, and at the last."""

    def __init__(self, config: TrainConfig) -> None:
        self._due = Due(*config.test_iterations, config.iterations)

    def is_due(self, step: int) -> bool:
        return self._due.at(step, self.n_images)

    def report(self, run: Run, step: int) -> None:
        run.evaluate(step)

    def on_step(self, run: Run, step: int) -> None:
        if self.is_due(step + EVALUATION_AHEAD):
            n_train = len(run.scene.train)
            run.images.prefetch(range(n_train, n_train + len(run.scene.test)))


class Saving(Observer):
    """Saves the model at iterations of the settings, and at the last."""

    def __init__(self, config: TrainConfig) -> None:
        self._due = Due(*config.save_iterations, config.iterations)

    def is_due(self, step: int) -> bool:
        return self._due.at(step, self.n_images)

    def report(self, run: Run, step: int) -> None:
        run.save(step)


class Checkpoints(Observer):
    """Saves a checkpoint after iterations of the settings, and of those that are due at an interval
    keeps the last two."""

    def __init__(self, config: TrainConfig) -> None:
        self._due, self._config = Due(*config.checkpoint_iterations), config
        self._passing: list[int] = []

    def on_step(self, run: Run, step: int) -> None:
        interval, is_named = self._config.checkpoint_interval, self._due.at(step, self.n_images)
        is_due = interval and multiple_in(step, interval, self.n_images) is not None
        if is_named or is_due:
            run.checkpoint(step)
        if is_due and not is_named:
            self._passing.append(step)
            if len(self._passing) > KEPT:
                run.drop_checkpoint(self._passing.pop(0))


def default_observers(config: TrainConfig) -> tuple[Observer, ...]:
    """Those that every run has, in the order in which they are called."""
    return Evaluation(config), Saving(config), Progress(), Checkpoints(config)
