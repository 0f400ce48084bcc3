"""Training steps as CUDA graphs: captured once, replayed until the model's rows change.

A step is some forty small launches, which take the host longer to issue than a GPU to run. A graph
replays them in one. What differs from step to step (camera, background, learning rates, seeds)
lies in one buffer (gs.training.step_inputs) that one copy brings up to date.

A graph's buffers have a fixed size, its capacity. A replayed step reports on the device its counts
of rows and entries, and, where these are too large, leaves parameters, moments and statistics as
they were. The host reads the report of one step before it launches the next, at a time when the GPU
has most of the step still before it, and repeats a step that did not fit: no step is lost or wrong.

    warm-up (eager, learns the capacity)  ->  capture  ->  replay, replay, ...

Graphs are kept by key: images of a step and their size, SH degree and the strategies' phases. They
hold addresses, so all are dropped once a parameter or row buffer is another tensor than at capture.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from kernels import Capacity, Counts

from ..model.model import Model
from .step_inputs import InputBuffer

MAX_GRAPHS = 8  # keys; scenes with more image sizes train without graphs
SLACK = 1.3  # capacity over the largest need seen
VIEW_SLACK = 1.4  # capacity over the need of the one view that a warm-up saw
DECAY = 0.9995  # per step, of the largest need seen

Plan = Literal["warm up", "capture", "replay", "run"]


class Graph(Protocol):
    """A captured step."""

    def replay(self) -> None:
        """Queue all that was captured."""
        ...


Body = Callable[[], object]
Record = Callable[[Body], Graph]
"""Captures what a function launches. Whether it runs there and then is the recorder's affair: a
replay comes next in any case."""


class CudaRecorder:
    """Captures CUDA graphs on the current stream, which must not be the default one."""

    def __init__(self) -> None:
        self._anchor: torch.cuda.CUDAGraph | None = None

    def __call__(self, body: Body) -> Graph:
        if self._anchor is None:
            # All graphs share its memory: they run one after the other and hand on nothing.
            self._anchor = _record(lambda: torch.zeros(1, device="cuda"))
        return _record(body, self._anchor)


class OwnStream:
    """A stream of a GPU for steps, always the same one: the allocator keeps memory by stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Where it is the current stream, and autograd runs in the caller's thread; on a CPU as
        everywhere.
        """
        if self._device.type != "cuda":
            yield
            return
        with torch.cuda.device(self._device), torch.autograd.set_multithreading_enabled(False):
            stream = self._stream = self._stream or torch.cuda.Stream()
            caller = torch.cuda.current_stream()
            stream.wait_stream(caller)
            with torch.cuda.stream(stream):
                yield
            caller.wait_stream(stream)


class Bounds(NamedTuple):
    """What a captured step is told of its buffers."""

    capacity: Capacity
    limits: Tensor
    """The same on the device. [2] int32"""
    buffer: InputBuffer
    """Where the step reports its counts."""

    def check(
        self,
        counts: Tensor,  # [2] int32
        missing: Tensor | None = None,  # [1] int32
    ) -> Tensor:  # [1] int32
        """Record the report; 1 where so much did not fit, and the step must change nothing.

        Args:
            counts: Of rows and entries.
            missing: What the model had no room for.
        """
        return self.buffer.report(counts, self.limits, missing)


class StepGraphs:
    """Graphs of one model's steps by key.

    Args:
        record: Captures.
        fractions: Rows and entries per Gaussian, recent maxima; kept up to date in place.
    """

    def __init__(self, record: Record, fractions: list[float] | None = None) -> None:
        self._record = record
        self._graphs: dict[Hashable, tuple[Graph, Capacity, Body]] = {}
        self._warm: set[Hashable] = set()
        self._tensors: list[Tensor] = []
        self._fractions = [0.0, 0.0] if fractions is None else fractions

    def plan(self, key: Hashable, model: Model) -> Plan:
        """What to do with a step; "run": without a graph."""
        tensors = [*model.params.values(), *model.rows.values(), *model.shared.parameters()]
        same = len(tensors) == len(self._tensors)
        if not same or any(a is not b for a, b in zip(tensors, self._tensors, strict=True)):
            self.drop()
            self._tensors = tensors
        if key in self._graphs:
            return "replay"
        if key in self._warm:
            return "capture"
        return "warm up" if len(self._warm) < MAX_GRAPHS else "run"

    def warmed_up(self, key: Hashable, n: int, counts: Counts) -> None:
        """A step of `key` ran eagerly on n Gaussians and had so many rows and entries."""
        self._warm.add(key)
        self._learn(n, *(x * VIEW_SLACK / SLACK for x in counts))

    def capacity(self, n: int) -> Capacity:
        """What a graph for n Gaussians should hold."""
        return Capacity(*(int(fraction * n * SLACK) + 1024 for fraction in self._fractions))

    def capture(self, key: Hashable, capacity: Capacity, body: Body) -> None:
        """Record `body`, which makes buffers of that capacity."""
        # `body` stays, for the tensors that it refers to.
        self._graphs[key] = self._record(body), capacity, body

    def replay(self, key: Hashable) -> None:
        self._graphs[key][0].replay()

    def fits(self, key: Hashable, n: int, counts: Counts, missing: int = 0) -> bool:
        """Whether a replay with such counts was right; if not, its graph is dropped."""
        if missing <= 0:  # else what was counted is not what there is
            self._learn(n, *counts)
        capacity = self._graphs[key][1]
        if capacity.holds(counts) and missing <= 0:
            return True
        del self._graphs[key]
        return False

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    def forget(self, keys: Iterable[Hashable]) -> None:
        """Drop graphs, if there are any; their keys stay warm."""
        for key in keys:
            self._graphs.pop(key, None)

    def drop(self) -> None:
        """Forget all graphs."""
        self._graphs.clear()
        self._warm.clear()
        self._tensors = []

    def _learn(self, n: int, *counts: float) -> None:
        for k, x in enumerate(counts):
            self._fractions[k] = max(x / max(n, 1), self._fractions[k] * DECAY)


def counts_of(info: Mapping[str, Any]) -> Counts:
    """Rows and entries that a rendering had, by what it returned. Waits."""
    if "counts" in info:
        return Counts(*info["counts"].tolist())
    return Counts(int((info["radii"] > 0).all(-1).sum()), int(info["n_isects"]))


def _record(body: Body, anchor: torch.cuda.CUDAGraph | None = None) -> torch.cuda.CUDAGraph:
    """Capture `body`; torch.cuda.graph would also collect garbage and empty the cache: 0.1 s."""
    graph = torch.cuda.CUDAGraph()
    pool = None if anchor is None else anchor.pool()
    # what a collection frees there and then may be what no capture may free
    collects = gc.isenabled()
    gc.disable()
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        body()
    finally:
        graph.capture_end()
        if collects:
            gc.enable()
    return graph
