"""What a checkpoint must be: its file, its tensors' memory, and its entries.

Three checks, from the outside in, so that none looks at what the one before has not cleared:

    check_archive    the zip file: nothing compressed, so that it takes no more memory than disk
    check_contents   every object: known types, little nesting, tensors within their own storage
    check_state      the state of gs.training.checkpoint: names, shapes, dtypes, ranges, finite

They raise `Mismatch`, the second half of a sentence.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SplatrimError
from ..model.specs import PUBLISHED, published_specs
from ..run_settings import SETTINGS
from ..schema import Mismatch, anything, fields, integer, listed, mapped, maybe, number, text
from .finite import not_finite
from .same_run import check_entry
from .tracker import HISTORY_COLUMNS

NEEDED = (
    "method",
    "step",
    "params",
    "rows",
    "next_id",
    "active_sh_degree",
    "sh_degree",
    "optimizer",
    "strategies",
    "extent",
)
MAX_PICKLE = 64 << 20  # bytes: a history of 10^6 iterations takes 6 MB
MAX_DEPTH = 24  # of containers within each other
MAX_OBJECTS = 8_000_000
MAX_STEP = 2**31 - 1

_COUNTS = integer(0, MAX_STEP)
_SEED = integer(0, 2**63 - 1)
_NUMBERS = listed(number(-1e300, 1e300, is_finite=False))
_ENTRIES = fields(
    {
        "method": text,
        "step": _COUNTS,
        "next_id": _COUNTS,
        "sh_degree": integer(0, 3),
        "active_sh_degree": integer(0, 3),
        "extent": number(1e-30, 1e30),
        "run": maybe(text),
        "scene": maybe(check_entry),
        "params": mapped(anything),
        "rows": mapped(anything),
        "shared": maybe(mapped(anything)),
        "strategies": mapped(mapped(anything)),
        "optimizer": mapped(mapped(anything)),
        "config": maybe(SETTINGS),
        "rng": maybe(fields({"seed": _SEED})),
        "sampler": maybe(
            fields({"n_cameras": integer(1), "seed": _SEED, "epoch": _COUNTS, "position": _COUNTS})
        ),
        "tracker": maybe(
            fields(
                {
                    "history": fields(
                        {
                            **dict.fromkeys(HISTORY_COLUMNS, _NUMBERS),
                            "test": listed(mapped(number(is_finite=False))),
                            "unseen": listed(mapped(anything)),
                        },
                        needs=(*HISTORY_COLUMNS, "test"),
                    ),
                    "sums": maybe(_NUMBERS),
                    "seconds": number(0, 1e12),
                },
                needs=("history", "seconds"),
            )
        ),
    },
    needs=NEEDED,
)
_RATES = mapped(number(0))
N_SUMS = 4  # of the tracker


def check_archive(path: Path) -> None:
    """Refuse an archive that would take more memory than disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError) as error:
        raise Mismatch(str(error)) from error
    if any(file.compress_type != zipfile.ZIP_STORED for file in files):
        raise Mismatch("it is compressed")
    if sum(file.file_size for file in files) > path.stat().st_size:
        raise Mismatch("its parts overlap")
    if any(file.filename.endswith("data.pkl") and file.file_size > MAX_PICKLE for file in files):
        raise Mismatch("it holds more than tensors")


def check_contents(obj: Any) -> None:
    """Refuse objects that could not be walked through, and tensors that claim more than they have.

    A tensor must be an ordinary one on the CPU, whose elements all lie in its storage, each once.
    """
    level, seen, n_objects = [obj], set[int](), 0
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for x in level:
            if isinstance(x, Tensor):
                _check_tensor(x)
            elif isinstance(x, (dict, list, tuple)):
                if id(x) in seen:  # the same list in many places is looked at once
                    continue
                seen.add(id(x))
                if isinstance(x, dict) and not all(isinstance(key, (str, int)) for key in x):
                    raise Mismatch("it has names that are no names")
                inner += x.values() if isinstance(x, dict) else x
            elif isinstance(x, int) and not isinstance(x, bool) and abs(x) >= 2**63:
                raise Mismatch("it has a number of more than 64 bits")
        n_objects += len(inner)
        if n_objects > MAX_OBJECTS:
            raise Mismatch("it holds too many objects")
        if not inner:
            return
        level = inner
    raise Mismatch(f"it is nested more than {MAX_DEPTH} deep")


def _check_tensor(x: Tensor) -> None:
    if type(x) not in (Tensor, nn.Parameter):
        raise Mismatch(f"it holds a {type(x).__name__}")
    if x.layout != torch.strided or x.is_quantized or x.is_complex() or not x.is_cpu:
        raise Mismatch("it holds a tensor that is not an ordinary one")
    if x.numel() * x.element_size() > x.untyped_storage().nbytes():
        raise Mismatch(f"it holds a tensor {list(x.shape)} with room for less in the file")
    if x.dim() > 6:
        raise Mismatch(f"it holds a tensor of {x.dim()} dimensions")


