"""Gaussians as a .ply file in the layout of the original 3D Gaussian Splatting.

Binary little-endian float32, one vertex per Gaussian:

    x y z  nx ny nz  f_dc_0..2  f_rest_0..(3(K-1)-1)  opacity  scale_0..2  rot_0..3

Normals are zero; f_rest is channel-major (all red coefficients, then green, then blue); opacity is
a logit, scales are logarithms, rot is an unnormalised quaternion (w, x, y, z).

`comment SplatRenderMode: mip` says that opacities are for a rasterizer that lowers them where it
widens Gaussians (the name is Brush's; `comment antialiased 1` of Postshot is read too).

A model whose scene was shifted while loading (gs.data.geo) says by how much in a comment,
`comment world_offset X Y Z`: add it to x, y, z for coordinates of the world.
"""

import logging
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.foreign import recognise, recognise_ply
from ..data.ply_table import read_header, read_table
from ..errors import SplatrimError
from ..files import atomic_write

# coefficients of degrees 1 to d and all three channels, by number of f_rest properties
_SH_DEGREES = {0: 0, 9: 1, 24: 2, 45: 3}
_OFFSET = "world_offset"
MIP = "SplatRenderMode: mip"
MAX_LOG_SCALE = 80.0  # e^89 is infinite in float32
MIN_QUATERNION = 1e-12  # norm below which a rotation cannot be told

logger = logging.getLogger("splatrim")


def property_names(n_rest: int) -> list[str]:
    """Properties of a vertex in file order, for `n_rest` f_rest values (45 for SH degree 3)."""
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(n_rest)),
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]


def save_ply(
    path: str | Path,
    tensors: dict[str, Tensor],
    *,
    world_offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    antialiased: bool = False,
) -> None:
    """Write Gaussians to `path`, atomically.

    Args:
        path: The file; missing folders are made.
        tensors: means [N,3], quats [N,4] (w,x,y,z), scales [N,3] (log), opacities [N] (logit),
            sh0 [N,1,3], shN [N,K-1,3]; other names have no place in the format.
        world_offset: What was subtracted from the world's coordinates; a comment where not zero.
        antialiased: Whether they are to be drawn so; a comment.

    Raises:
        ValueError: a tensor is missing or has another shape.
        SplatrimError: the file cannot be written.
    """
    missing = [
        name for name in ("means", "quats", "scales", "opacities", "sh0") if name not in tensors
    ]
    if missing:
        raise ValueError(f"save_ply: {', '.join(missing)} missing")
    means = tensors["means"]
    n = means.shape[0]
    shN = tensors.get("shN", means.new_zeros(n, 0, 3))
    k = shN.shape[1]
    expected = {
        "means": (n, 3),
        "quats": (n, 4),
        "scales": (n, 3),
        "opacities": (n,),
        "sh0": (n, 1, 3),
        "shN": (n, k, 3),
    }
    for name, shape in expected.items():
        got = tuple(tensors.get(name, shN).shape)
        if got != shape:
            raise ValueError(f"{name}: expected {list(shape)}, got {list(got)}")
    if 3 * k not in _SH_DEGREES:
        raise ValueError(f"shN: {k} coefficients are not those of an SH degree from 0 to 3")
    columns = [
        means,
        torch.zeros_like(means),
        tensors["sh0"].reshape(n, 3),
        shN.transpose(1, 2).reshape(n, 3 * k),
        tensors["opacities"].reshape(n, 1),
        tensors["scales"],
        tensors["quats"],
    ]
    # joined where they are: on a GPU in no time, and copied to the host once
    joined = torch.cat([c.detach().float() for c in columns], dim=1)
    table = np.ascontiguousarray(joined.cpu().numpy(), "<f4")
    lines = ["ply", "format binary_little_endian 1.0", *offset_comments(world_offset)]
    lines += [f"comment {MIP}"] if antialiased else []
    lines += [f"element vertex {n}"]
    lines += [f"property float {name}" for name in property_names(3 * k)]
    with atomic_write(path) as file:
        file.write("\n".join([*lines, "end_header", ""]).encode("ascii"))
        file.write(table.data)


