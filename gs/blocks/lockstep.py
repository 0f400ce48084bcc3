"""Blocks that are trained at once and make the steps of their decoder together.

In a turn of a group the block with most steps takes one in every tick, and the others as often as
spreads theirs evenly. After each tick the decoder takes one step by the mean gradient of the blocks
that have. How many blocks are a group is a setting; a rank that has several of them trains them one
after the other within a tick, and one that has none only takes the decoder's steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .neural_block import NeuralBlock
from .shared_decoder import SharedDecoder
from .weights import BlockWeights

LOOK = 16  # ticks between two looks at whether to stop


@dataclass(frozen=True)
class Turn:
    """One block's part in a group's turn."""

    block: int
    rank: int
    first: int
    """Steps that it has taken before, counted in images."""
    until: int
    """Steps that it has taken after."""
    total: int
    """Steps of its schedule."""


def groups_of(waves: Sequence[Sequence[int]], lockstep: int) -> list[list[int]]:
    """Waves cut into groups of so many blocks; 0: a group per wave."""
    found = []
    for wave in waves:
        size = lockstep or len(wave)
        found += [list(wave[k : k + size]) for k in range(0, len(wave), size)]
    return found


def is_due(tick: int, n_steps: int, n_ticks: int) -> bool:
    """Whether a block with n_steps takes one in a tick, counted from 0."""
    return (tick + 1) * n_steps // n_ticks > tick * n_steps // n_ticks


class Lockstep:
    """Takes the ticks of a group's turn.

    Args:
        decoder: Of all blocks.
        weights: Of the blocks.
        batch: Images of a block's step.
        iterations: Of the run, which the decoder's learning rates follow.
        slot: Of the group in its round.
    """

    def __init__(
        self,
        decoder: SharedDecoder,
        weights: BlockWeights,
        *,
        batch: int,
        iterations: int,
        slot: int,
    ) -> None:
        self.decoder, self.weights, self.slot = decoder, weights, slot
        self.batch, self.iterations = batch, iterations

    def run(
        self,
        turns: Sequence[Turn],
        live: Mapping[int, NeuralBlock],
        goes_on: Callable[[], bool],
        on_step: Callable[[int], None],
    ) -> bool:
        """Take all ticks.

        Args:
            turns: Of the group's blocks.
            live: Those of this rank.
            goes_on: Asked now and then on all ranks together; the turn ends where it is false.
            on_step: Told how many images a block's step had.

        Returns:
            Whether it came to the end.
        """
        n_steps = {turn.block: -(-(turn.until - turn.first) // self.batch) for turn in turns}
        n_ticks = max(n_steps.values(), default=0)
        taken = {turn.block: turn.first for turn in turns}
        for tick in range(n_ticks):
            if tick % LOOK == 0 and not goes_on():
                return False
            active = [turn for turn in turns if is_due(tick, n_steps[turn.block], n_ticks)]
            found: dict[int, Tensor] = {}
            before = {turn.block: taken[turn.block] for turn in active}
            for turn in active:
                n_images = min(self.batch, turn.until - taken[turn.block])
                taken[turn.block] += n_images
                step = taken[turn.block]
                if turn.block in live:
                    weight = self.weights.weight(turn.block, step)
                    found[turn.block] = live[turn.block].take(n_images, weight)
                    on_step(n_images)
            for turn in active:
                self.weights.advance(turn.block, taken[turn.block])
            self._step(active, found, before, taken)
        return True

    def _step(
        self,
        active: Sequence[Turn],
        found: Mapping[int, Tensor],
        before: Mapping[int, int],
        taken: Mapping[int, int],
    ) -> None:
        """The decoder's, unless it is frozen or this is the last step of all."""
        if self.decoder.is_frozen:
            return
        gradients = self.decoder.gather(found, {turn.block: turn.rank for turn in active})
        # as of a single model: the published loop leaves the last step out
        if all(taken[turn.block] >= turn.total for turn in active):
            return
        far = max(active, key=lambda turn: (turn.total, -turn.block))
        share = far.total / self.iterations
        self.decoder.step(gradients, round((before[far.block] + 1) / share), self.slot)