def check_state(state: Mapping[str, Any], *, gaussians: bool = True) -> None:
    """Check the named state of a checkpoint, of this project or translated from another's.

    Args:
        state: As gs.training.checkpoint describes it.
        gaussians: The model is one of Gaussians, and so has the parameters of 3DGS.
    """
    _ENTRIES(state, "")
    params, rows = state["params"], state["rows"]
    shared = state.get("shared") or {}
    n = _check_params(params, state["sh_degree"], PUBLISHED if gaussians else ())
    if state["active_sh_degree"] > state["sh_degree"]:
        raise Mismatch(f"active_sh_degree: expected 0 to {state['sh_degree']}")
    _check_rows(rows, n, state["next_id"])
    for name, x in shared.items():
        _check_floats(f"shared.{name}", x)
    _check_optimizer(state["optimizer"], {**shared, **params}, state["step"])
    sums = (state.get("tracker") or {}).get("sums")
    if sums is not None and len(sums) != N_SUMS:
        raise Mismatch(f"tracker.sums: expected {N_SUMS} numbers, got {len(sums)}")
    sampler = state.get("sampler") or {}
    if "n_cameras" in sampler and not 0 <= sampler.get("position", -1) < sampler["n_cameras"]:
        raise Mismatch("sampler.position: expected a number below n_cameras")


def _check_params(params: Mapping[str, Any], sh_degree: int, needed: Iterable[str]) -> int:
    """Check the model's parameters; their number of rows."""
    missing = [name for name in needed if name not in params]
    if missing:
        raise Mismatch(f"params.{missing[0]} is missing")
    if not params:
        raise Mismatch("it has no parameters")
    for name, x in params.items():
        _check_floats(f"params.{name}", x)
        if x.dim() == 0:
            raise Mismatch(f"params.{name}: expected a row per Gaussian, got one number")
    n = len(next(iter(params.values())))
    if n == 0:
        raise Mismatch("it holds no Gaussians")
    shapes = (
        {s.name: (n, *s.tail) for s in published_specs((sh_degree + 1) ** 2 - 1)} if needed else {}
    )
    for name, x in params.items():
        wanted = shapes.get(name, (n, *x.shape[1:]))
        if tuple(x.shape) != wanted:
            raise Mismatch(f"params.{name}: expected {list(wanted)}, got {list(x.shape)}")
    return n


def _check_rows(rows: Mapping[str, Any], n: int, next_id: int) -> None:
    for name, x in rows.items():
        if not isinstance(x, Tensor) or x.dim() == 0 or len(x) != n:
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise Mismatch(f"rows.{name}: expected {n} rows, got {got}")
    ids = rows.get("ids")
    if ids is None or ids.dtype != torch.int32 or ids.dim() != 1:
        raise Mismatch(f"rows.ids: expected [{n}] int32")
    if int(ids.min()) < 0 or int(ids.max()) >= next_id or len(ids.unique()) != n:
        raise Mismatch(f"rows.ids: expected {n} different numbers from 0 to below {next_id}")
    bad = not_finite({f"rows.{name}": x for name, x in rows.items()})
    if bad:
        raise Mismatch(bad)


def _check_optimizer(
    optimizer: Mapping[str, Any], parameters: Mapping[str, Tensor], step: int
) -> None:
    for name, entry in optimizer.items():
        where = f"optimizer.{name}"
        if name == "lrs":
            _RATES(entry, where)
            continue
        if name not in parameters:
            raise Mismatch(f"{where}: there is no such parameter")
        shape = parameters[name].shape
        for key in ("exp_avg", "exp_avg_sq"):
            if key not in entry:
                raise Mismatch(f"{where}.{key} is missing")
            _check_floats(f"{where}.{key}", entry[key])
            if entry[key].shape != shape:
                got = list(entry[key].shape)
                raise Mismatch(f"{where}.{key}: expected {list(shape)}, got {got}")
        if bool((entry["exp_avg_sq"] < 0).any()):
            raise Mismatch(f"{where}.exp_avg_sq: expected no number below 0")
        count = entry.get("step")
        if isinstance(count, Tensor) and count.numel() == 1:
            count = float(count)
        if not isinstance(count, (int, float)) or not 0 <= count <= MAX_STEP:
            raise Mismatch(f"{where}.step: expected a number of steps")


def _check_floats(where: str, x: Any) -> None:
    """A finite tensor of floating-point numbers."""
    if not isinstance(x, Tensor):
        raise Mismatch(f"{where}: expected a tensor, got {type(x).__name__}")
    if x.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise Mismatch(f"{where}: expected floating-point numbers, got {x.dtype}")
    bad = not_finite({where: x})
    if bad:
        raise Mismatch(bad)


def check_like(name: str, state: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    """Compare a strategy's state with that of a fresh one: what both have is of one type.

    Args:
        name: The strategy's.
        state: From a checkpoint.
        fresh: What its `state_dict` gives before anything is loaded; None may become a number.

    Raises:
        SplatrimError: Something is of another type.
    """
    try:
        _check_like(f"strategies.{name}", state, fresh)
    except Mismatch as error:
        raise SplatrimError(f"the checkpoint is damaged: {error}") from error


def _check_like(where: str, state: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    for key in state.keys() & fresh.keys():
        value, wanted = state[key], fresh[key]
        if wanted is None:
            if value is not None and type(value) not in (int, float):
                raise Mismatch(f"{where}.{key}: expected a number or none")
            continue
        if type(value) is not type(wanted):
            kinds = type(wanted).__name__, type(value).__name__
            raise Mismatch(f"{where}.{key}: expected {kinds[0]}, got {kinds[1]}")
        if isinstance(value, Tensor) and value.dtype != wanted.dtype:
            raise Mismatch(f"{where}.{key}: expected {wanted.dtype}, got {value.dtype}")
