"""Which run a folder holds and what that run has saved: run.json, and who reads it.

    run          the run's name, the same in its checkpoints
    continues    name and iteration of the run that it went on from, where that is another one
    models       {iteration: mark}, of the models saved so far; a mark is new with every saving
    checkpoints  iterations of the checkpoints saved so far

The latest model is the last one of this record: files of other runs, or of a part of this one that
was given up when it was resumed from an earlier checkpoint, are none of it. Folders without a
record (made by other programs) have the models that are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import SplatrimError
from .files import read_json, write_json
from .schema import digits, fields, integer, listed, mapped, maybe, read_checked, text

RECORD = "run.json"
MANIFEST = "manifest.json"  # of a checkpoint of several ranks: without it there is none
BLOCKS = "blocks"  # folder of the blocks of a run in blocks (gs.blocks.manifest)
CONFIG = "config.json"
OWNERS = "blocks.npy"  # beside a model: the block of each Gaussian, int16
PLAN = "partition.html"  # of the blocks of a run (gs.blocks.plan_view)
BASELINE = "baseline"  # folder in a run's, of the run that its report compares with
_RECORD = fields(
    {
        "run": text,
        "continues": maybe(fields({"run": maybe(text), "step": integer(0)})),
        "models": mapped(text, digits),
        "checkpoints": listed(integer(0)),
    },
    needs=("run", "models", "checkpoints"),
)
# files that make a folder that of a run, of this project or of Inria's program
_OF_A_RUN = (RECORD, "cfg_args", "history.json")
_KEYS_OF_CONFIG = {"model_path", "iterations"}


@dataclass(frozen=True)
class RunRecord:
    """What run.json says; see the module's docstring."""

    run: str
    models: dict[int, str] = field(default_factory=dict)
    checkpoints: tuple[int, ...] = ()
    continues: dict[str, Any] | None = None

    def until(self, step: int) -> RunRecord:
        """The record without what comes after iteration `step`."""
        models = {i: mark for i, mark in self.models.items() if i <= step}
        kept = tuple(i for i in self.checkpoints if i <= step)
        return RunRecord(self.run, models, kept, self.continues)


def read_record(folder: str | Path) -> RunRecord | None:
    """A folder's record; None where it has none. Raises SplatrimError where it is broken."""
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    data = read_checked(path, _RECORD)
    models = {int(name): mark for name, mark in data["models"].items()}
    return RunRecord(data["run"], models, tuple(data["checkpoints"]), data.get("continues"))


def write_record(folder: Path, record: RunRecord) -> None:
    """Write run.json, atomically. Raises SplatrimError where it cannot be written."""
    write_json(
        folder / RECORD,
        {
            "run": record.run,
            "continues": record.continues,
            "models": {str(i): mark for i, mark in sorted(record.models.items())},
            "checkpoints": sorted(record.checkpoints),
        },
    )


def model_file(folder: Path, iteration: int) -> Path:
    """Where the model of an iteration is saved."""
    return folder / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply"


def checkpoint_file(folder: Path, iteration: int) -> Path:
    """Where the checkpoint of an iteration is saved."""
    return folder / f"chkpnt{iteration}.pth"


def shards_folder(folder: Path, iteration: int) -> Path:
    """Where several ranks save it (gs.training.checkpoint_shards)."""
    return folder / f"chkpnt{iteration}"


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Where the checkpoint of an iteration is: a folder if it is complete there, else a file."""
    shards = shards_folder(folder, iteration)
    return shards if (shards / MANIFEST).is_file() else checkpoint_file(folder, iteration)


def saved_models(folder: str | Path) -> dict[int, Path]:
    """The run's saved models by iteration, ascending. Raises SplatrimError for a broken record."""
    folder = Path(folder)
    record = read_record(folder)
    if record is not None:
        found: Iterable[int] = record.models
    else:
        found = _numbers(folder.glob("point_cloud/iteration_*"), r"iteration_(\d+)")
    paths = {i: model_file(folder, i) for i in sorted(found)}
    return {i: path for i, path in paths.items() if path.is_file()}


def find_model(folder: str | Path, iteration: int = -1) -> tuple[int, Path]:
    """Iteration and path of a saved model; -1 is the run's latest.

    Raises:
        SplatrimError: there is none, or the record is broken.
    """
    saved = saved_models(folder)
    if not saved:
        raise SplatrimError(f"{folder} has no saved model (point_cloud/iteration_N)")
    if iteration == -1:
        iteration = max(saved)
    if iteration not in saved:
        known = ", ".join(str(i) for i in saved)
        raise SplatrimError(f"{folder} has no model of iteration {iteration}; it has {known}")
    return iteration, saved[iteration]


def saved_checkpoints(folder: str | Path) -> dict[int, Path]:
    """The run's checkpoints by iteration, ascending. Raises SplatrimError for a broken record."""
    folder = Path(folder)
    record = read_record(folder)
    if record is not None:
        found: Iterable[int] = record.checkpoints
    else:
        found = _numbers(folder.glob("chkpnt*"), r"chkpnt(\d+)(?:\.pth)?")
    paths = {i: checkpoint_path(folder, i) for i in sorted({*found})}
    return {i: path for i, path in paths.items() if path.exists()}


def holds_run(folder: Path) -> bool:
    """Whether a folder holds the output of a run, of whatever program."""
    if any((folder / name).is_file() for name in _OF_A_RUN) or has_saved(folder):
        return True
    try:
        settings = read_json(folder / CONFIG)
    except SplatrimError:
        return False
    return isinstance(settings, dict) and _KEYS_OF_CONFIG <= settings.keys()


def has_saved(folder: Path) -> bool:
    """Whether a model, a checkpoint or trained blocks lie in a folder."""
    models = folder.glob("point_cloud/iteration_*/point_cloud.ply")
    checkpoints = (*folder.glob("chkpnt*.pth"), *folder.glob(f"chkpnt*/{MANIFEST}"))
    return any(models) or any(checkpoints) or (folder / BLOCKS / MANIFEST).is_file()


def _numbers(paths: Iterable[Path], pattern: str) -> list[int]:
    """The numbers in the names of files."""
    matches = (re.fullmatch(pattern, path.name, re.ASCII) for path in paths)
    return [int(match[1]) for match in matches if match]
