"""Every kernel variant that a training will launch, found from its settings by rehearsing it.

A trainer is built from the run's own settings on a scene of a few points, on the CPU. It takes one
step of each kind that the run has: by degree of the spherical harmonics, by phase of the
strategies and by number of images, in parts and captured, as the host and the graphs launch them.
`kernels.Rehearsal` notes what would be launched; nothing is.

What depends on numbers that only the run will know is tried with each of their kinds: widths of
images by what divides them, and sizes of sorts by how a GPU sorts them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from kernels import Launch, Rehearsal, Target, rehearsing, structural_similarity

from .cli import Config, Method
from .data.camera import Camera, camera_extent
from .data.scene import Scene
from .data.tracks import Tracks
from .errors import SplatrimError
from .evaluation.views import evaluate_views, mean_scores
from .neural.anchors import first_anchors
from .neural.config import NeuralConfig
from .program import strategies_in, strategies_of
from .training.captured_steps import Body, StepGraphs
from .training.optimizer import learning_rates
from .training.trainer import Trainer

# images of ones are no images: a strategy may find that nothing is left, or no number
FAILURES = (SplatrimError, ValueError, RuntimeError, LookupError, ArithmeticError)
SIZES = ((64, 48), (62, 46), (63, 45))  # widths that 4, 2 and 1 divide
N_POINTS = 400
MOST_POINTS = 4 * N_POINTS  # a model that has grown beyond is made anew
# Steps of a kind that is not captured: as many consecutive ones, in which a method may have a
# period of its own, and the last.
CONSECUTIVE = 64

logger = logging.getLogger("splatrim")


class _Kind(NamedTuple):
    """What steps have in common that launch the same."""

    degree: int
    phases: tuple[Hashable, ...]
    n_images: int

    @property
    def is_captured(self) -> bool:
        return None not in self.phases


class Captured:
    """Stands in for a CUDA graph: calls what was captured."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def replay(self) -> None:
        self._body()


class Rehearsed(NamedTuple):
    """What a training launches."""

    launches: dict[str, Launch]
    """By label."""
    first: frozenset[str]
    """Labels of those that its first steps launch."""


def rehearse_training(
    config: Config[Any, Any, Any], methods: Mapping[str, type[Method]], target: Target
) -> Rehearsed:
    """The launches of a training, of its evaluation and its measured views.

    Args:
        config: All settings of the run. Neither its scene nor what it starts from is read.
        methods: Settings of the pruning methods by name.
        target: The GPU that it is going to run on.
    """
    from kernels import sizes_by_way

    first, *others = sizes_by_way(target.multiprocessors)
    rehearsal = Rehearsal(target, first)
    with tempfile.TemporaryDirectory() as folder, rehearsing(rehearsal):
        stage = _Stage(config, methods, Path(folder))
        kinds = stage.kinds()
        soon: frozenset[str] = frozenset()
        for kind, steps in kinds.items():
            stage.take(kind, steps)
            soon = soon or frozenset(rehearsal.launches)
        kind, steps = min(kinds.items(), key=lambda item: not item[0].is_captured)
        for n_keys in others:
            rehearsal.n_keys = n_keys
            stage.take(kind, steps[:1])
        for size in range(1, len(SIZES)):
            stage.take(kind, steps[:1], size)
        stage.look({kind.degree for kind in kinds})
    return Rehearsed(rehearsal.launches, soon)


