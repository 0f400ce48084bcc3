"""RadSplat's pruning: Gaussians go that weigh next to nothing in every pixel of every view.

Niemeyer et al., "RadSplat: Radiance Field-Informed Gaussian Splatting for Robust Real-Time
Rendering with 900+ FPS" (3DV 2025, https://arxiv.org/abs/2403.13806). The score of a Gaussian is
the largest alpha T that it has in any pixel of any training view; below the threshold it goes, at
16000 and again at 24000 of 30000 iterations. The published method also starts from a radiance
field, which is no part of this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from gs import AT_LEAST_ONE, PRUNED_SHARE, Camera, Model, Range

from .score_pruning import ScorePruningConfig
from .scores import accumulate_scores, keep_by_threshold, n_kept, top_k


@dataclass(frozen=True)
class RadSplatConfig(ScorePruningConfig):
    """Settings of RadSplat's pruning; the defaults are the published ones."""

    prune_iterations: Annotated[tuple[int, ...], AT_LEAST_ONE] = (16_000, 24_000)
    """Iterations at which Gaussians are pruned, ascending."""
    threshold: Annotated[float, Range(0, 0.99)] = 0.01
    """Gaussians that score less are pruned."""
    ratio: Annotated[float | None, PRUNED_SHARE] = None
    """Prune this share of the lowest scores instead, each time."""

    NAME: ClassVar[str] = "radsplat"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "light": {"threshold": 0.25},
        "zip-nerf": {"threshold": 0.005},  # as published for the Zip-NeRF scenes
        "zip-nerf-light": {"threshold": 0.03},
        "fixed-ratio": {"prune_iterations": (20_000,), "ratio": 0.6},  # LP-3DGS's baseline
        "demo": {},
    }

    def score(self, gaussians: Model, cameras: Sequence[Camera]) -> Tensor:
        return accumulate_scores(gaussians, cameras, "radsplat")

    def keep(self, index: int, scores: Tensor, ids: Tensor, seed: int) -> Tensor:
        if self.ratio is not None:
            return top_k(scores, n_kept(len(scores), self.ratio))
        return keep_by_threshold(scores, self.threshold)
