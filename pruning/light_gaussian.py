"""LightGaussian's pruning: by hits, opacity and volume.

Fan et al., "LightGaussian: Unbounded 3D Gaussian Compression with 15x Reduction and 200+ FPS"
(NeurIPS 2024, https://arxiv.org/abs/2311.17245). The global significance of a Gaussian is its
opacity, times the pixels that it reaches in all training views, times its volume (over that which
90 % of the Gaussians exceed) to the power v_pow. Pruning number k = 0, 1, ... removes the share
ratio * decay^k of the lowest.

What the published code counts, and this does too, is not what the paper says. A pixel counts in
full where the Gaussian is blended at all, its alpha 1/255 or more before the ray stops, and counts
the opacity, not alpha T: a Gaussian behind nearly opaque ones scores as much as one in front. The
volume is not clamped, and dividing it changes no ranking. Of equal scores the code removes all at
the cut; here exactly the share goes, the later rows first.

Only the pruning is here, not the distillation of SH bands nor the quantisation that follow it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from gs import NOT_NEGATIVE, PRUNED_SHARE, SHARE, Camera, Model

from .score_pruning import ScorePruningConfig
from .scores import accumulate_scores, n_kept, top_k


@dataclass(frozen=True)
class LightGaussianConfig(ScorePruningConfig):
    """Settings of LightGaussian's pruning; the defaults are those of its training script."""

    ratio: Annotated[float, PRUNED_SHARE] = 0.6
    """Share of the Gaussians that the first pruning removes."""
    decay: Annotated[float, SHARE] = 0.6
    """Factor on that share from one pruning to the next."""
    v_pow: Annotated[float, NOT_NEGATIVE] = 0.1
    """Exponent of the volume; 0 leaves it out."""

    NAME: ClassVar[str] = "light-gaussian"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "two-step": {"prune_iterations": (16_000, 24_000), "ratio": 0.5, "decay": 0.8},
        "finetune": {"ratio": 0.66, "decay": 1.0},  # as published for finished models
        "demo": {},
    }
    POST_PRESET: ClassVar[str | None] = "finetune"

    def score(self, gaussians: Model, cameras: Sequence[Camera]) -> Tensor:
        return accumulate_scores(gaussians, cameras, "light-gaussian", v_pow=self.v_pow)

    def keep(self, index: int, scores: Tensor, ids: Tensor, seed: int) -> Tensor:
        return top_k(scores, n_kept(len(scores), self.ratio * self.decay**index))
