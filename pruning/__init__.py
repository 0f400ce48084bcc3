"""Pruning methods by the name that `train.py --method` takes. Each is one file beside this one."""

from .light_gaussian import LightGaussianConfig
from .lp_3dgs import LP3DGS, LP3DGSConfig
from .mask_gaussian import MaskGaussian, MaskGaussianConfig
from .method import MethodConfig, NoPruning
from .mini_splatting import MiniSplattingConfig
from .radsplat import RadSplatConfig
from .score_pruning import OpacityConfig, ScorePruning, ScorePruningConfig, prune_once

METHODS: dict[str, type[MethodConfig]] = {
    "mask-gaussian": MaskGaussianConfig,
    "lp-3dgs": LP3DGSConfig,
    "3dgs": NoPruning,
    "radsplat": RadSplatConfig,
    "mini-splatting": MiniSplattingConfig,
    "light-gaussian": LightGaussianConfig,
    "opacity": OpacityConfig,
}

__all__ = [
    "LP3DGS",
    "METHODS",
    "LP3DGSConfig",
    "LightGaussianConfig",
    "MaskGaussian",
    "MaskGaussianConfig",
    "MethodConfig",
    "MiniSplattingConfig",
    "NoPruning",
    "OpacityConfig",
    "RadSplatConfig",
    "ScorePruning",
    "ScorePruningConfig",
    "prune_once",
]
