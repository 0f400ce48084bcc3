"""What gaussforge reads and writes for us: SOG, and the reading of .ksplat and of SPZ version 4.

SOG (PlayCanvas) lays the columns out as WebP images and shares SH coefficients in a palette, found
by k-means: the smallest format at its quality, and the slowest to write (about a millisecond a
Gaussian). gaussforge is one wheel without dependencies, in the extra `export`.
"""

import importlib
from typing import Any

import numpy as np

from ..errors import SplatrimError
from .arrays import Arrays, Floats, unit

EXTRA = '`pip install "splatrim[export]"` brings it'
_COLUMNS = {"positions": 3, "rotations": 4, "scales": 3, "alphas": 1, "colors": 3}


def encode(model: Arrays) -> bytes:
    """The SOG file of a model.

    Raises:
        SplatrimError: gaussforge is missing.
        ValueError: it refuses the model; the end of a sentence.
    """
    if not len(model.means):
        raise ValueError("cannot hold a model without Gaussians")
    columns = (model.means, model.quats, model.scales, model.opacities, model.sh0, model.shN)
    parts = [np.ascontiguousarray(column, "<f4").tobytes() for column in columns]
    content: dict[str, Any] = dict(zip([*_COLUMNS, "sh"], parts, strict=True))
    content["numPoints"] = len(model.means)
    content["meta"] = {"shDegree": model.degree, "sourceFormat": "ply"}
    content["extras"] = {}
    return _result(_gaussforge("SOG").write(content, "sog"))


def decode(data: bytes, kind: str) -> Arrays:
    """The model in a file of `kind`: sog, ksplat or spz.

    Raises:
        SplatrimError: gaussforge is missing.
        ValueError: it cannot read the file; the end of a sentence.
    """
    content = _result(_gaussforge(kind.upper()).read(data, kind))
    n = int(content["numPoints"])
    found: dict[str, Floats] = {}
    for name in (*_COLUMNS, "sh"):
        flat = np.frombuffer(content.get(name) or b"", "<f4").astype(np.float32)
        width = _COLUMNS.get(name, flat.size // n if n else 0)
        if flat.size != n * width:
            raise ValueError(f"is damaged: {flat.size} numbers of {name} for {n} Gaussians")
        found[name] = flat.reshape(n, width)
    if found["sh"].shape[1] not in (0, 9, 24, 45):
        raise ValueError(f"has {found['sh'].shape[1]} SH numbers a Gaussian")
    return Arrays(
        found["positions"],
        unit(found["rotations"]),
        found["scales"],
        found["alphas"][:, 0],
        found["colors"],
        found["sh"].reshape(n, -1, 3),
    )


def _gaussforge(what: str) -> Any:
    try:
        return importlib.import_module("gaussforge").GaussForge()
    except ImportError as error:
        raise SplatrimError(f"{what} needs the package gaussforge: {EXTRA}") from error


def _result(answer: dict[str, Any]) -> Any:
    if "error" in answer:
        raise ValueError(f"is not accepted by gaussforge: {str(answer['error'])[:200]}")
    return answer["data"]
