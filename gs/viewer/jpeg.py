"""JPEG files from a process of its own.

Encoding here would keep the interpreter from the thread that launches training's kernels, for
milliseconds per picture. Writing to a pipe and reading from one do not.
"""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
from io import BytesIO, FileIO
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUALITY = 85
HEADER, LENGTH = struct.Struct("<II"), struct.Struct("<I")  # height and width; bytes that follow


class Encoder:
    """The process, which the first picture starts; for one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:  # [H, W, 3]
        """A picture as a JPEG file; by this process where the other one has gone."""
        try:
            return self._ask(np.ascontiguousarray(pixels))
        except (EOFError, OSError):
            return encoded(pixels)

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        for end in (self._process.stdin, self._process.stdout):
            assert end is not None
            try:
                end.close()
            except OSError:  # it has gone before
                continue
        self._process.wait()

    def _ask(self, pixels: NDArray[np.uint8]) -> bytes:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        # unbuffered, they are files without more
        into, out = cast(FileIO, self._process.stdin), cast(FileIO, self._process.stdout)
        _write(into, HEADER.pack(*pixels.shape[:2]))
        _write(into, pixels.data.cast("B"))
        return _read(out, LENGTH.unpack(_read(out, LENGTH.size))[0])


def encoded(pixels: NDArray[np.uint8]) -> bytes:  # [H, W, 3]
    """A picture as a JPEG file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def serve(into: FileIO, out: FileIO) -> None:
    """Encode what comes, until nothing does."""
    while True:
        try:
            height, width = HEADER.unpack(_read(into, HEADER.size))
            data = _read(into, height * width * 3)
        except EOFError:
            return
        file = encoded(np.frombuffer(data, np.uint8).reshape(height, width, 3))
        _write(out, LENGTH.pack(len(file)) + file)


def _write(file: FileIO, data: bytes | memoryview) -> None:
    """All of it: an unbuffered file takes what it can."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _read(file: FileIO, n: int) -> bytes:
    data = bytearray(n)
    rest = memoryview(data)
    while rest:
        got = file.readinto(rest)
        if not got:
            raise EOFError("the other end of the pipe is closed")
        rest = rest[got:]
    return bytes(data)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started it
    with FileIO(0) as into, FileIO(1, "w") as out:
        serve(into, out)
