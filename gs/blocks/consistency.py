"""The term of a block's loss that keeps its Gaussians near those of the decoder's teacher."""

from __future__ import annotations

from torch import Tensor

from ..model.renderer import RenderOutput
from ..neural.anchors import Anchors
from ..neural.momentum import Teacher, consistency
from ..training.strategy import Strategy


class Consistency(Strategy[Anchors]):
    """Adds `weight` times the consistency loss (gs.neural.momentum).

    Args:
        teacher: Of the decoder of all blocks, whoever updates it.
        weight: lambda_c; 0 for nothing.
    """

    name = "consistency"

    def __init__(self, teacher: Teacher, weight: float) -> None:
        self.teacher, self.weight = teacher, weight

    def loss(self, step: int, gaussians: Anchors, out: RenderOutput) -> Tensor | None:
        if self.weight == 0:
            return None
        assert out.splats is not None and out.view is not None
        return self.weight * consistency(gaussians, out.splats, out.view, self.teacher)

    def phase(self, step: int) -> str:
        return "consistent" if self.weight else "nothing"
