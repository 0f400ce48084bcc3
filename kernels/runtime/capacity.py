"""Sizes of buffers whose contents are counted on the GPU alone.

Records and list entries (pipeline.py) lie in buffers whose capacity is a guess, a little above the
largest counts seen. A kernel (binning/) writes the counts into the host's memory while the GPU goes
on. The host reads them once everything is queued, and learns.
"""

import ctypes
import itertools
import threading
import time

import torch
from torch import Tensor

from ..arguments import Capacity, Counts
from ..device.intrinsics import INTERPRET
from .cache import caches

SPARE = 1.125  # capacity over the counts seen
UNKNOWN = -1
SPINS = 2000  # looks for the counts before other threads may run: about 0.2 ms
YIELDS = 500  # and before this one sleeps: about 2 ms
# Views differ: so many calls pass before a capacity that is twice too large shrinks.
CALLS_TO_SHRINK = 1 if INTERPRET.value else 200

# Learnt capacities are multiples of these.
GRAIN = Capacity(32, 128) if INTERPRET.value else Capacity(1 << 12, 1 << 15)


class LearnedCapacity:
    """The capacity for calls on one device, learnt from the counts of those before."""

    def __init__(self, device: torch.device) -> None:
        self.capacity = GRAIN
        self._most, self._calls = Counts(0, 0), 0
        self._device = device
        # Host memory that kernels write counts to: rows, and entries in the high half. Memory whose
        # counts were never read may still be written, so it is kept and not used again.
        self._memory: list[Tensor] = []
        self._word = ctypes.c_int64()
        self._unread = True
        self._pinned = device.type == "cuda"

    def expect(self) -> Tensor:
        """Where the next counts go: [1] int64."""
        if self._unread:
            memory = torch.zeros(1, dtype=torch.int64, pin_memory=self._pinned)
            self._memory.append(memory)
            self._word = ctypes.c_int64.from_address(memory.data_ptr())
        self._unread = True
        if self._pinned:
            self._word.value = UNKNOWN
        return self._memory[-1]

    def learn(self) -> Counts:
        """The counts once they are there; the capacity adapts to them."""
        word = self._wait()
        self._unread = False
        counts = Counts(word & 0xFFFFFFFF, word >> 32)
        self._most, self._calls = Counts(*map(max, self._most, counts)), self._calls + 1
        if self._calls >= CALLS_TO_SHRINK or not self.capacity.holds(counts):
            self.capacity = Capacity(*map(_adapted, self.capacity, self._most, GRAIN))
            self._most, self._calls = counts, 0
        return counts

    def _wait(self) -> int:
        word = self._word
        for _ in range(SPINS):
            value = word.value
            if value != UNKNOWN:
                return value
        # A long wait: let other threads run, and notice failures.
        stream = torch.cuda.current_stream(self._device)
        for k in itertools.count():
            if word.value != UNKNOWN or stream.query():
                break
            time.sleep(0 if k < YIELDS else 5e-5)
        value = word.value
        if value == UNKNOWN:
            raise RuntimeError("the GPU finished a rendering and has not written its counts")
        return value


def _adapted(capacity: int, most: int, grain: int) -> int:
    """The capacity, or another if it is too small or twice too large."""
    fitting = max(-(-int(most * SPARE) // grain), 1) * grain
    return fitting if most > capacity or 2 * fitting < capacity else capacity


def learned_capacity(device: torch.device) -> LearnedCapacity:
    """That of a device and this thread; one that is lost costs a repetition."""
    return _capacity_of(threading.get_ident(), device)


@caches.remembered
def _capacity_of(_: int, device: torch.device) -> LearnedCapacity:
    return LearnedCapacity(device)
