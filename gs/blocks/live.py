"""A block while it is trained: its model, optimizer, strategies and order of cameras.

It is made of a state (gs.training.run_state) and gives one back: parameters, moments, counts, row
buffers, strategies, sampler and history. Nothing else survives, so that a block which was on the
host in between is bit for bit one that was not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.camera import Camera
from ..data.loader import ImageLoader
from ..data.scene import Scene
from ..errors import SplatrimError
from ..model.gaussians import Gaussians
from ..model.model import Model
from ..model.rates import OptimConfig
from ..training.captured_steps import CudaRecorder, OwnStream, StepGraphs
from ..training.observer import Progress
from ..training.optimizer import (
    build_optimizer,
    learning_rates,
    load_optimizer_state,
    optimizer_state,
)
from ..training.run_state import RunState
from ..training.sampler import CameraSampler
from ..training.seen import count_steps
from ..training.strategy import Strategy, final_keep
from ..training.tracker import Tracker
from .manifest import FACTORS, KEPT, KEPT_ROWS
from .step import BlockStepper

PREFETCH = 4  # steps whose images are decoded ahead

logger = logging.getLogger("splatrim")


class BlockImages:
    """Images of a block's cameras, out of those of all."""

    def __init__(self, images: ImageLoader, indices: Sequence[int]) -> None:
        self._images, self._indices = images, list(indices)
        self.cameras: list[Camera] = [images.cameras[i] for i in indices]
        self.has_masks, self.transparent = images.has_masks, images.transparent

    @property
    def targets(self) -> BlockImages:
        return self

    def __getitem__(self, index: int) -> Tensor:  # [H, W, 3] uint8
        return self._images[self._indices[index]]

    def prefetch(self, indices: Iterable[int]) -> None:
        self._images.prefetch(self._indices[i] for i in indices)


@dataclass(frozen=True)
class BlockPlan:
    """What training a block takes besides its state."""

    block: int
    config: TrainConfig
    """The run's, over the block's own steps."""
    optim: OptimConfig
    strategies: Callable[[], list[Strategy[Any]]]
    """New ones, the densifier first."""
    scene: Scene
    """With the block's cameras; its extent is the whole's."""
    cameras: tuple[int, ...]
    """Which of all training cameras."""
    term_weight: float
    """C / C_b, or 1."""
    worth: float
    """Steps of one piece that a step stands for (gs.blocks.schedule)."""
    last_id: int
    """Ids up to here are the block's."""
    method: str
    settings: dict[str, Any]
    white_background: bool = False


class Shared:
    """What a rank's blocks share on the GPU, one after the other: a stream, memory of graphs, and
    what each has learnt of how large its steps are."""

    def __init__(self, device: torch.device) -> None:
        self.stream, self.recorder = OwnStream(device), CudaRecorder()
        self._shares: dict[int, list[float]] = {}

    def graphs(self, block: int) -> StepGraphs:
        """For a block's steps."""
        return StepGraphs(self.recorder, self._shares.setdefault(block, [0.0, 0.0]))


class LiveBlock:
    """A block on the training device.

    Args:
        plan: What it is trained with.
        state: Where it stands, on the device; its tensors are copied.
        images: Of all training cameras.
        device: Where it is trained.
        shared: What it takes over from the block before.
    """

    def __init__(
        self,
        plan: BlockPlan,
        state: dict[str, Any],
        images: ImageLoader,
        device: torch.device,
        shared: Shared,
    ) -> None:
        self.plan, self.config = plan, plan.config
        known = RunState.from_dict(state)
        self.step = known.step
        self.gaussians = Gaussians.from_state(state, device)
        self.strategies = plan.strategies()
        # what strategies do to a model that begins they have done to one that has a state of theirs
        self.gaussians.is_shard = bool(known.strategies)
        set_up(self.strategies, self.gaussians, plan)
        self.gaussians.is_shard = False
        by_row = self.config.adam_rows == "seen"
        self.optimizer = build_optimizer(
            self.gaussians,
            plan.optim,
            extent=plan.scene.extent,
            n_images=self.config.batch * plan.worth,
            by_row=by_row,
        )
        if by_row:
            count_steps(self.gaussians, state if known.optimizer else None)
        self.sampler, self.tracker = restore(known, plan, self.optimizer, self.strategies, device)
        self.images = BlockImages(images, plan.cameras)
        self.n_rendered = 0
        self._progress = Progress()
        self.stepper: BlockStepper[Gaussians] = BlockStepper(
            self.config,
            plan.scene,
            self.gaussians,
            self.optimizer,
            self.strategies,
            self.images,
            self.tracker,
            white_background=plan.white_background,
        )
        self.stepper.term_weight = plan.term_weight
        self.stepper.stream = shared.stream
        if self.stepper.graphs is not None:
            self.stepper.graphs = shared.graphs(plan.block)

    def run(self, until: int, on_step: Callable[[int], bool] | None = None) -> bool:
        """Take steps up to `until`.

        Args:
            until: The last one.
            on_step: Told after each how many images it had; what it returns ends the run where it
                is false.

        Returns:
            Whether it came that far.
        """
        with self.stepper.running():
            while self.step < until:
                last = min(self.step + self.config.batch, until)
                n_images = last - self.step
                self._take(last, n_images)
                if on_step is not None and not on_step(n_images):
                    return False
        if self.gaussians.next_id > self.plan.last_id:
            raise SplatrimError(
                f"block {self.plan.block} has used up its ids: give fewer --blocks or larger"
                " --densification_interval"
            )
        return True

    def _take(self, step: int, n_images: int) -> None:
        self.stepper.settle()
        extent, config = self.plan.scene.extent, self.config
        self.tracker.n_images = self._progress.n_images = n_images
        first = step - n_images + 1
        rates = learning_rates(self.optimizer, self.plan.optim, extent=extent, step=first)
        if config.sh_degree_grows_at(step, n_images):
            self.gaussians.one_up_sh_degree()
        indices = [self.sampler.next() for _ in range(n_images)]
        self.images.prefetch(self.sampler.upcoming(PREFETCH * config.batch))
        self.n_rendered = len(self.gaussians)
        if not self.stepper.replay(step, indices, rates):
            computed = self.stepper.forward_backward(step, indices)
            self.stepper.update(step, computed, rates)
        self.step = step
        self._progress.on_step(self, step)  # pyright: ignore[reportArgumentType]

    def close(self) -> None:
        """Let go of what is on the device; graphs and steps refer to each other."""
        if self.stepper.graphs is not None:
            self.stepper.graphs.drop()
        self.optimizer.state.clear()
        self.gaussians.frozen = None

    @torch.no_grad()
    def state(self) -> dict[str, Any]:
        """Where it stands; tensors share memory with what is trained."""
        self.stepper.settle()
        return state_of(
            self.plan,
            self.step,
            self.gaussians,
            self.optimizer,
            self.strategies,
            self.sampler,
            self.tracker,
        )


