"""Checkpoints of several ranks: a folder with a file per rank and a manifest, written last.

    chkpntN/shard_RRR.pth   the rows of one rank, a checkpoint like any other
                            (gs.training.checkpoint); a rank without rows has none
    chkpntN/manifest.json   iteration, run, what each shard holds, what cutting goes by

A folder without a manifest is not a checkpoint. Any number of ranks reads one that any other has
written: each takes the rows that it owns, with their moments.
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed.ownership import owner
from ..distributed.ranks import Ranks
from ..errors import SplatrimError
from ..files import write_json
from ..run_record import MANIFEST, checkpoint_path, saved_checkpoints
from ..run_settings import SETTINGS
from ..schema import anything, fields, integer, listed, mapped, maybe, read_checked, text
from .checkpoint import load_checkpoint, peek_checkpoint, save_checkpoint
from .finite import check_state

FORMAT, VERSION = "splatrim shards", 1
CHUNK = 1 << 24  # bytes read at once

_SHARD = fields(
    {"file": maybe(text), "rows": integer(0), "bytes": integer(0), "crc32": integer(0)},
    needs=("file", "rows", "bytes", "crc32"),
)
_MANIFEST = fields(
    {
        "format": text,
        "version": integer(1),
        "run": maybe(text),
        "step": integer(0),
        "next_id": integer(0),
        "shards": listed(_SHARD),
        "costs": mapped(anything),
        "config": SETTINGS,
    },
    needs=("format", "version", "step", "next_id", "shards", "config"),
)

logger = logging.getLogger("splatrim")


def save_shards(
    folder: Path, state: dict[str, Any], ranks: Ranks, costs: Mapping[str, Any], good: Path | None
) -> Path:
    """Write a checkpoint of all ranks. All call it.

    Args:
        folder: chkpntN.
        state: Of this rank (gs.training.run_state).
        ranks: Whose rows it is of.
        costs: What the next batch is cut by (gs.distributed.tasks.CostTable).
        good: The last model or checkpoint that is whole.

    Raises:
        SplatrimError: Something cannot be written or is not finite; told by one rank.
    """

    def begin() -> None:
        with contextlib.suppress(FileNotFoundError):  # from now on it is incomplete
            (folder / MANIFEST).unlink()

    def write() -> dict[str, Any]:
        name, n = f"shard_{ranks.rank:03d}.pth", len(state["rows"]["ids"])
        if n == 0:
            return {"file": None, "rows": 0, "bytes": 0, "crc32": 0}
        check_state(state, state["step"], good)
        save_checkpoint(folder / name, state)
        path = folder / name
        return {"file": name, "rows": n, "bytes": path.stat().st_size, "crc32": _crc32(path)}

    ranks.first_only(begin)
    shards = ranks.tell(ranks.together(write))

    def end() -> None:
        entries = ("run", "step", "next_id", "config")
        manifest = {"format": FORMAT, "version": VERSION, "shards": shards, "costs": dict(costs)}
        write_json(folder / MANIFEST, manifest | {name: state[name] for name in entries})

    ranks.first_only(end)
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """A folder's manifest, checked.

    Raises:
        SplatrimError: It is missing, broken, or of a newer version.
    """
    if not (folder / MANIFEST).is_file():
        others = [path for path in saved_checkpoints(folder.parent).values() if path != folder]
        last = f"; the last complete one is {others[-1]}" if others else ""
        raise SplatrimError(
            f"{folder} is incomplete: {MANIFEST} is missing (the run was stopped while writing"
            f" it){last}"
        )
    manifest = read_checked(folder / MANIFEST, _MANIFEST)
    if manifest["format"] != FORMAT or manifest["version"] != VERSION:
        raise SplatrimError(f"{folder / MANIFEST} has another format than this version reads")
    return manifest


def load_shards(folder: Path, rank: int = 0, size: int = 1) -> dict[str, Any]:
    """The rows of a checkpoint that one of `size` ranks owns, ascending by id.

    Returns:
        A state as `load_checkpoint` gives it, and "is_shard" where others have other rows, "costs".

    Raises:
        SplatrimError: The manifest or a shard is missing, damaged or of another checkpoint.
    """
    manifest = read_manifest(folder)
    names = [shard["file"] for shard in manifest["shards"] if shard["file"] is not None]
    if not names:
        raise SplatrimError(f"{folder} holds no Gaussians")
    for path in sorted(folder.glob("shard_*.pth")):
        if path.name not in names:
            logger.warning(f"{path} is not of this checkpoint and is left out")
    shards = manifest["shards"]
    wanted = [shard for shard in shards if shard["file"] is not None]
    if len(shards) == size:  # as many ranks as there were: each has the rows that it had
        wanted = [shards[rank] if shards[rank]["file"] is not None else wanted[0]]
    parts, common = list[Rows](), dict[str, Any]()
    for shard in wanted:
        state = _load_shard(folder / shard["file"], shard, manifest)
        common = common or state
        parts.append(_part(state, rank, size))
    costs = manifest.get("costs") or {}
    known = {"run": manifest.get("run"), "is_shard": size > 1, "costs": costs}
    return {**common, **_joined(parts), **known}


def _load_shard(
    path: Path, shard: Mapping[str, Any], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    if not path.is_file():
        raise SplatrimError(f"{path.parent} is incomplete: {path.name} is missing")
    if path.stat().st_size != shard["bytes"] or _crc32(path) != shard["crc32"]:
        raise SplatrimError(f"{path} is damaged: it is not the file that {MANIFEST} speaks of")
    state = load_checkpoint(path)
    if state["step"] != manifest["step"] or len(state["rows"]["ids"]) != shard["rows"]:
        raise SplatrimError(f"{path} is of another checkpoint than {path.parent / MANIFEST}")
    return state


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


Rows = dict[str, dict[str, Any]]


def _part(state: Mapping[str, Any], rank: int, size: int) -> Rows:
    """What of a state has rows, for the rows that a rank owns."""
    rows = (owner(state["rows"]["ids"], size) == rank).nonzero()[:, 0]
    params = state["params"]
    part: Rows = {
        "params": {name: x[rows] for name, x in params.items()},
        "rows": {name: x[rows] for name, x in state["rows"].items()},
        "optimizer": {},
    }
    for name, entry in state["optimizer"].items():
        with_rows = name in params
        part["optimizer"][name] = {
            key: x[rows] if with_rows and isinstance(x, Tensor) and x.dim() else x
            for key, x in entry.items()
        }
    return part


def _joined(parts: list[Rows]) -> Rows:
    """Rows of all parts, ascending by id."""
    order = torch.cat([part["rows"]["ids"] for part in parts]).argsort()

    def join(section: str, name: str) -> Tensor:
        return torch.cat([part[section][name] for part in parts])[order]

    first = parts[0]
    joined: Rows = {
        section: {name: join(section, name) for name in first[section]}
        for section in ("params", "rows")
    }
    joined["optimizer"] = {}
    for name, entry in first["optimizer"].items():
        joined["optimizer"][name] = {
            key: torch.cat([part["optimizer"][name][key] for part in parts])[order]
            if name in first["params"] and isinstance(x, Tensor) and x.dim()
            else x
            for key, x in entry.items()
        }
    return joined


def load_any(path: Path, ranks: Ranks | None = None) -> dict[str, Any]:
    """A checkpoint, of one file or of shards; of shards the rows that this rank owns."""
    if path.is_dir():
        return load_shards(path) if ranks is None else load_shards(path, ranks.rank, ranks.size)
    return load_checkpoint(path)


def peek_any(path: Path) -> tuple[int, dict[str, Any]] | None:
    """The iteration of a checkpoint, of one file or of shards, and its run's settings."""
    if not path.is_dir():
        return peek_checkpoint(path)
    manifest = read_manifest(path)
    return manifest["step"], manifest["config"]


def remove_checkpoint(folder: Path, step: int) -> None:
    """Remove a checkpoint: the manifest first, so that no half of one is left."""
    path = checkpoint_path(folder, step)
    with contextlib.suppress(OSError):
        if not path.is_dir():
            path.unlink()
            return
        (path / MANIFEST).unlink(missing_ok=True)
        for shard in path.glob("shard_*.pth"):
            shard.unlink()
        path.rmdir()
