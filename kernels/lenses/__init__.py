"""Lenses: their kinds and coefficients, from directions to pixels and back, where they are valid.

Plain PyTorch, on the host and in float64 where lenses are described; `project_points` is also the
reference of the device functions in projection/cameras/.
"""

from .kinds import FAMILIES, LENS_WORDS, PINHOLE, Distortion, LensKind, kind_of
from .mapping import angles_beyond, depths_of, project_points, unproject
from .packing import Lenses, lenses_from, lenses_of, monotone_radius, pack_lens

__all__ = [
    "FAMILIES",
    "LENS_WORDS",
    "PINHOLE",
    "Distortion",
    "LensKind",
    "Lenses",
    "angles_beyond",
    "depths_of",
    "kind_of",
    "lenses_from",
    "lenses_of",
    "monotone_radius",
    "pack_lens",
    "project_points",
    "unproject",
]
