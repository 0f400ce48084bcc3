"""How long a rank is in each phase of its steps, on its device."""

from __future__ import annotations

import time
from collections import deque

import torch


class PhaseClock:
    """Adds up seconds by phase. On a GPU by events, which are read once they have come to pass."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: deque[tuple[str, torch.cuda.Event | float]] = deque()
        self._seconds: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        """A phase begins, and the one before it ends."""
        mark: torch.cuda.Event | float = time.perf_counter()
        if self._on_gpu:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        self._marks.append((phase, mark))
        self._count()

    def seconds(self) -> dict[str, float]:
        """By phase, of what is over."""
        self._count()
        return {phase: round(x, 4) for phase, x in self._seconds.items() if phase}

    def _count(self) -> None:
        while len(self._marks) > 1:
            (phase, begin), (_, end) = self._marks[0], self._marks[1]
            if isinstance(begin, float) and isinstance(end, float):
                passed = end - begin
            elif isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
                if not end.query():
                    return
                passed = begin.elapsed_time(end) / 1e3
            else:
                return
            self._seconds[phase] = self._seconds.get(phase, 0.0) + passed
            self._marks.popleft()
