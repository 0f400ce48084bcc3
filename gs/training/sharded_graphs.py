"""The phases of a rank's step as CUDA graphs, between which the host lets ranks talk.

    project   picture   finish   update        a graph each, replayed in this order

A phase hands its results on in tensors that stay where they are: the buffers that ranks exchange
(gs.distributed.step), and what autograd keeps from `project` to `finish`. All graphs of a rank have
one pool of memory; what a phase frees, a later one takes.

Graphs are kept by key, as those of one rank (gs.training.captured_steps), and are of one layout:
tasks that are whole images of one size, and the room that buffers have. Where a plan's layout is
another one, its key's phases are captured anew.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, Literal

import torch
from torch import Tensor

from kernels import Capacity, Counts

from ..distributed.step import Buffers, Layout, Projection
from ..model.model import Model
from .captured_steps import Body, Plan, StepGraphs
from .strategy import M, StepContext

Phase = Literal["project", "picture", "finish", "update"]
PHASES: tuple[Phase, ...] = ("project", "picture", "finish", "update")


class Captured(Generic[M]):
    """What the graphs of one key share.

    Attributes:
        key: What the tensors' sizes depend on.
        layout: Of the step that was captured.
        buffers: What is exchanged.
        targets: Ground truth of own tasks. [rows, W, 3] uint8 each
        row: What this rank has counted, once `picture` has run. [L] float64
        made: Between `project` and `finish`, while these are captured.
        context: Between `finish` and `update`, while these are captured.
        counts: Steps of parameters that `update` takes.
    """

    def __init__(self, key: Hashable, layout: Layout, buffers: Buffers) -> None:
        self.key, self.layout, self.buffers = key, layout, buffers
        self.targets: list[Tensor] = []
        self.row = torch.empty(0)
        self.made: Projection | None = None
        self.context: StepContext[M] | None = None
        self.counts: list[Tensor] = []

    def let_targets_in(self, images: Sequence[Tensor]) -> None:
        """Queue the copy of a step's ground truth."""
        if not self.targets:
            self.targets = [torch.empty_like(image) for image in images]
        for target, image in zip(self.targets, images, strict=True):
            target.copy_(image)

    def count(self, n: int) -> None:
        """Tell the optimizer of steps that it took within a graph."""
        for count in self.counts:
            count += n


class PhaseGraphs(Generic[M]):
    """Graphs of one rank's steps.

    Args:
        graphs: Keeps those of all phases, each under its key and its name.
    """

    def __init__(self, graphs: StepGraphs) -> None:
        self.graphs = graphs
        self._captured: dict[Hashable, Captured[M]] = {}

    def plan(self, key: Hashable, layout: Hashable, model: Model) -> Plan:
        """What to do with a step; "run": without graphs.

        Args:
            key: Of what the step does.
            layout: What its tensors' sizes depend on.
            model: Whose rows must be those of the capture.
        """
        last = key, PHASES[-1]
        plan = self.graphs.plan(last, model)
        if plan == "warm up":  # which may be because all have been dropped
            kept = self._captured.items()
            self._captured = {k: x for k, x in kept if (k, PHASES[-1]) in self.graphs}
            self.graphs.warmed_up(last, 1, Counts(0, 0))
        if plan == "replay" and self._captured[key].key != layout:
            self.forget(key)
            plan = "capture"
        return plan

    def begin(self, key: Hashable, captured: Captured[M]) -> None:
        """The phases of `key` are captured next, one after the other."""
        self._captured[key] = captured

    def captured(self, key: Hashable) -> Captured[M]:
        return self._captured[key]

    def run(self, key: Hashable, phase: Phase, body: Body | None) -> None:
        """Replay a phase, which `body` is captured for first where there is one."""
        if body is not None:
            self.graphs.capture((key, phase), Capacity(0, 0), body)
        self.graphs.replay((key, phase))

    def forget(self, key: Hashable) -> None:
        """Drop the graphs of a key, and what they share."""
        self.graphs.forget((key, phase) for phase in PHASES)
        self._captured.pop(key, None)
