"""The state of a run between two iterations: what a checkpoint holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Part = dict[str, Any]
"""State of one part of a run: plain values, tensors, and containers of those."""


@dataclass
class RunState:
    """All that going on after iteration `step` needs, as gs.training.checkpoint writes it."""

    method: str
    """The pruning method; 3dgs without."""
    step: int
    """Iterations that have been taken."""
    params: dict[str, Tensor]
    """Raw parameters of the model, by name. [N, ...]"""
    rows: dict[str, Tensor]
    """Its row buffers. [N, ...]"""
    shared: dict[str, Tensor] = field(default_factory=dict)
    """Its parameters without rows."""
    next_id: int = 0
    """Ids from here on are free; 0: from the number of rows on."""
    active_sh_degree: int = 0
    sh_degree: int = 0
    optimizer: Part = field(default_factory=dict)
    """gs.training.optimizer.optimizer_state."""
    strategies: dict[str, Part] = field(default_factory=dict)
    """By name; what is not there starts afresh."""
    sampler: Part = field(default_factory=dict)
    rng: Part = field(default_factory=dict)
    """The run's seed."""
    extent: float = 0.0
    """Radius of the scene; 0 where it is not known."""
    config: Part = field(default_factory=dict)
    """Settings of the run, as config.json has them."""
    world_offset: Sequence[float] | None = None
    """What was subtracted from the world's coordinates; None where the settings say it."""
    tracker: Part | None = None
    scene: Part | None = None
    """What identifies the scene (gs.training.same_run)."""
    run: str | None = None
    """Name of the run (gs.training.run_folder)."""

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> RunState:
        """What a file holds; entries that it lacks, or has as None, are those of a new run."""
        names = {entry.name for entry in dataclasses.fields(cls)}
        return cls(**{k: x for k, x in state.items() if k in names and x is not None})

    def to_dict(self) -> dict[str, Any]:
        """What a file holds. Tensors share memory with the state."""
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
