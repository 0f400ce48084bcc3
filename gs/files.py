"""Writing files so that a failure leaves the old file or none, never half of one.

A file is written under a temporary name in its own folder, flushed to the disk, and renamed.
Whatever stops that (a full disk, missing rights, Ctrl-C) removes the temporary file and leaves the
old one.
"""

import contextlib
import io
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import SplatrimError


class _RecordingFile(io.FileIO):
    """Remembers what made a write fail.

    Libraries that write through a callback (torch.save) report their own error instead of ours.
    """

    failure: BaseException | None = None

    def write(self, b: Any, /) -> int:
        try:
            return super().write(b) or 0
        except BaseException as error:
            self.failure = error
            raise


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open `path` for writing in binary; it appears, complete, when the block ends without error.

    Folders that are missing are made. Use as `with atomic_write(path) as file: file.write(data)`.

    Raises:
        SplatrimError: the operating system refused (full disk, no rights, a folder in the way).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    raw: _RecordingFile | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = _RecordingFile(temporary, "xb")
        file = io.BufferedWriter(raw, buffer_size=1 << 20)
        yield file  # type: ignore[misc]
        file.flush()
        os.fsync(raw.fileno())
        raw.close()
        os.replace(temporary, path)
    except BaseException as error:
        _discard(raw, temporary)
        cause = raw.failure if raw is not None and raw.failure is not None else error
        if isinstance(cause, OSError):
            raise SplatrimError(f"cannot write {path}: {cause.strerror or cause}") from error
        if cause is not error:
            raise cause from None
        raise
    _sync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically. Raises SplatrimError as atomic_write does."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically. Raises SplatrimError as atomic_write does."""
    write_text(path, json.dumps(obj, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises SplatrimError where it is missing, unreadable or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SplatrimError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SplatrimError(f"{path} is not valid JSON: {error}") from error


def check_writable(folder: str | Path) -> None:
    """Find out before any work whether files can be written in `folder`; leaves nothing behind.

    A folder that does not exist yet is judged by the nearest parent that does.

    Raises:
        SplatrimError: a file is in the way, no rights, a read-only or full disk.
    """
    folder = Path(folder)
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise SplatrimError(f"cannot write into {folder}: {place} is not a folder")
    probe = place / f".splatrim.{secrets.token_hex(4)}.tmp"
    try:
        with open(probe, "xb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SplatrimError(f"cannot write into {folder}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _discard(raw: io.FileIO | None, temporary: Path) -> None:
    if raw is None:
        return
    with contextlib.suppress(OSError):
        raw.close()
    with contextlib.suppress(OSError):
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    # the rename itself is durable only once the folder is; not every file system can do it
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
