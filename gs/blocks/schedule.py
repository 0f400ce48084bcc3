"""The schedule of blocks by fraction: every Gaussian sees as many epochs as in one piece.

A run of T iterations shows each of its C cameras T / C times. A block with C_b cameras does so in
T_b = T C_b / C steps of its own, and what happens at iteration i of T happens there at i C_b / C:
intervals of densification too, over which a Gaussian is then seen as often as in one piece. A round
takes every block an equal part of its steps further.

A step of a block stands for C / C_b steps of one piece, of which all but one show none of it: their
gradients are zero, and Adam goes on by its momentum. The sum of these gradients is the one that the
block's step has, so its Adam is that of a step of C / C_b images (gs.training.batch): rates times
the root of it, memory as long in epochs. With the rates as they are, the blocks of a quarter-size
survey lose 0.7 dB more. Where Adam steps by row, a step leaves no others out.

A term that a pruning method adds to each step's loss pushes C times per epoch in one piece and C_b
times in a block; it is weighted C / C_b there, as a mean over the Gaussians of all blocks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..config import TrainConfig
from ..densification.budget import budget_limit
from .config import BlocksConfig
from .partition import Partition

LEAST_ROUNDS, LONGEST_INTERVAL = 40, 500
GROWTH = 2.0  # after a share x of the rounds a block has taken x^GROWTH of its steps

C = TypeVar("C")
_RATES = ("mask_lr", "growth")  # of methods and densifiers; schedules are whole numbers


@dataclass(frozen=True)
class Schedule:
    """When which block takes how many steps.

    Rounds are of equal length where there is an `interval`. Else they grow: short ones at first,
    where blocks change fast and would grow into what their neighbours have not begun to show, and
    long ones at the end. There are LEAST_ROUNDS, or more so that the last is LONGEST_INTERVAL.
    """

    iterations: int
    """T, as in one piece."""
    n_train: int
    """C, training cameras of the scene."""
    n_cameras: tuple[int, ...]
    """C_b of each block."""
    interval: int = 0
    """Steps of an average block in a round; 0: by LEAST_ROUNDS and LONGEST_INTERVAL."""

    @property
    def mean_steps(self) -> float:
        """Steps of an average block."""
        return self.iterations * sum(self.n_cameras) / len(self.n_cameras) / self.n_train

    @property
    def n_rounds(self) -> int:
        if self.interval:
            return max(math.ceil(self.mean_steps / self.interval - 1e-9), 1)
        least = min(LEAST_ROUNDS, math.ceil(self.mean_steps))
        return max(math.ceil(GROWTH * self.mean_steps / LONGEST_INTERVAL), least, 1)

    def fraction(self, rounds: int) -> float:
        """Share of its steps that every block has taken after so many rounds."""
        if self.interval:
            return min(rounds * self.interval / self.mean_steps, 1.0)
        return min(rounds / self.n_rounds, 1.0) ** GROWTH

    def share(self, block: int) -> float:
        """C_b / C."""
        return self.n_cameras[block] / self.n_train

    def steps(self, block: int) -> int:
        """T_b."""
        return max(round(self.iterations * self.share(block)), 1)

    @property
    def total(self) -> int:
        """Steps of all blocks."""
        return sum(map(self.steps, range(len(self.n_cameras))))

    def until(self, block: int, rounds: int) -> int:
        """Steps that a block has taken after so many rounds."""
        if rounds >= self.n_rounds:
            return self.steps(block)
        return int(self.fraction(rounds) * self.steps(block) + 0.5)

    def iteration(self, rounds: int) -> int:
        """How far the run is after so many rounds, in iterations of one piece."""
        if rounds >= self.n_rounds:
            return self.iterations
        return min(round(self.fraction(rounds) * self.iterations), self.iterations - 1)

    def position(self, steps: Sequence[int], waves: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Round and wave that come next, where blocks have taken so many steps."""
        for rounds in range(self.n_rounds):
            for wave, blocks in enumerate(waves):
                if any(steps[b] < self.until(b, rounds + 1) for b in blocks):
                    return rounds, wave
        return self.n_rounds, 0


def schedule_of(train: TrainConfig, blocks: BlocksConfig, partition: Partition) -> Schedule:
    """The schedule of a run: with `block_steps` all, as if every block had all cameras."""
    n_train, counts = len(partition.names), tuple(map(len, partition.cameras))
    if blocks.block_steps == "all":
        counts = (n_train,) * partition.n_blocks
    return Schedule(train.iterations, n_train, counts, blocks.block_interval)


def in_share(config: C, share: float) -> C:
    """Settings whose schedule is over `share` of the iterations, with rates as they are.

    Args:
        config: Of the optimizer, of a densifier or of a pruning method.
        share: C_b / C.
    """
    known: Any = config
    if share == 1.0:
        return config
    scaled = known.scaled(share)
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(known):
        is_rate = field.name in _RATES or field.name.endswith("_lr") or "_lr_" in field.name
        if is_rate and isinstance(getattr(known, field.name), float) and field.name != "logit_lr":
            changes[field.name] = getattr(known, field.name)
    if hasattr(known, "densification_interval"):
        changes["densification_interval"] = max(round(known.densification_interval * share), 1)
    return dataclasses.replace(scaled, **changes)


def densifier_in_block(config: C, share: float, n_points: int, n_all: int, weighted: bool) -> C:
    """A densifier's settings in a block.

    Opacities are never reset, as those of the neighbours would not be at the same time. A budget
    that is a number is shared out by starting points.

    Args:
        config: Settings of the run.
        share: C_b / C.
        n_points: The block's starting points.
        n_all: All starting points.
        weighted: Whether regularisers are over all Gaussians, and weigh C / C_b.
    """
    scaled: Any = in_share(config, share)
    changes: dict[str, Any] = {}
    if hasattr(scaled, "opacity_reset_interval"):
        changes["opacity_reset_interval"] = max(scaled.densify_until_iter, 1)
    if hasattr(scaled, "budget") and not str(scaled.budget).strip().lower().endswith("x"):
        budget = budget_limit(scaled.budget, n_all)
        changes["budget"] = str(max(round(budget * n_points / max(n_all, 1)), n_points, 1))
    for name in ("lambda_opacity", "lambda_scale"):
        if hasattr(scaled, name) and weighted:
            changes[name] = getattr(scaled, name) / share
    return dataclasses.replace(scaled, **changes)


def run_in_block(config: TrainConfig, schedule: Schedule, block: int, seed: int) -> TrainConfig:
    """The run's settings as they are for a block."""
    share = schedule.share(block)
    scaled = config if share == 1.0 else config.scaled(share)
    return dataclasses.replace(
        scaled,
        iterations=schedule.steps(block),
        seed=seed,
        test_iterations=(),
        save_iterations=(),
        checkpoint_iterations=(),
        checkpoint_interval=0,
    )
