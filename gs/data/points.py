"""Point clouds that a scene starts from, read from .ply files of any writer."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SplatrimError
from .ply_table import read_table

GREY = 0.5  # of points without a colour
SH_C0 = 0.28209479177387814
_COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), tuple("rgb"))
_HARMONICS = ("f_dc_0", "f_dc_1", "f_dc_2")


def read_point_cloud(
    path: Path,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:  # [M, 3], [M, 3] in 0..1
    """Read positions and colours; integer colours are parts of their type's largest number.

    Raises:
        SplatrimError: not a readable .ply, or it has no positions.
    """
    table = read_table(path)
    names = set(table.dtype.names or ())
    if not {"x", "y", "z"} <= names:
        raise SplatrimError(f"{path} is not a point cloud: it has no x, y and z")
    with np.errstate(invalid="ignore", over="ignore"):
        xyz = np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=1)
        return xyz, _colors(table, names)


def _colors(table: NDArray[np.void], names: set[str]) -> NDArray[np.float32]:
    found = next((triple for triple in _COLORS if names >= set(triple)), None)
    if found is not None:
        columns = [table[name] for name in found]
        kind = columns[0].dtype
        unit = float(np.iinfo(kind).max) if kind.kind in "iu" else 1.0
        rgb = np.stack([column.astype(np.float64) / unit for column in columns], axis=1)
    elif names >= set(_HARMONICS):
        rgb = np.stack([table[name] * SH_C0 + 0.5 for name in _HARMONICS], axis=1)
    else:
        rgb = np.full((len(table), 3), GREY)
    return np.nan_to_num(rgb, nan=GREY).clip(0, 1).astype(np.float32)
