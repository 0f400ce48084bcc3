"""Standard streams that cannot fail a program, and signals that end it in order."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TextIO, cast

# A closed terminal sends SIGHUP; it is not everywhere.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """A signal asked this process to end; like Ctrl-C, what is half done is undone on the way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class SteadyStream:
    """A text stream that goes silent where the other end is gone (`| head`, a closed terminal)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:  # a terminal of few characters
            encoding = self._stream.encoding or "ascii"
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # ValueError: it is closed
            self._fall_silent()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._fall_silent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fall_silent(self) -> None:
        # The descriptor too: what the stream still holds is flushed into it when Python exits.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        self._stream = open(os.devnull, "w", encoding="utf-8")  # for the life of the process


@contextlib.contextmanager
def steady_streams() -> Iterator[None]:
    """Where writing to stdout and stderr never fails, whether they are closed now or later."""
    for descriptor in range(3):  # else the next file that is opened becomes stderr
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
    before = sys.stdout, sys.stderr
    # Python sets them to None where they were closed when it started.
    streams = [open(os.devnull, "w") if x is None else x for x in before]
    sys.stdout, sys.stderr = (cast("TextIO", SteadyStream(x)) for x in streams)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def ending_signals() -> Iterator[None]:
    """Where SIGTERM and SIGHUP raise `Terminated`, so that temporary files are removed.

    What the process was told to ignore (nohup) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    with handled(heeded_signals(), end):
        yield


@contextlib.contextmanager
def handled(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Where signals go to a handler; afterwards they go where they went before."""
    previous = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in previous:
            signal.signal(number, handler)
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def heeded_signals() -> list[int]:
    """The signals that ask this process to end, without those it was told to ignore."""
    return [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
