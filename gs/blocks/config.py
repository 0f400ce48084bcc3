"""Settings of a run in blocks, beside those of its partition."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from ..errors import SplatrimError
from ..ranges import COUNT
from .partition import PartitionConfig


@dataclass(frozen=True)
class BlocksConfig(PartitionConfig):
    """How blocks are trained."""

    block_interval: Annotated[int, COUNT] = 0
    """Iterations of a block, of as many cameras as blocks have on average, until the next one's
    turn; 0: few at first and more later, 500 at most, in 40 turns or more."""
    block_steps: Literal["share", "all"] = "share"
    """share: of --iterations a block takes the part that it has of the cameras, so that all are
    seen as often as in one piece. all: every block takes all, as is usually done."""
    surroundings: Literal["live", "none"] = "live"
    """live: a block trains among frozen copies of its neighbours' Gaussians, renewed for each turn.
    none: alone, as it is usually done; what lies outside its cell goes at the end."""
    block_init: Literal["points", "whole"] = "points"
    """points: a block begins at its own points. whole: at all points, with --surroundings none."""
    waves: Literal["coloured", "one"] = "coloured"
    """coloured: blocks that touch have their turns one after the other. one: all at once, for as
    many GPUs as there are blocks; at borders it overshoots."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_init == "whole" and self.surroundings == "live":
            raise SplatrimError("--block_init whole needs --surroundings none: own copies of all")

    def cut(self) -> PartitionConfig:
        """What the partition follows from."""
        names = [field.name for field in fields(PartitionConfig)]
        return PartitionConfig(**{name: getattr(self, name) for name in names})
