"""Failures that a user can act on, and how a command reports them."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from .streams import Terminated, ending_signals, steady_streams

GRACE = 3.0  # seconds in which a process that knows why all end has said so


class SplatrimError(Exception):
    """A problem with the input or the machine, told in one sentence that a user can act on."""


class ToldElsewhere(SystemExit):
    """This rank ends with status 2; another one tells why."""

    def __init__(self) -> None:
        super().__init__(2)


def is_first() -> bool:
    """Whether this is the first of the processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def told_by_first() -> Iterator[None]:
    """Where every process comes to the same end, and the first says why."""
    with contextlib.ExitStack() as stack:
        if not is_first():
            null = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stderr(null))
            stack.enter_context(contextlib.redirect_stdout(null))
        try:
            yield
        except SplatrimError:
            if is_first():
                raise
            raise ToldElsewhere from None


def _wait_for_the_teller() -> None:
    """Under torchrun, which ends all processes once one has ended: who tells why is to be first."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(GRACE)


def run_cli(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit.

    The status is 0; 2 with one sentence on stderr; 130 after Ctrl-C; or 128 plus the number of the
    signal that ended it (SIGTERM, SIGHUP). Closed streams and lost terminals fail nothing.
    """
    with steady_streams(), ending_signals():
        try:
            main()
        except SplatrimError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except ToldElsewhere:
            _wait_for_the_teller()
            raise
        except Terminated as error:
            print("terminated", file=sys.stderr)
            sys.exit(128 + error.number)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
    sys.exit(0)
