"""Gaussians as a .ply file in the layout of the original 3D Gaussian Splatting.

Binary little-endian float32, one vertex per Gaussian:

    x y z  nx ny nz  f_dc_0..2  f_rest_0..(3(K-1)-1)  opacity  scale_0..2  rot_0..3

Normals are zero; f_rest is channel-major (all red coefficients, then green, then blue); opacity is
a logit, scales are logarithms, rot is an unnormalised quaternion (w, x, y, z).
"""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement, PlyParseError
from torch import Tensor

from ..errors import SplatrimError
from ..files import atomic_write

# coefficients of degrees 1 to d and all three channels, by number of f_rest properties
_SH_DEGREES = {0: 0, 9: 1, 24: 2, 45: 3}


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


def save_ply(path: str | Path, tensors: dict[str, Tensor]) -> None:
    """Write Gaussians to `path`, atomically.

    Args:
        path: The file; missing folders are made.
        tensors: means [N,3], quats [N,4] (w,x,y,z), scales [N,3] (log), opacities [N] (logit),
            sh0 [N,1,3], shN [N,K-1,3]; other names have no place in the format.

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
    dtype = np.dtype([(name, "<f4") for name in property_names(3 * k)])
    vertices = table.view(dtype).reshape(n)
    header = PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").header
    with atomic_write(path) as file:
        file.write(header.encode("ascii") + b"\n")
        file.write(table.data)


def load_ply(path: str | Path, *, others: Iterable[str] = ()) -> dict[str, Tensor]:
    """Read Gaussians of any SH degree from 0 to 3, in the parameters' names and float32.

    Properties may come in any order; unknown ones are ignored.

    Args:
        path: The file.
        others: Further names x to look for: properties x_0, x_1, ... become x [N, M].

    Returns:
        means [N,3], quats [N,4] (w,x,y,z), scales [N,3] (log), opacities [N] (logit), sh0 [N,1,3],
        shN [N,K-1,3], and which of the others there are, on the CPU.

    Raises:
        SplatrimError: not a readable .ply, a property is missing, or a value is not finite.
    """
    path = Path(path)
    vertices = _read_vertices(path)
    names: tuple[str, ...] = vertices.dtype.names or ()
    n_rest = sum(name.startswith("f_rest_") for name in names)
    wanted = [name for name in property_names(n_rest) if name not in ("nx", "ny", "nz")]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise SplatrimError(
            f"{path} is not a file of Gaussians: property {missing[0]} is missing"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
        )
    if n_rest not in _SH_DEGREES:
        raise SplatrimError(
            f"{path} has {n_rest} f_rest properties; 0, 9, 24 or 45 make an SH degree from 0 to 3"
        )
    widths = {other: sum(f"{other}_{i}" in names for i in range(len(names))) for other in others}
    widths = {other: width for other, width in widths.items() if width}
    wanted += [f"{other}_{i}" for other, width in widths.items() for i in range(width)]
    n = len(vertices)
    table = np.empty((n, len(wanted)), np.float32)
    for i, name in enumerate(wanted):
        try:
            table[:, i] = vertices[name]
        except (TypeError, ValueError) as error:
            raise SplatrimError(f"{path}: property {name} is not a number") from error
    _refuse_non_finite(path, table, wanted)

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


def _read_vertices(path: Path) -> NDArray[np.void]:
    if not path.is_file():
        raise SplatrimError(f"no such file: {path}")
    try:
        # plyfile is fast with a memory map alone (0.9 s instead of 22 for 400,000 Gaussians), and
        # what another process cuts short while it is mapped would crash this one: map a copy
        with open(path, "rb") as file, tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy, 1 << 24)
            copy.seek(0)
            return np.array(PlyData.read(copy)["vertex"].data)
    except OSError as error:
        raise SplatrimError(f"cannot read {path}: {error.strerror or error}") from error
    except KeyError as error:
        raise SplatrimError(f"{path} is not a file of Gaussians: it has no vertices") from error
    except (PlyParseError, ValueError, MemoryError, OverflowError) as error:
        raise SplatrimError(f"{path} is not a complete .ply file: {error}") from error


def _refuse_non_finite(path: Path, table: NDArray[np.float32], names: list[str]) -> None:
    finite = np.isfinite(table)
    if finite.all():
        return
    bad = (~finite).sum(axis=0)
    worst = int(bad.argmax())
    rows = int((~finite).any(axis=1).sum())
    raise SplatrimError(
        f"{path}: {rows} of {len(table)} Gaussians have NaN or infinite values "
        f"(property {names[worst]}: {int(bad[worst])})"
    )
