"""How much room the rasterizer makes for what it cannot know before it has begun.

Rows and list entries (pipeline.py) live in buffers whose capacities are guesses, a little above the
largest numbers seen. A kernel (binning/) writes the numbers needed into the host's memory while
the GPU goes on; they are read once everything is queued.
"""

import ctypes
import itertools
import threading
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..device.intrinsics import INTERPRET

SLACK = 1.125  # capacity over the numbers seen
UNKNOWN = -1
SPINS = 2000  # looks for the counts before other threads may run: about 0.2 ms
YIELDS = 500  # and before this one sleeps: about 2 ms
# Calls before a capacity that is twice too large shrinks: views differ.
PATIENCE = 1 if INTERPRET.value else 200


class Room(NamedTuple):
    """Capacities, fixed by the caller where a call is captured in a CUDA graph."""

    rows: int
    """Visible (camera, Gaussian) pairs."""
    entries: int
    """Intersections of Gaussians and tiles, or what their bins need (binning/)."""

    def holds(self, needed: "Room") -> bool:
        return needed.rows <= self.rows and needed.entries <= self.entries


# Capacities are multiples of these.
GRAIN = Room(32, 128) if INTERPRET.value else Room(1 << 12, 1 << 15)


class Capacity:
    """How much room to make on one device, learnt from what was seen."""

    def __init__(self, device: torch.device) -> None:
        self.room = GRAIN
        self._most, self._calls = Room(0, 0), 0
        self._device = device
        # Host memory that kernels write to: rows, and entries in the high half. What was asked
        # and never read may still be written, so such memory is kept and not used again.
        self._answers: list[Tensor] = []
        self._value: Any = None
        self._asked = True
        self._pinned = device.type == "cuda"

    def prepare(self) -> Tensor:
        """Where the next counts go: [1] int64."""
        if self._asked:
            answer = torch.zeros(1, dtype=torch.int64, pin_memory=self._pinned)
            self._answers.append(answer)
            self._value = ctypes.c_int64.from_address(answer.data_ptr())
        self._asked = True
        if self._pinned:
            self._value.value = UNKNOWN
        return self._answers[-1]

    def answer(self) -> Room:
        """The counts once they are there, and adapt to them."""
        value = self._wait()
        self._asked = False
        needed = Room(value & 0xFFFFFFFF, value >> 32)
        self._most, self._calls = Room(*map(max, self._most, needed)), self._calls + 1
        if self._calls >= PATIENCE or not self.room.holds(needed):
            self.room = Room(*map(_adapted, self.room, self._most, GRAIN))
            self._most, self._calls = needed, 0
        return needed

    def _wait(self) -> int:
        told = self._value
        for _ in range(SPINS):
            value = told.value
            if value != UNKNOWN:
                return value
        # A long one: let other threads run, and notice failures.
        stream = torch.cuda.current_stream(self._device)
        for k in itertools.count():
            if told.value != UNKNOWN or stream.query():
                break
            time.sleep(0 if k < YIELDS else 5e-5)
        value = told.value
        if value == UNKNOWN:
            raise RuntimeError("the GPU finished a rendering and has not told its counts")
        return value


def _adapted(capacity: int, most: int, grain: int) -> int:
    """The capacity, or another if it is too small or twice too large."""
    fitting = max(-(-int(most * SLACK) // grain), 1) * grain
    return fitting if most > capacity or 2 * fitting < capacity else capacity


class Capacities(threading.local):
    """One Capacity per device and thread; losing it costs one repetition."""

    def __init__(self) -> None:
        self.by_device: dict[torch.device, Capacity] = {}

    def __getitem__(self, device: torch.device) -> Capacity:
        if device not in self.by_device:
            self.by_device[device] = Capacity(device)
        return self.by_device[device]


capacities = Capacities()
