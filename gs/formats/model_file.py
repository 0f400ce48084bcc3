"""Reading and writing a model in any format: `load_model` goes by what is in a file, not its name.

    format          writes  reads  size        SH     what is lost
    ply             yes     yes    1           0-3    nothing
    spz             yes     yes    0.15        0-3    8 bits a number
    compressed.ply  yes     yes    0.25        0-3    8 to 11 bits a number
    sog             yes     yes    0.17        0-3    8 to 16 bits, SH shared in a palette
    splat           yes     yes    0.13        0      8 bits, view-dependent colour
    glb             yes     yes    1           0-3    nothing (KHR_gaussian_splatting)
    ksplat                  yes

SOG, .ksplat and SPZ version 4 need gaussforge (extra `export`).
"""

import zipfile
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data.ply_table import read_header
from ..errors import SplatrimError
from ..files import atomic_write
from ..model import ply
from . import compressed_ply, glb, sog, splat, spz
from .arrays import Arrays, from_tensors, to_tensors

FORMATS = ("ply", "spz", "sog", "compressed.ply", "splat", "glb")
"""What a model can be written as."""

Offset = tuple[float, float, float]


def format_of(path: str | Path) -> str:
    """The format of a file, as in FORMATS, or ksplat; "ply" where it is none that is known.

    Raises:
        SplatrimError: no such file, or it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise SplatrimError(f"no such file: {path}")
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise SplatrimError(f"cannot read {path}: {error.strerror or error}") from error
    if head.startswith(b"ply"):
        return "compressed.ply" if compressed_ply.is_compressed(read_header(path)) else "ply"
    if head.startswith(glb.MAGIC):
        return "glb"
    if head.startswith(spz.MAGIC) or _starts_inside(head) == spz.MAGIC:
        return "spz"
    if head.startswith(b"PK\x03\x04"):
        return "sog" if _is_sog(path) else "ply"
    # these have no mark of their own
    suffix = path.suffix.lower().removeprefix(".")
    return suffix if suffix in ("splat", "ksplat") else "ply"


def load_model(path: str | Path, *, others: Iterable[str] = ()) -> dict[str, Tensor]:
    """Read Gaussians from a file of any format that is known, by its content.

    Rows with values that are not finite are left out with a warning, as `load_ply` does.

    Args:
        path: The file.
        others: Further names to look for, in a .ply; see `load_ply`.

    Returns:
        means [N,3], quats [N,4] (w,x,y,z), scales [N,3] (log), opacities [N] (logit), sh0 [N,1,3],
        shN [N,K-1,3], float32 on the CPU.

    Raises:
        SplatrimError: no such file, broken, of no known format, or a package is missing for it.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == "ply":
        return ply.load_ply(path, others=others)
    if kind == "compressed.ply":
        return _sound(path, compressed_ply.decode(path))
    data = _bytes(path)
    try:
        if kind == "glb":
            arrays = glb.decode(data)
        elif kind == "splat":
            arrays = splat.decode(data)
        elif kind == "spz" and not data.startswith(spz.MAGIC):
            arrays = spz.decode(data)
        else:
            arrays = sog.decode(data, kind)
            if kind == "spz":
                arrays = spz.turned(arrays)
    except ValueError as error:
        raise SplatrimError(f"{path} {error}") from error
    return _sound(path, arrays)


def load_offset(path: str | Path) -> Offset:
    """What was subtracted from the world's coordinates, by a .ply or a .glb; zero elsewhere.

    Raises:
        SplatrimError: not a readable file, or what it says of it is damaged.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == "ply":
        return ply.read_offset(path)
    if kind != "glb":
        return 0.0, 0.0, 0.0
    try:
        return glb.read_offset(_bytes(path))
    except ValueError as error:
        raise SplatrimError(f"{path} {error}") from error


def is_antialiased(path: str | Path) -> bool:
    """Whether a model is to be drawn antialiased, by a .ply or a .spz; False elsewhere.

    Raises:
        SplatrimError: not a readable file.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == "ply":
        return ply.read_antialiased(path)
    return kind == "spz" and spz.is_antialiased(_bytes(path))


def save_model(
    path: str | Path,
    tensors: dict[str, Tensor],
    kind: str,
    *,
    sh_degree: int | None = None,
    world_offset: Offset = (0.0, 0.0, 0.0),
    antialiased: bool = False,
) -> int:
    """Write a model, atomically.

    Args:
        path: The file; missing folders are made.
        tensors: As `load_model` gives them.
        kind: One of FORMATS.
        sh_degree: Highest SH degree to keep; None keeps all.
        world_offset: What was subtracted from the world's coordinates. Only .ply and .glb say it.
        antialiased: Whether it is to be drawn so. Only .ply and .spz say it.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: a tensor is missing or has another shape, or the kind is unknown.
        SplatrimError: a package is missing, or the file cannot be written.
    """
    if kind not in FORMATS:
        raise ValueError(f"kind: expected one of {', '.join(FORMATS)}, got {kind}")
    path, arrays = Path(path), from_tensors(tensors, sh_degree)
    if kind == "ply":
        kept = {"shN": tensors["shN"][:, : arrays.shN.shape[1]]}
        ply.save_ply(path, tensors | kept, world_offset=world_offset, antialiased=antialiased)
        return path.stat().st_size
    if kind == "glb":
        data = glb.encode(arrays, world_offset)
    else:
        encoders = {
            "spz": partial(spz.encode, antialiased=antialiased),
            "sog": sog.encode,
            "compressed.ply": compressed_ply.encode,
            "splat": splat.encode,
        }
        data = encoders[kind](arrays)
    with atomic_write(path) as file:
        file.write(data)
    return len(data)


def _sound(path: Path, arrays: Arrays) -> dict[str, Tensor]:
    """The rows that are finite; what is left out is told in the words of a .ply's properties."""
    n = len(arrays.means)
    columns = [arrays.means, arrays.sh0, arrays.opacities[:, None], arrays.scales, arrays.quats]
    widths = [column.shape[1] for column in columns]
    names = [name for name in ply.property_names(0) if name not in ("nx", "ny", "nz")]
    rest = arrays.shN.reshape(n, 3 * arrays.shN.shape[1])
    names += [f"shN_{i}" for i in range(rest.shape[1])]
    table = ply.sound_rows(path, np.concatenate([*columns, rest], axis=1), names)
    means, sh0, opacities, scales, quats, rest = np.split(table, np.cumsum(widths), axis=1)
    shN = rest.reshape(len(table), arrays.shN.shape[1], 3)
    return to_tensors(Arrays(means, quats, scales, opacities[:, 0], sh0, shN))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SplatrimError(f"cannot read {path}: {error.strerror or error}") from error


def _starts_inside(head: bytes) -> bytes:
    """The first four bytes under gzip; none where it is not gzip."""
    if not head.startswith(b"\x1f\x8b"):
        return b""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 4)
    except zlib.error:
        return b""


def _is_sog(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "meta.json" in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