def set_up(strategies: Sequence[Strategy[Any]], model: Model, plan: BlockPlan) -> None:
    """Let strategies make of a block's model what they need."""
    for strategy in strategies:
        strategy.n_images = plan.config.batch
        strategy.setup(
            model,
            extent=plan.scene.extent,
            iterations=plan.config.iterations,
            seed=plan.config.seed,
        )
    model.check_complete()


def restore(
    known: RunState,
    plan: BlockPlan,
    optimizer: torch.optim.Optimizer,
    strategies: Sequence[Strategy[Any]],
    device: torch.device,
) -> tuple[CameraSampler, Tracker]:
    """Bring optimizer and strategies to where a block stands; its order of cameras and history."""
    config = plan.config
    if known.optimizer:
        load_optimizer_state(optimizer, known.optimizer)
    for strategy in strategies:
        if strategy.name in known.strategies:
            strategy.load_state_dict(known.strategies[strategy.name])
    sampler = CameraSampler(len(plan.cameras), config.seed)
    if known.sampler:
        sampler.load_state_dict(known.sampler)
    tracker = Tracker(config.iterations, quiet=True, n_images=config.batch)
    if known.tracker:
        tracker.load_state_dict(known.tracker, device)
    return sampler, tracker


def state_of(
    plan: BlockPlan,
    step: int,
    model: Model,
    optimizer: torch.optim.Optimizer,
    strategies: Sequence[Strategy[Any]],
    sampler: CameraSampler,
    tracker: Tracker,
) -> dict[str, Any]:
    """The state of a block that has taken so many steps; tensors share memory with its parts."""
    known = {strategy.name: strategy.state_dict() for strategy in strategies}
    keep = final_keep(model, strategies)
    factors = [strategy.opacity_factors(model) for strategy in strategies]
    shown = {KEPT_ROWS: keep, FACTORS: next((x for x in factors if x is not None), None)}
    if any(x is not None for x in shown.values()):
        known[KEPT] = {name: x for name, x in shown.items() if x is not None}
    return RunState(
        method=plan.method,
        step=step,
        params=model.to_tensors(),
        rows=model.rows,
        shared=model.shared.state_dict(),
        next_id=model.next_id,
        active_sh_degree=model.active_sh_degree,
        sh_degree=model.sh_degree,
        optimizer=optimizer_state(optimizer),
        strategies=known,
        sampler=sampler.state_dict(),
        rng={"seed": plan.config.seed},
        extent=plan.scene.extent,
        config=plan.settings,
        tracker=tracker.state_dict(),
    ).to_dict()


def first_state(
    gaussians: Model,
    ids: Tensor,  # [N] int32
    next_id: int,
    method: str,
    extent: float,
) -> dict[str, Any]:
    """The state of a block that no step has been taken of; tensors are the model's."""
    return RunState(
        method=method,
        extent=extent,
        step=0,
        params=gaussians.to_tensors(),
        rows={"ids": ids},
        next_id=next_id,
        active_sh_degree=gaussians.active_sh_degree,
        sh_degree=gaussians.sh_degree,
    ).to_dict()