class _Stage:
    """A trainer for rehearsals, built anew once its model has become too small or too large."""

    def __init__(
        self, config: Config[Any, Any, Any], methods: Mapping[str, type[Method]], folder: Path
    ) -> None:
        train = dataclasses.replace(
            config.train,
            model_path=folder / "out",
            device="cpu",
            quiet=True,
            viewer=False,
            resolution_schedule="",  # images of all kinds of sizes are there
        )
        self.config, self.methods = dataclasses.replace(config, train=train), methods
        begin = train.post_start or 0
        most = max(map(train.images_after, range(begin, train.iterations)), default=1)
        self.scene, self._most_images = _scene(folder, most), most
        self.trainer = self._build()

    def _build(self) -> Trainer[Any]:
        config, train = self.config, self.config.train
        model = None
        if isinstance(config.neural, NeuralConfig):
            model = first_anchors(
                config.neural, self.scene, None, seed=train.seed, device=torch.device("cpu")
            )
        trainer = Trainer(
            train,
            self.scene,
            strategies=[*strategies_of(config), *strategies_in(self.scene, config)],
            optim=config.optim,
            method=config.choice.method,
            white_background=config.scene.white_background,
            model=model,
        )
        if train.cuda_graphs:
            trainer.stepper.graphs = StepGraphs(Captured)
        return trainer

    def kinds(self) -> dict[_Kind, list[int]]:
        """Kinds of steps, and those steps of each that are rehearsed."""
        config, found, last = self.config.train, dict[_Kind, list[int]](), dict[_Kind, int]()
        degree, step = 0, config.post_start or 0
        if config.post_start is not None:
            degree = config.sh_degree
        while step < config.iterations:
            n = config.images_after(step)
            step += n
            if config.sh_degree_grows_at(step, n):
                degree = min(degree + 1, config.sh_degree)
            for strategy in self.trainer.strategies:
                strategy.n_images = n
            phases = tuple(strategy.phase(step) for strategy in self.trainer.strategies)
            kind = _Kind(degree, phases, n)
            steps = found.setdefault(kind, [step])
            if not kind.is_captured and step == steps[-1] + n and len(steps) < CONSECUTIVE:
                steps.append(step)
            last[kind] = step
        for kind, steps in found.items():
            if not kind.is_captured and last[kind] > steps[-1]:
                steps.append(last[kind])
        return found

    def take(self, kind: _Kind, steps: Sequence[int], size: int = 0) -> None:
        """Take steps of a kind: in parts, and where it is captured as a graph, too."""
        for step in steps:
            n = len(self.trainer.gaussians)
            if n > MOST_POINTS or (n < N_POINTS // 2 and self.trainer.gaussians.parts == 1):
                self.trainer = self._build()
            trainer, stepper = self.trainer, self.trainer.stepper
            trainer.gaussians.active_sh_degree = kind.degree
            first = size * self._most_images
            indices = range(first, first + kind.n_images)
            rates = learning_rates(
                trainer.optimizer, trainer.optim, extent=self.scene.extent, step=step
            )
            try:
                with stepper.running():
                    if stepper.graphs is not None:
                        stepper.graphs.drop()
                    # a graph is captured at its second step
                    for _ in range(1 + kind.is_captured):
                        if not stepper.replay(step, indices, rates):
                            computed = stepper.forward_backward(step, indices)
                            stepper.update(step, computed, rates)
            except FAILURES as error:
                logger.debug(f"rehearsing step {step}: {error}")
                self.trainer = self._build()

    def look(self, degrees: set[int]) -> None:
        """Evaluate and measure views."""
        trainer = self.trainer
        views = trainer.cameras, trainer.images, torch.zeros(3)
        for degree in sorted(degrees):
            trainer.gaussians.active_sh_degree = degree
            with torch.no_grad():
                mean_scores(evaluate_views(trainer.exported(), *views, indices=range(len(SIZES))))
        # cameras that a method moves to where the finished model fits
        for strategy in trainer.strategies:
            with contextlib.suppress(*FAILURES):
                step = trainer.config.iterations
                strategy.posed_cameras(step, trainer.exported(), *views)
        for width, height in SIZES:
            image = torch.zeros(height, width, 3)
            structural_similarity(image, image)


def _scene(folder: Path, batch: int) -> Scene:
    """A few points before cameras, as many of each size as a step takes."""
    cameras = list(_cameras(folder, batch))
    points = torch.rand(N_POINTS, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    return Scene(
        cameras,
        cameras[:1],
        points,
        torch.full_like(points, 0.5),
        camera_extent(cameras),
        folder,
        "colmap",
        tracks=Tracks(points.double(), {c.image_name: torch.arange(N_POINTS) for c in cameras}),
    )


def _cameras(folder: Path, batch: int) -> Iterator[Camera]:
    for width, height in SIZES:
        path = folder / f"{width}.png"
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
        K = torch.tensor([[50.0, 0.0, width / 2], [0.0, 50.0, height / 2], [0.0, 0.0, 1.0]])
        for k in range(batch):
            viewmat = torch.eye(4)
            viewmat[0, 3], viewmat[2, 3] = 0.1 * k, 2.0
            yield Camera(f"{k}/{path.name}", path, width, height, viewmat, K, width, height)
