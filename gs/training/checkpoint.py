"""Checkpoints: what a run needs to go on exactly where it stopped, by name and with a version.

    format "splatrim"   version 1   method   step   extent   config
    params      raw parameters of the model by name            rows   its row buffers, next_id
    shared      its parameters without rows, by name; absent in older files
    sh_degree, active_sh_degree
    optimizer   {"lrs": {name: float}, name: {"step", "exp_avg", "exp_avg_sq"}}
    strategies  {name: state}          sampler, rng            state of the trainer's randomness

A file holds tensors, numbers, strings and containers of those and nothing else, and is read with
torch's restricted unpickler, so that opening a file from a stranger runs none of its code. The
checkpoints of the original 3D Gaussian Splatting and of its descendants are read too
(gs.training.checkpoint_inria).
"""

import errno
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.foreign import recognise
from ..errors import SplatrimError
from ..files import atomic_write
from ..run_settings import SETTINGS
from ..schema import Mismatch, maybe
from .checkpoint_inria import import_inria, is_inria
from .checkpoint_schema import NEEDED, check_archive, check_contents, check_state

__all__ = [
    "FORMAT_VERSION",
    "import_inria",
    "load_checkpoint",
    "peek_checkpoint",
    "save_checkpoint",
]

FORMAT = "splatrim"
FORMAT_VERSION = 1

# what torch and its unpickler raise for files that are cut short or not checkpoints at all
_CORRUPT = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    OverflowError,
    ImportError,
    struct.error,
)
_REFUSALS = ("unsupported global", "unsupported class", "can only build", "trying to instantiate")


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, atomically; `format` and `version` are filled in.

    Args:
        path: The file; missing folders are made.
        state: As in the module's docstring. Tensors may live on any device.

    Raises:
        ValueError: an entry is missing, or holds something that could not be read back.
        SplatrimError: the file cannot be written.
    """
    missing = [key for key in NEEDED if key not in state]
    if missing:
        raise ValueError(f"checkpoint: {', '.join(missing)} missing")
    SETTINGS(state.get("config") or {}, "config")
    state = {**state, "format": FORMAT, "version": FORMAT_VERSION}
    plain = _plain(state, "checkpoint")
    with atomic_write(path) as file:
        torch.save(plain, file)


def load_checkpoint(
    path: str | Path, *, method: str | None = None, gaussians: bool = True
) -> dict[str, Any]:
    """Read a checkpoint, of this project or of the published codes; all tensors on the CPU.

    Args:
        path: The file.
        method: The method that wants to go on from it, or None to accept any.
        gaussians: The model is one of Gaussians; False for another (gs.model.model).

    Returns:
        The named state of the module's docstring.

    Raises:
        SplatrimError: absent, cut short, not a checkpoint, of a newer format, of another method.
    """
    path = Path(path)
    obj = _load_restricted(path)
    state = import_inria(obj, source=str(path)) if is_inria(obj) else _checked(path, obj)
    try:
        check_state(state, gaussians=gaussians)
    except Mismatch as error:
        raise SplatrimError(f"{path} is damaged: {error}") from error
    if method is not None and state["method"] != method:
        raise SplatrimError(
            f"{path} is a checkpoint of method {state['method']} and cannot continue as {method}"
        )
    return state


def peek_checkpoint(path: str | Path) -> tuple[int, dict[str, Any]] | None:
    """The iteration of a checkpoint and its run's settings ({} in published ones), at low cost.

    None for what `load_checkpoint` will refuse by its content; tensors are not looked at.

    Raises:
        SplatrimError: absent, cut short, or not of tensors and plain values.
    """
    obj = _load_restricted(Path(path), mmap=True)
    if is_inria(obj) and type(obj[1]) is int:
        return obj[1], {}
    if not isinstance(obj, dict) or type(obj.get("step")) is not int:
        return None
    settings = obj.get("config")
    try:
        maybe(SETTINGS)(settings, "config")
    except Mismatch:
        return None
    return obj["step"], settings or {}


def _checked(path: Path, obj: Any) -> dict[str, Any]:
    if not isinstance(obj, dict) or not _is(obj.get("format"), FORMAT):
        what = recognise(path)
        reason = f"; it is {what}" if what else ""
        raise SplatrimError(f"{path} is not a training checkpoint{reason}")
    version = obj.get("version")
    if not _is(version, FORMAT_VERSION):
        shown = version if isinstance(version, (int, str)) else type(version).__name__
        raise SplatrimError(
            f"{path} has checkpoint format {shown!s:.40}; this version reads format"
            f" {FORMAT_VERSION}"
        )
    _verify_sums(path)
    return obj


def _is(value: Any, wanted: str | int) -> bool:
    """Equality that a tensor does not answer with a tensor."""
    return type(value) is type(wanted) and value == wanted


def _verify_sums(path: Path) -> None:
    """Compare the archive's checksums, which torch writes and does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError) as error:
        raise SplatrimError(f"{path} is damaged: {error}") from error
    if wrong is not None:
        raise SplatrimError(f"{path} is damaged: the checksum of {wrong} is wrong")


def _load_restricted(path: Path, *, mmap: bool = False) -> Any:
    if not path.is_file():
        raise SplatrimError(f"no such checkpoint: {path}")
    is_archive = zipfile.is_zipfile(path)
    try:
        if is_archive:
            check_archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_allowed_globals()):
            warnings.simplefilter("ignore", UserWarning)  # of what is refused anyway
            obj = torch.load(
                path,
                map_location="cpu",
                weights_only=True,
                mmap=mmap and is_archive,  # torch maps no files of its older format
            )
        check_contents(obj)
        return obj
    except Mismatch as error:
        raise SplatrimError(f"{path} is damaged: {error}") from error
    except OSError as error:
        # torch seeks before the beginning of an archive that is cut short
        if error.errno == errno.EINVAL:
            raise SplatrimError(f"{path} is cut short or not a checkpoint") from error
        raise SplatrimError(f"cannot read {path}: {error.strerror or error}") from error
    except _CORRUPT as error:
        if any(words in str(error).lower() for words in _REFUSALS):
            reason = "it holds Python objects other than tensors, which could run code"
            raise SplatrimError(f"{path} is refused: {reason}") from error
        raise SplatrimError(f"{path} is cut short or not a checkpoint") from error


def _allowed_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What the published checkpoints need besides tensors: numpy scalars (extent, learning rates).

    numpy 2 moved the function that makes them; files name it by either place.
    """
    make_scalar: Any = np.float32(0).__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    kinds = {type(np.dtype(kind)) for kind in ("float32", "float64", "int64")}
    return [np.dtype, *kinds, *((make_scalar, f"{module}.scalar") for module in modules)]


def _plain(value: Any, where: str) -> Any:
    """Detached, without slack, and only of the types that the restricted reader accepts."""
    if isinstance(value, Tensor):
        value = value.detach()
        # torch.save writes the whole storage behind a view
        slack = value.untyped_storage().nbytes() > value.numel() * value.element_size()
        return value.clone() if slack else value
    if isinstance(value, (dict, OrderedDict)):
        if not all(isinstance(key, (str, int)) for key in value):
            raise ValueError(f"{where}: keys must be strings or integers")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    raise ValueError(f"{where}: a checkpoint cannot hold a {type(value).__name__}")
