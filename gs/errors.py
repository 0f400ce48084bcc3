"""Failures that a user can act on, and how a command reports them."""

import sys
from collections.abc import Callable
from typing import NoReturn

from .streams import Terminated, ending_signals, steady_streams


class SplatrimError(Exception):
    """A problem with the input or the machine, told in one sentence that a user can act on."""


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
        except Terminated as error:
            print("terminated", file=sys.stderr)
            sys.exit(128 + error.number)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
    sys.exit(0)
