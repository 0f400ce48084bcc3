"""What gaussforge reads and writes for us: SOG, and the reading of .ksplat and of SPZ version 4.

SOG (PlayCanvas) lays the columns out as WebP images and shares SH coefficients in a palette, found
by k-means: the smallest format at its quality, and the slowest to write (about a millisecond a
Gaussian). gaussforge is one wheel without dependencies, in the extra `export`.
"""

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..data.ply_table import read_table
from ..errors import SplatrimError
from .arrays import Arrays, Floats, logit, unit

# In a process of its own: a damaged file may end it, and it prints.
_CONVERT = """
import sys
from gaussforge import GaussForge

answer = GaussForge().convert(sys.stdin.buffer.read(), sys.argv[1], "ply")
if "error" in answer:
    sys.exit(answer["error"])
with open(sys.argv[2], "wb") as file:
    file.write(answer["data"])
"""
EXTRA = '`pip install "splatrim[export]"` brings it'


def encode(model: Arrays) -> bytes:
    """The SOG file of a model.

    Raises:
        SplatrimError: gaussforge is missing.
        ValueError: it refuses the model; the end of a sentence.
    """
    if not len(model.means):
        raise ValueError("cannot hold a model without Gaussians")
    columns = {
        "positions": model.means,
        "rotations": model.quats,
        "scales": model.scales,
        "alphas": model.opacities,
        "colors": model.sh0,
        "sh": model.shN,
    }
    content: dict[str, Any] = {
        name: np.ascontiguousarray(column, "<f4").tobytes() for name, column in columns.items()
    }
    content["numPoints"] = len(model.means)
    content["meta"] = {"shDegree": model.degree, "sourceFormat": "ply"}
    content["extras"] = {}
    answer = _gaussforge("SOG").write(content, "sog")
    if "error" in answer:
        raise ValueError(f"is not accepted by gaussforge: {str(answer['error'])[:200]}")
    return answer["data"]


def decode(data: bytes, kind: str) -> Arrays:
    """The model in a file of `kind`: sog, ksplat or spz.

    Raises:
        SplatrimError: gaussforge is missing.
        ValueError: it cannot read the file; the end of a sentence.
    """
    _gaussforge(kind.upper())
    with tempfile.TemporaryDirectory(prefix="splatrim.") as folder:
        path = Path(folder) / "model.ply"
        command = [sys.executable, "-c", _CONVERT, kind, str(path)]
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        if done.returncode or not path.is_file():
            reason = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it crashed"]
            raise ValueError(f"cannot be read by gaussforge: {reason[-1][:200]}")
        table = read_table(path)
    n_rest = sum(name.startswith("f_rest_") for name in table.dtype.names or ())
    if n_rest not in (0, 9, 24, 45):
        raise ValueError(f"has {n_rest} SH numbers a Gaussian")

    def columns(*names: str) -> Floats:
        flat = [table[name] for name in names]
        return np.stack(flat, axis=1) if flat else np.zeros((len(table), 0), np.float32)

    rest = columns(*(f"f_rest_{i}" for i in range(n_rest)))
    return Arrays(
        columns("x", "y", "z"),
        unit(columns("rot_0", "rot_1", "rot_2", "rot_3")),
        columns("scale_0", "scale_1", "scale_2"),
        # an alpha of 0 or 1 comes as an infinite logit
        table["opacity"].clip(logit(np.zeros(1))[0], logit(np.ones(1))[0]),
        columns("f_dc_0", "f_dc_1", "f_dc_2"),
        rest.reshape(len(table), 3, n_rest // 3).transpose(0, 2, 1),
    )


def _gaussforge(what: str) -> Any:
    try:
        return importlib.import_module("gaussforge").GaussForge()
    except ImportError as error:
        raise SplatrimError(f"{what} needs the package gaussforge: {EXTRA}") from error
