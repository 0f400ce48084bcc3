"""How a run is asked to stop: by Ctrl-C, SIGTERM or SIGHUP."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from ..streams import handled, heeded_signals


@contextlib.contextmanager
def stop_on_signal(request: Callable[[], None], *, patience: float = 0.0) -> Iterator[None]:
    """Where the first signal calls `request`, and the next one stops at once.

    Args:
        request: Asks for the end.
        patience: Seconds in which further signals say the same. torchrun's processes get a signal
            of the terminal, and another one that torchrun sends on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []
    heeded = (signal.SIGINT, *heeded_signals())

    def heed(number: int, frame: FrameType | None) -> None:
        if first and time.monotonic() - first[0] >= patience:
            for one in heeded:
                signal.signal(one, signal.default_int_handler)
            raise KeyboardInterrupt
        first.append(time.monotonic())
        request()

    with handled(heeded, heed):
        yield