def load_ply(path: str | Path, *, others: Iterable[str] = ()) -> dict[str, Tensor]:
    """Read Gaussians of any SH degree from 0 to 3, in the parameters' names and float32.

    Properties may come in any order; unknown ones are ignored. Rows with values that are not finite
    are left out and quaternions of zero become (1, 0, 0, 0), both with a warning that counts them.

    Args:
        path: The file.
        others: Further names x to look for: properties x_0, x_1, ... become x [N, M].

    Returns:
        means [N,3], quats [N,4] (w,x,y,z), scales [N,3] (log), opacities [N] (logit), sh0 [N,1,3],
        shN [N,K-1,3], and which of the others there are, on the CPU.

    Raises:
        SplatrimError: not a readable .ply, another format (named where it is known), a property is
            missing, or no row is finite.
    """
    path = Path(path)
    vertices = _read_vertices(path)
    names: tuple[str, ...] = vertices.dtype.names or ()
    n_rest = sum(name.startswith("f_rest_") for name in names)
    wanted = [name for name in property_names(n_rest) if name not in ("nx", "ny", "nz")]
    missing = [name for name in wanted if name not in names]
    if missing:
        what = recognise_ply(read_header(path))
        reason = f"property {missing[0]} is missing"
        reason += f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise SplatrimError(
            f"{path} is not a file of Gaussians: {reason}" + (f"; it is {what}" if what else "")
        )
    if n_rest not in _SH_DEGREES:
        raise SplatrimError(
            f"{path} has {n_rest} f_rest properties; 0, 9, 24 or 45 make an SH degree from 0 to 3"
        )
    widths = {other: sum(f"{other}_{i}" in names for i in range(len(names))) for other in others}
    widths = {other: width for other, width in widths.items() if width}
    wanted += [f"{other}_{i}" for other, width in widths.items() for i in range(width)]
    table = np.empty((len(vertices), len(wanted)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, name in enumerate(wanted):
            table[:, i] = vertices[name]
    table = sound_rows(path, table, wanted)

    n = len(table)
    values = torch.from_numpy(table)
    sizes = {"means": 3, "sh0": 3, "shN": n_rest, "opacities": 1, "scales": 3, "quats": 4}
    sizes |= widths
    tensors = dict(zip(sizes, values.split(list(sizes.values()), dim=1), strict=True))
    tensors["opacities"] = tensors["opacities"].reshape(n)
    tensors["sh0"] = tensors["sh0"].reshape(n, 1, 3)
    tensors["shN"] = tensors["shN"].reshape(n, 3, n_rest // 3).transpose(1, 2)
    return {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def load_opacities(path: str | Path) -> Tensor:  # [N] in 0..1
    """Read only the opacities of a .ply of Gaussians, activated, on the CPU.

    Raises:
        SplatrimError: not a readable .ply, or it has no opacities.
    """
    path = Path(path)
    vertices = _read_vertices(path)
    if "opacity" not in (vertices.dtype.names or ()):
        raise SplatrimError(f"{path} is not a file of Gaussians: property opacity is missing")
    return torch.from_numpy(vertices["opacity"].astype(np.float32)).sigmoid()


def offset_comments(world_offset: tuple[float, float, float]) -> list[str]:
    """The header lines that tell an offset; none for zero."""
    return [f"comment {_OFFSET} {' '.join(map(repr, world_offset))}"] if any(world_offset) else []


def read_offset(path: str | Path) -> tuple[float, float, float]:
    """What was subtracted from the world's coordinates, by a .ply's comment; zero without one.

    Raises:
        SplatrimError: not a readable .ply, or the comment is damaged.
    """
    path = Path(path)
    for comment in read_header(path).comments:
        word, *numbers = comment.split()[:4] or [""]
        if word == _OFFSET:
            try:
                x, y, z = map(float, numbers)
            except ValueError:
                x = y = z = math.nan
            if not math.isfinite(x + y + z):
                raise SplatrimError(f"{path} has a damaged comment: {comment[:80]}")
            return x, y, z
    return 0.0, 0.0, 0.0


def read_antialiased(path: str | Path) -> bool:
    """Whether a .ply's comments say that it is to be drawn antialiased.

    Raises:
        SplatrimError: not a readable .ply.
    """
    comments = [" ".join(comment.split()).lower() for comment in read_header(Path(path)).comments]
    return MIP.lower() in comments or "antialiased 1" in comments


def _read_vertices(path: Path) -> NDArray[np.void]:
    try:
        header = read_header(path)
    except SplatrimError as error:
        what = recognise(path)
        raise SplatrimError(f"{error}; it is {what}") if what else error from None
    if header.element("vertex") is None:
        raise SplatrimError(f"{path} is not a file of Gaussians: it has no vertices")
    return read_table(path)


def sound_rows(path: Path, table: NDArray[np.float32], names: list[str]) -> NDArray[np.float32]:
    """The rows that are finite, activated too; each with a rotation. What is mended is told.

    Args:
        path: Where they are from, for messages.
        table: Values of Gaussians. [N, M]
        names: Of the columns; a .ply's for scales and rotations.

    Raises:
        SplatrimError: no row is finite.
    """
    finite = np.isfinite(table)
    scales = slice(names.index("scale_0"), names.index("scale_0") + 3)
    finite[:, scales] &= table[:, scales] <= MAX_LOG_SCALE
    sound = finite.all(axis=1)
    if not sound.all():
        bad = (~finite).sum(axis=0)
        worst = int(bad.argmax())
        counts = (
            f"{int((~sound).sum())} of {len(table)} Gaussians have NaN or infinite values "
            f"(property {names[worst]}: {int(bad[worst])})"
        )
        if not sound.any():
            raise SplatrimError(f"{path}: {counts}, and none is left")
        logger.warning(f"{path}: {counts} and are left out")
        table = table[sound]
    rotation = slice(names.index("rot_0"), names.index("rot_0") + 4)
    zero = np.linalg.norm(table[:, rotation].astype(np.float64), axis=1) < MIN_QUATERNION
    if zero.any():
        logger.warning(
            f"{path}: {int(zero.sum())} of {len(table)} Gaussians have a quaternion of zero, "
            "and get no rotation"
        )
        table[zero, rotation] = (1, 0, 0, 0)
    return table
