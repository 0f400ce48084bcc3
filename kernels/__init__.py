"""Rasterization of 3D Gaussians with masks, and its loss, in Triton and in plain PyTorch."""

import importlib
from typing import TYPE_CHECKING

from . import exchange, lenses
from .arguments import Capacity, Counts, RasterInputs, RenderSettings
from .backend import uses_triton
from .decoder import Decoded, ViewInput, decode, n_weights, seen_anchors
from .depth import SparseDepths, depth_loss
from .lenses import Distortion, Lenses, LensKind, lenses_of
from .light import LENS_NUMBERS, corrected, neutral_rows
from .photometric import (
    photometric_gradient,
    photometric_loss,
    photometric_rows,
    photometric_values,
    structural_similarity,
)
from .rasterization import rasterization
from .reference.langevin import normals
from .reference.masks import logistic_noise, philox, sample_masks, uniform
from .reference.spherical_harmonics import sh_basis
from .rehearsal import Launch, Rehearsal, Target, rehearsing
from .runtime.cache import caches
from .runtime.foreseen import Foreseen, foresee
from .surrounded import rasterization_among
from .update import (
    add_gradient_norms,
    add_langevin_noise,
    add_losses,
    add_regularizer_gradients,
    count_row_steps,
    count_views,
    report_step,
    sampled_in_any,
    step_poses,
)

if TYPE_CHECKING:
    from .binning import TileLists, bin_tiles
    from .binning.sorting import sizes_by_way
    from .blending import blend
    from .device.masks import split_seed
    from .projection import project
    from .projection.records import Records
    from .runtime.launch import warm_up
    from .runtime.variants import Compiled, compile_variants
    from .update.adam import FusedAdam

_NEED_TRITON = {
    "Compiled": ".runtime.variants",
    "FusedAdam": ".update.adam",
    "Records": ".projection.records",
    "TileLists": ".binning",
    "bin_tiles": ".binning",
    "blend": ".blending",
    "compile_variants": ".runtime.variants",
    "project": ".projection",
    "sizes_by_way": ".binning.sorting",
    "split_seed": ".device.masks",
    "warm_up": ".runtime.launch",
}

__all__ = [
    "Capacity",
    "Compiled",
    "Counts",
    "Decoded",
    "Distortion",
    "Foreseen",
    "FusedAdam",
    "LENS_NUMBERS",
    "Launch",
    "LensKind",
    "Lenses",
    "RasterInputs",
    "Records",
    "Rehearsal",
    "RenderSettings",
    "SparseDepths",
    "Target",
    "TileLists",
    "ViewInput",
    "add_gradient_norms",
    "add_langevin_noise",
    "add_losses",
    "add_regularizer_gradients",
    "bin_tiles",
    "blend",
    "caches",
    "compile_variants",
    "corrected",
    "count_row_steps",
    "count_views",
    "decode",
    "depth_loss",
    "exchange",
    "foresee",
    "lenses",
    "lenses_of",
    "logistic_noise",
    "n_weights",
    "neutral_rows",
    "normals",
    "philox",
    "photometric_gradient",
    "photometric_loss",
    "photometric_rows",
    "photometric_values",
    "project",
    "rasterization",
    "rasterization_among",
    "rehearsing",
    "report_step",
    "sample_masks",
    "sampled_in_any",
    "seen_anchors",
    "sh_basis",
    "sizes_by_way",
    "split_seed",
    "step_poses",
    "structural_similarity",
    "uniform",
    "uses_triton",
    "warm_up",
]


def __getattr__(name: str) -> object:
    """What needs Triton is imported only when asked for."""
    if name in _NEED_TRITON:
        value = getattr(importlib.import_module(_NEED_TRITON[name], __name__), name)
        globals()[name] = value  # the next time it is found without a call
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
