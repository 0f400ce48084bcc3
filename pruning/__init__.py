"""Pruning methods by the name that `train.py --method` takes. Each is one file beside this one."""

from .mask_gaussian import MaskGaussian, MaskGaussianConfig
from .method import MethodConfig, NoPruning

METHODS: dict[str, type[MethodConfig]] = {
    "mask-gaussian": MaskGaussianConfig,
    "3dgs": NoPruning,
}

__all__ = ["METHODS", "MaskGaussian", "MaskGaussianConfig", "MethodConfig", "NoPruning"]
