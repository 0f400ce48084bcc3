"""The file of the decoder that blocks have in common, beside theirs.

format, version
parameters, optimizers, teacher     gs.blocks.shared_decoder
weights                             gs.blocks.weights
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SplatrimError
from ..files import atomic_write

FORMAT, VERSION = "splatrim decoder", 1
PARTS = ("parameters", "optimizers", "teacher", "weights")


def save_decoder(path: Path, state: dict[str, Any]) -> None:
    """Write the state, atomically. Raises SplatrimError where it is not finite, or cannot be."""
    for name, x in {**state["parameters"], **state["teacher"]}.items():
        if not bool(x.isfinite().all()):
            raise SplatrimError(f"the blocks' decoder is not finite ({name}): none is saved")
    with atomic_write(path) as file:
        torch.save({**state, "format": FORMAT, "version": VERSION}, file)


def load_decoder(path: Path) -> dict[str, Any]:
    """Read it, on the CPU. Raises SplatrimError where it is damaged or of a newer version."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError) as error:
        raise SplatrimError(f"{path} is damaged: it cannot be read") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise SplatrimError(f"{path} is no decoder of blocks")
    if state.get("version") != VERSION:
        raise SplatrimError(f"{path} has version {state.get('version')}; this reads {VERSION}")
    missing = [name for name in PARTS if name not in state]
    tensors = state.get("parameters")
    if missing or not isinstance(tensors, dict):
        raise SplatrimError(f"{path} is damaged: {(missing or ['parameters'])[0]} is missing")
    if not all(isinstance(x, Tensor) and bool(x.isfinite().all()) for x in tensors.values()):
        raise SplatrimError(f"{path} is damaged: a parameter is not finite")
    return state
