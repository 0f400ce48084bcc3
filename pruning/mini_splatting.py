"""Mini-Splatting's importance pruning: sample by importance, later cut what holds the last percent.

Fang and Wang, "Mini-Splatting: Representing Scenes with a Constrained Number of Gaussians" (ECCV
2024, https://arxiv.org/abs/2403.14166). At the first pruning (15000) half as many Gaussians
are drawn as have a score, without replacement and with probability proportional to it; at the
second (20000) those go that hold together 1 % of the sum of scores. With A the sum of weights in a
view, C the pixels reached and X those in which the Gaussian weighs most,

    indoor   S = sum_v A                    0 where it weighs most in no pixel of any view
    outdoor  S = sum_v [X_v > 0] A_v / C_v

Only the pruning is here. The published method also splits blurred Gaussians, places new ones by
depth, and gives the drawn ones fresh scales, rotations and opacities; here they keep theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from gs import AT_LEAST_ONE, PRUNED_SHARE, SOME_SHARE, Camera, Model

from .score_pruning import ScorePruningConfig
from .scores import ScoreKind, accumulate_scores, keep_by_cumulative, n_kept, sample_keep

SCORES: dict[str, ScoreKind] = {
    "indoor": "mini-splatting-indoor",
    "outdoor": "mini-splatting-outdoor",
    "sum": "mini-splatting",
}


@dataclass(frozen=True)
class MiniSplattingConfig(ScorePruningConfig):
    """Settings of Mini-Splatting's importance pruning; the defaults are the published ones."""

    prune_iterations: Annotated[tuple[int, ...], AT_LEAST_ONE] = (15_000, 20_000)
    """Iterations at which Gaussians are pruned, ascending: by sampling at the first, by cumulative
    importance at all others."""
    metric: Literal["outdoor", "indoor", "sum"] = "outdoor"
    """Importance for outdoor or indoor scenes, or the plain sum of weights that LP-3DGS takes."""
    sampling: Annotated[float, SOME_SHARE] = 0.5
    """Draw this share of those that have a score above 0."""
    ratio: Annotated[float | None, PRUNED_SHARE] = None
    """Draw so many that this share of all Gaussians goes instead."""
    cut: Annotated[float, SOME_SHARE] = 0.99
    """Of the sum of scores, what the cumulative cut leaves."""

    NAME: ClassVar[str] = "mini-splatting"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "outdoor": {},
        "indoor": {"metric": "indoor"},
        # LP-3DGS's baseline
        "fixed-ratio": {"prune_iterations": (20_000,), "metric": "sum", "ratio": 0.6},
        "demo": {},
    }

    def score(self, gaussians: Model, cameras: Sequence[Camera]) -> Tensor:
        return accumulate_scores(gaussians, cameras, SCORES[self.metric])

    def keep(self, index: int, scores: Tensor, ids: Tensor, seed: int) -> Tensor:
        if index > 0:
            return keep_by_cumulative(scores, self.cut)
        if self.ratio is not None:
            n = n_kept(len(scores), self.ratio)
        else:
            n = int(self.sampling * int((scores > 0).sum()))
        return sample_keep(scores, n, seed=seed, ids=ids)
