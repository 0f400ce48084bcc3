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

from kernels import Distortion, Launch, Rehearsal, Target, rehearsing, structural_similarity

from .blocks.rehearsed import set_degree, surround
from .cli import Config, Method
from .data.camera import Camera, camera_extent
from .data.colmap import find_model
from .data.colmap_files import read_cameras
from .data.scene import Scene
from .data.tracks import Tracks
from .errors import SplatrimError
from .evaluation.views import evaluate_views, mean_scores
from .model.gaussians import Gaussians
from .neural.anchors import first_anchors
from .neural.config import NeuralConfig
from .program import strategies_in, strategies_of
from .training.captured_steps import Body, StepGraphs
from .training.optimizer import learning_rates
from .training.trainer import Trainer

# images of ones are no images: a strategy may find that nothing is left, or no number
FAILURES = (SplatrimError, ValueError, RuntimeError, LookupError, ArithmeticError)
SIZES = ((64, 48), (62, 46), (63, 45), (62, 45))  # widths that 4, 2, 1 divide; odd heights
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
    turns: dict[str, int]
    """By label: 0 for those that its first steps launch, more for those that are needed later."""


def rehearse_training(
    config: Config[Any, Any, Any], methods: Mapping[str, type[Method]], target: Target
) -> Rehearsed:
    """The launches of a training, of its evaluation and its measured views.

    Args:
        config: All settings of the run. Neither what it starts from nor its scene is read, but for
            the lens of images that are drawn through theirs.
        methods: Settings of the pruning methods by name.
        target: The GPU that it is going to run on.
    """
    from kernels import sizes_by_way

    first, *others = sizes_by_way(target.multiprocessors)
    rehearsal, turns = Rehearsal(target, first), dict[str, int]()

    def end_turn() -> None:
        turn = max(turns.values(), default=-1) + 1
        turns.update(dict.fromkeys(rehearsal.launches.keys() - turns.keys(), turn))

    with tempfile.TemporaryDirectory() as folder, rehearsing(rehearsal):
        stage = _Stage(config, methods, Path(folder))
        kinds = stage.kinds()
        usual = min(kinds.items(), key=lambda item: not item[0].is_captured)
        for kind, steps in kinds.items():
            stage.take(kind, steps)
            end_turn()
            # the first images and the model may be of any size
            if max(turns.values(), default=-1) == 0:
                for n_keys in (*others, first):
                    rehearsal.n_keys = n_keys
                    stage.take(usual[0], usual[1][:1])
                for size in range(1, len(SIZES)):
                    stage.take(usual[0], usual[1][:1], size)
                end_turn()
        several = {kind: steps[:1] for kind, steps in kinds.items() if kind.n_images > 1}
        for kind, steps in several.items():
            for size in range(1, len(SIZES)):
                stage.take(kind, steps, size)
            for n_others in {1, kind.n_images - 1}:
                stage.take(kind, steps, n_others=n_others)
        end_turn()
        for n_keys in (first, *others):
            rehearsal.n_keys = n_keys
            stage.look()
        end_turn()
    return Rehearsed(rehearsal.launches, turns)


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
        lens = _lens(config.scene.source_path, config.scene.distortion)
        self.scene, self._most_images = _scene(folder, most, lens), most
        self._shows_all = config.train.viewer  # at any time
        self._looked_at = set[int]()  # degrees at which views are evaluated
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
        blocks = config.blocks
        if blocks.n_blocks > 1 and blocks.surroundings == "live" and model is None:
            surround(trainer)
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
            tested = any(step - n < x <= step for x in (*config.test_iterations, config.iterations))
            if tested or self._shows_all:
                self._looked_at.add(degree)
            kind = _Kind(degree, phases, n)
            steps = found.setdefault(kind, [step])
            if not kind.is_captured and step == steps[-1] + n and len(steps) < CONSECUTIVE:
                steps.append(step)
            last[kind] = step
        for kind, steps in found.items():
            if not kind.is_captured and last[kind] > steps[-1]:
                steps.append(last[kind])
        return found

    def take(self, kind: _Kind, steps: Sequence[int], size: int = 0, *, n_others: int = 0) -> None:
        """Take steps of a kind: in parts, and where it is captured as a graph, too.

        Args:
            kind: Of all these steps.
            steps: Their numbers.
            size: Of SIZES, that of their images.
            n_others: So many of the images, the last ones, are of the next size.
        """
        for step in steps:
            n = len(self.trainer.gaussians)
            if n > MOST_POINTS or (n < N_POINTS // 2 and self.trainer.gaussians.parts == 1):
                self.trainer = self._build()
            trainer, stepper = self.trainer, self.trainer.stepper
            set_degree(trainer, kind.degree)
            first = size * self._most_images
            if n_others > 0:
                first += self._most_images - kind.n_images + n_others
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

    def look(self) -> None:
        """Evaluate and measure views, at the degrees that `kinds` has found."""
        trainer = self.trainer
        if isinstance(trainer.gaussians, Gaussians):
            trainer.gaussians.frozen = None
        views = trainer.cameras, trainer.images, torch.zeros(3)
        sizes = range(0, self._most_images * len(SIZES), self._most_images)
        for degree in sorted(self._looked_at):
            trainer.gaussians.active_sh_degree = degree
            with torch.no_grad():
                mean_scores(evaluate_views(trainer.exported(), *views, indices=sizes))
        # cameras that a method moves to where the finished model fits
        for strategy in trainer.strategies:
            with contextlib.suppress(*FAILURES):
                step = trainer.config.iterations
                strategy.posed_cameras(step, trainer.exported(), *views)
        for width, height in SIZES:
            image = torch.zeros(height, width, 3)
            structural_similarity(image, image)


def _lens(source: Path, distortion: str) -> Distortion | None:
    """What the images of a COLMAP model are drawn through: the first lens that is no pinhole."""
    if distortion != "native":
        return None
    with contextlib.suppress(SplatrimError, OSError):
        model = find_model(source)
        for path in () if model is None else model.glob("cameras.*"):
            lenses = read_cameras(path).values()
            return next((lens.distortion for lens in lenses if lens.distortion), None)
    return None


def _scene(folder: Path, batch: int, lens: Distortion | None) -> Scene:
    """A few points before cameras, as many of each size as a step takes."""
    cameras = [dataclasses.replace(x, distortion=lens) for x in _cameras(folder, batch)]
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
        path = folder / f"{width}x{height}.png"
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
        K = torch.tensor([[50.0, 0.0, width / 2], [0.0, 50.0, height / 2], [0.0, 0.0, 1.0]])
        for k in range(batch):
            viewmat = torch.eye(4)
            viewmat[0, 3], viewmat[2, 3] = 0.1 * k, 2.0
            yield Camera(f"{k}/{path.name}", path, width, height, viewmat, K, width, height)
