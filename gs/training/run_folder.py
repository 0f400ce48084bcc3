"""A run's output folder while it trains: whose it is, and that nobody else writes into it.

A folder holds one run. A new run takes an empty folder, or one whose run has saved nothing, or with
`overwrite` any; what was there is set aside as a whole, under the next free name OUT.1, OUT.2, ...
A run that goes on from a checkpoint of the folder's own run stays in it under its name, and what
the record says of later iterations is forgotten. Every other run is refused.

While a run trains it holds a lock, a file that the system releases when the process dies. Under it
the temporary files of killed runs are removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..errors import SplatrimError
from ..files import lock_file, remove_temporaries
from ..run_record import (
    RunRecord,
    checkpoint_path,
    has_saved,
    holds_run,
    model_file,
    read_record,
    saved_checkpoints,
    saved_models,
    write_record,
)

LOCK = ".splatrim.lock"

logger = logging.getLogger("splatrim")


class RunFolder:
    """One run's folder. Nothing is touched before `held`.

    Args:
        path: The output folder.
        start: The state that the run goes on from, if any: its "run" and "step".
        came_from: File of that state.
        inputs: Files and folders that the run reads; none of them may be set aside.
        overwrite: Whether a run that is there may be set aside.
    """

    def __init__(
        self,
        path: Path,
        *,
        start: Mapping[str, Any] | None = None,
        came_from: Path | None = None,
        inputs: tuple[Path, ...] = (),
        overwrite: bool = False,
    ) -> None:
        self.path, self.inputs, self.overwrite = path, inputs, overwrite
        self.came_from = came_from
        former, step = (start or {}).get("run"), (start or {}).get("step", 0)
        self.step = int(step)
        continues = None if start is None else {"run": former, "step": self.step}
        self.record = RunRecord(secrets.token_hex(8), continues=continues)
        self._former: str | None = former
        self._is_held = False

    @property
    def run(self) -> str:
        """The run's name."""
        return self.record.run

    @classmethod
    def of(cls, config: TrainConfig, start: Mapping[str, Any] | None, source: Path) -> RunFolder:
        """The folder that a run's settings name; `source` is its scene."""
        starts = (config.start_checkpoint, config.start_ply)
        return cls(
            config.model_path,
            start=start,
            came_from=config.start_checkpoint,
            inputs=(source, *(path for path in starts if path is not None)),
            overwrite=config.overwrite,
        )

    def check(self) -> None:
        """Refuse a folder that this run may not have; writes nothing.

        Raises:
            SplatrimError: another run is there, or trains into it now.
        """
        lock = self.path / LOCK
        with contextlib.suppress(OSError), _open(lock, "r+b") as file:
            if not lock_file(file.fileno()):
                raise SplatrimError(_in_use(self.path, file.read(200)))
        self._is_set_aside()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The folder is this run's alone until the block ends.

        Raises:
            SplatrimError: As `check`, or something could not be moved or written.
        """
        with contextlib.ExitStack() as stack:
            self._lock(stack)
            if self._is_set_aside():
                self._set_aside()
                stack.close()  # that lock has moved with the folder
                self._lock(stack)
            remove_temporaries(self.path)
            remove_temporaries(self.path.absolute().parent, prefix="splatrim.", deep=False)
            if holds_run(self.path):
                record = read_record(self.path) or self._adopted()
                self.record = record.until(self.step)
            write_record(self.path, self.record)
            self._is_held = True
            try:
                yield
            finally:
                self._is_held = False

    def add_model(self, iteration: int) -> None:
        """Note that the model of an iteration has been saved."""
        models = {**self.record.models, iteration: secrets.token_hex(4)}
        self._note(replace(self.record, models=models))

    def add_checkpoint(self, iteration: int) -> None:
        """Note that the checkpoint of an iteration has been saved."""
        kept = tuple(sorted({*self.record.checkpoints, iteration}))
        self._note(replace(self.record, checkpoints=kept))

    def drop_checkpoint(self, iteration: int) -> None:
        """Note that the checkpoint of an iteration is to be removed."""
        kept = tuple(i for i in self.record.checkpoints if i != iteration)
        self._note(replace(self.record, checkpoints=kept))

    def latest(self) -> Path | None:
        """The last model or checkpoint that this run has saved."""
        models, checkpoints = self.record.models, self.record.checkpoints
        if checkpoints and checkpoints[-1] >= max(models, default=0):
            return checkpoint_path(self.path, checkpoints[-1])
        return model_file(self.path, max(models)) if models else None

    def _note(self, record: RunRecord) -> None:
        self.record = record
        there = record if self._is_held else read_record(self.path)
        if there is not None and there.run == record.run:  # else it has not begun
            write_record(self.path, record)

    def _is_set_aside(self) -> bool:
        """Whether what is in the folder makes way; refuses what must not."""
        if not holds_run(self.path):
            return False
        if self._is_own():
            if self.overwrite:
                raise SplatrimError(
                    f"--overwrite would set aside {self.path}, which the run goes on in:"
                    " leave one of the two out, or give another -m"
                )
            return False
        if not self.overwrite and has_saved(self.path):
            raise SplatrimError(
                f"{self.path} holds another run: give another -m, --overwrite to set that run"
                " aside, or --start_checkpoint with a checkpoint of it to go on"
            )
        for path in self.inputs:
            if path.resolve().is_relative_to(self.path.resolve()):
                raise SplatrimError(
                    f"{path} lies in {self.path}, which holds another run and would be set aside:"
                    " give another -m"
                )
        return True

    def _is_own(self) -> bool:
        """Whether the run goes on from the one that is there."""
        record = read_record(self.path)
        if record is not None:
            return self._former == record.run
        inside = self.came_from is not None and self.came_from.resolve().is_relative_to(
            self.path.resolve()
        )
        return inside and self._former is None  # made before runs had names

    def _adopted(self) -> RunRecord:
        """A record of what a run without one has saved."""
        models = dict.fromkeys(saved_models(self.path), "")
        return replace(self.record, models=models, checkpoints=tuple(saved_checkpoints(self.path)))

    def _lock(self, stack: contextlib.ExitStack) -> None:
        path = self.path / LOCK
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(_open(path, "a+b"))
            except OSError as error:
                raise SplatrimError(f"cannot write {path}: {error.strerror or error}") from error
            if not lock_file(file.fileno()):
                file.seek(0)
                raise SplatrimError(_in_use(self.path, file.read(200)))
            if _is_same(file.fileno(), path):
                break
            file.close()  # its owner has just finished and removed it
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        stack.callback(_remove, path, file.fileno())

    def _set_aside(self) -> None:
        place = self.path.resolve()
        number = 1
        while os.path.lexists(aside := place.with_name(f"{place.name}.{number}")):
            number += 1
        try:
            place.rename(aside)
        except OSError as error:
            reason = error.strerror or error
            raise SplatrimError(f"cannot set aside {self.path}: {reason}") from error
        with contextlib.suppress(OSError):
            (aside / LOCK).unlink()
        logger.warning(f"the run that was in {self.path} is now {aside}")


def _open(path: Path, mode: str) -> Any:
    """A lock file; closed with its `with`."""
    return open(path, mode)


def _in_use(folder: Path, owner: bytes) -> str:
    who = owner.decode("utf-8", "replace").strip() or "another process"
    return f"{who} is training into {folder}: wait for it to end, or give another -m"


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path, descriptor: int) -> None:
    """Remove a lock file if it is still the one that is held."""
    with contextlib.suppress(OSError):
        if _is_same(descriptor, path):
            path.unlink()
