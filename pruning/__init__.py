"""Pruning methods by the name that `train.py --method` takes. Each is one file beside this one."""

import pkgutil
from importlib import import_module

from .light_gaussian import LightGaussianConfig
from .lp_3dgs import LP3DGS, LP3DGSConfig
from .mask_gaussian import MaskGaussian, MaskGaussianConfig
from .method import MethodConfig, NoPruning
from .mini_splatting import MiniSplattingConfig
from .radsplat import RadSplatConfig
from .score_pruning import OpacityConfig, ScorePruning, ScorePruningConfig, prune_once

DEFAULT = "mask-gaussian"


def _find_methods() -> dict[str, type[MethodConfig]]:
    """The settings with a NAME in any file beside this one, the default first."""
    found: dict[str, type[MethodConfig]] = {}
    for file in pkgutil.iter_modules(__path__):
        for x in vars(import_module(f".{file.name}", __name__)).values():
            if isinstance(x, type) and issubclass(x, MethodConfig) and vars(x).get("NAME"):
                found[x.NAME] = x
    return {DEFAULT: found.pop(DEFAULT), **found}


METHODS: dict[str, type[MethodConfig]] = _find_methods()

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
