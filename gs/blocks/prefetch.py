"""The next block's state on its way to the device, while another block is trained.

It takes the device's memory for one more state, 730 bytes per Gaussian of the next block. Copies of
page-locked memory run on a stream of their own, and nothing waits for them before the block's turn.
"""

from __future__ import annotations

from typing import Any

import torch

from .state import Arriving, BlockState


class Prefetcher:
    """Brings one state at a time.

    Args:
        device: Where to.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._coming: tuple[BlockState, Arriving] | None = None

    def begin(self, state: BlockState) -> None:
        """Let a state come, which is not to change before it is taken."""
        if self._coming is None:
            self._coming = state, state.begin_to_device(self.device, self._stream)

    def take(self, state: BlockState) -> dict[str, Any]:
        """A state on the device: the one that was to come, or another, for which this waits."""
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] is state:
            return coming[1].arrived()
        return state.to_device(self.device)


def next_in_turn(turns: list[int], block: int) -> int | None:
    """The block whose turn follows in a round; None at its end, where the whole may be tested."""
    place = turns.index(block) + 1
    return turns[place] if place < len(turns) else None
