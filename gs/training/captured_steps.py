"""Training steps as CUDA graphs: captured once, replayed until the model's rows change.

A step is some forty small launches, which take the host longer to issue than a GPU to run. A graph
replays them in one. What differs from step to step (camera, background, learning rates, seeds)
lies in one buffer, `Frame`, that one copy brings up to date.

A graph's buffers have a fixed size, the `Capacity`. A replayed step reports on the device how much
it needed, and, where that was too much, leaves parameters, moments and statistics as they were. The
host reads the report of one step before it launches the next, at a time when the GPU has most of
the step still before it, and repeats a step that did not fit: no step is lost or wrong.

    warm-up (eager, learns the room)  ->  capture  ->  replay, replay, ...

Graphs are kept by key: image size, SH degree and the strategies' phases. They hold addresses, so
all are dropped once a parameter or row buffer is another tensor than at capture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from kernels import Capacity

    from ..model.gaussians import Gaussians

MAX_GRAPHS = 8  # keys; scenes with more image sizes train without graphs
SLACK = 1.3  # room over the largest need seen
VIEW_SLACK = 1.4  # room over the need of the one view that a warm-up saw
DECAY = 0.9995  # per step, of the largest need seen
PATIENCE = 10.0  # seconds until a silent GPU is asked for errors

# layout of Frame in 4-byte words; pieces begin at multiples of 16 bytes
VIEWMAT, INTRINSICS, BACKGROUND, SERIAL, MEANS_LR, INTEGERS = 0, 16, 28, 32, 36, 40
ALIGNED = 4  # words


class Frame:
    """The inputs of one step on the device, and its report to the host.

    Args:
        device: A CUDA device.
        n_params: Parameters of the optimizer.
        names: Of the integers that differ from step to step.
    """

    def __init__(self, device: torch.device, n_params: int, names: Iterable[str]) -> None:
        self._places = {name: INTEGERS + ALIGNED * k for k, name in enumerate(names)}
        self._rates = INTEGERS + ALIGNED * len(self._places)
        size = self._rates + 2 * n_params
        buffer = torch.zeros(size, device=device)
        self._buffer = buffer
        # The copy of the last step has run when the next one writes: its report came back.
        self._staging = torch.zeros(size).pin_memory()
        self._floats = self._staging.numpy()
        self._words = self._staging.view(torch.int32).numpy()
        self.viewmats = buffer[VIEWMAT:INTRINSICS].view(1, 4, 4)
        self.Ks = buffer[INTRINSICS : INTRINSICS + 9].view(1, 3, 3)
        self.background = buffer[BACKGROUND : BACKGROUND + 3]
        words = buffer.view(torch.int32)
        self.integers = {name: words[k : k + 2] for name, k in self._places.items()}
        self.serial = words[SERIAL : SERIAL + 1]
        self.means_lr = buffer[MEANS_LR : MEANS_LR + 1]
        self.rates = buffer[self._rates :].view(n_params, 2)
        self.report = torch.zeros(4, dtype=torch.int32).pin_memory()  # rows, entries, serial
        self._reported = self.report.numpy()
        self._serial = 0

    def upload(
        self,
        view: np.ndarray[Any, Any],  # [25] float32: world to camera [4, 4], intrinsics [3, 3]
        background: tuple[float, ...],  # 3
        rates: Tensor,  # [P, 2] float32, on the CPU
        integers: Mapping[str, int],
        means_lr: float,
    ) -> None:
        """Queue the copy of the next step's inputs.

        Raises:
            ValueError: The integers have other names than at first.
        """
        from kernels import split_seed

        if integers.keys() != self._places.keys():
            raise ValueError(
                f"device_inputs: expected {sorted(self._places)} in every iteration,"
                f" got {sorted(integers)}"
            )
        floats, words = self._floats, self._words
        floats[: INTRINSICS + 9] = view
        floats[BACKGROUND : BACKGROUND + 3] = background
        self._serial = (self._serial + 1) & 0x3FFFFFFF
        words[SERIAL] = self._serial
        for name, k in self._places.items():
            words[k : k + 2] = split_seed(integers[name])
        floats[MEANS_LR] = means_lr
        floats[self._rates :] = rates.numpy().ravel()
        self._buffer.copy_(self._staging, non_blocking=True)

    def capture_report(self, needed: Tensor) -> None:  # [2] int32
        """Record into the graph that `needed` goes to the host."""
        self.report[:3].copy_(torch.cat([needed, self.serial]), non_blocking=True)

    def wait(self) -> tuple[int, int]:
        """Rows and entries that the last step needed; waits until its report is there."""
        deadline = time.perf_counter() + PATIENCE
        while self._reported[2] != self._serial:
            if time.perf_counter() > deadline:
                torch.cuda.synchronize()  # raises if a kernel failed
                deadline = time.perf_counter() + PATIENCE
        return int(self._reported[0]), int(self._reported[1])


class StepGraphs:
    """Graphs of one model's steps by key."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Capacity, Any]] = {}
        self._warm: set[Hashable] = set()
        self._tensors: list[Tensor] = []
        self._anchor: torch.cuda.CUDAGraph | None = None
        self._fractions = [0.0, 0.0]  # of rows and entries needed per Gaussian, recent maxima

    def plan(self, key: Hashable, gaussians: Gaussians) -> str:
        """What to do with a step: "warm up", "capture", "replay", or "run" without a graph."""
        shared = gaussians.shared.parameters()
        tensors = [*gaussians.params.values(), *gaussians.rows.values(), *shared]
        same = len(tensors) == len(self._tensors)
        if not same or any(a is not b for a, b in zip(tensors, self._tensors, strict=True)):
            self.drop()
            self._tensors = tensors
        if key in self._graphs:
            return "replay"
        if key in self._warm:
            return "capture"
        return "warm up" if len(self._warm) < MAX_GRAPHS else "run"

    def warmed_up(self, key: Hashable, n: int, rows: int, entries: int) -> None:
        """A step of `key` ran eagerly on n Gaussians and needed so much."""
        self._warm.add(key)
        self._learn(n, rows * VIEW_SLACK / SLACK, entries * VIEW_SLACK / SLACK)

    def room(self, n: int) -> tuple[int, int]:
        """Rows and entries that a graph for n Gaussians should hold."""
        rows, entries = (int(fraction * n * SLACK) + 1024 for fraction in self._fractions)
        return min(rows, n), entries

    def capture(self, key: Hashable, room: Capacity, body: Callable[[], Any]) -> None:
        """Record `body` on the current stream, which must not be the default one."""
        if self._anchor is None:
            # All graphs share its memory: they run one after the other and hand on nothing.
            self._anchor = _record(lambda: torch.zeros(1, device="cuda"), None)
        # `body` stays, for the tensors that it refers to.
        self._graphs[key] = _record(body, self._anchor.pool()), room, body

    def replay(self, key: Hashable) -> None:
        self._graphs[key][0].replay()

    def fits(self, key: Hashable, n: int, rows: int, entries: int) -> bool:
        """Whether a replay that needed so much was right; if not, its graph is dropped."""
        self._learn(n, rows, entries)
        room = self._graphs[key][1]
        if rows <= room.rows and entries <= room.entries:
            return True
        del self._graphs[key]
        return False

    def drop(self) -> None:
        """Forget all graphs."""
        self._graphs.clear()
        self._warm.clear()
        self._tensors = []

    def _learn(self, n: int, rows: float, entries: float) -> None:
        for k, x in enumerate((rows, entries)):
            self._fractions[k] = max(x / max(n, 1), self._fractions[k] * DECAY)


def _record(body: Callable[[], Any], pool: Any) -> torch.cuda.CUDAGraph:
    """Capture `body`; torch.cuda.graph would also collect garbage and empty the cache: 0.1 s."""
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        body()
    finally:
        graph.capture_end()
    return graph
