"""Writing files so that a failure leaves the old file or none, never half of one.

A file is written under a temporary name in its own folder, flushed to the disk, and renamed.
Whatever stops that (a full disk, missing rights, Ctrl-C) removes the temporary file and leaves the
old one.
"""

import contextlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import SplatrimError

MAX_DEPTH = 40  # of lists and objects within each other
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


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
    temporary = path
    raw: _RecordingFile | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while raw is None:
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            raw = _claimed(_RecordingFile(temporary, "xb"), temporary)
        file = io.BufferedWriter(raw, buffer_size=1 << 20)
        yield file  # type: ignore[misc]
        file.flush()
        os.fsync(raw.fileno())
        if os.name == "nt":
            raw.close()  # open files cannot be renamed there
        os.replace(temporary, path)  # while it is locked: nobody takes it for left over
        raw.close()
    except BaseException as error:
        _discard(raw, temporary)
        cause = raw.failure if raw is not None and raw.failure is not None else error
        if isinstance(cause, OSError):
            raise SplatrimError(f"cannot write {path}: {cause.strerror or cause}") from error
        if cause is not error:
            raise cause from None
        raise
    _sync_folder(path.parent)


def remove_temporaries(folder: Path, *, prefix: str = "", deep: bool = True) -> int:
    """Remove what killed writers left in a folder; what a living one holds stays.

    Args:
        folder: Where to look.
        prefix: Only temporaries of files whose name begins so.
        deep: In its sub-folders, too.

    Returns:
        How many there were.
    """
    pattern = f".{prefix}*.tmp"
    found = folder.rglob(pattern) if deep else folder.glob(pattern)
    removed = 0
    for path in [path for path in found if _TEMPORARY.fullmatch(path.name)]:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if lock_file(file.fileno()):
                path.unlink()
                removed += 1
    return removed


def lock_file(descriptor: int) -> bool:
    """Take an open file for this process until it is closed, by death too; False if another has it.

    Where the system or its file system has no such locks, everybody gets one.
    """
    try:
        import fcntl  # not on Windows
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _claimed(raw: _RecordingFile, path: Path) -> _RecordingFile | None:
    """The new temporary file, locked; None where another process removed it as left over."""
    if lock_file(raw.fileno()) and os.path.lexists(path):
        return raw
    raw.close()
    return None


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically. Raises SplatrimError as atomic_write does."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically. Raises SplatrimError as atomic_write does."""
    write_text(path, json.dumps(obj, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file. gs.schema checks what is in it.

    Raises:
        SplatrimError: it is missing, unreadable, not JSON, or nested too deeply.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SplatrimError(f"cannot read {path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise SplatrimError(f"{path} is not valid JSON: it is nested too deeply") from error
    except ValueError as error:
        raise SplatrimError(f"{path} is not valid JSON: {error}") from error
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for x in level
            if isinstance(x, (dict, list))
            for item in (x.values() if isinstance(x, dict) else x)
        ]
        if not level:
            return data
    raise SplatrimError(f"{path} is nested more than {MAX_DEPTH} deep")


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
