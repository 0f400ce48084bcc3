"""Failures that a user can act on, and how a command reports them."""

import sys
from collections.abc import Callable
from typing import NoReturn


class SplatrimError(Exception):
    """A problem with the input or the machine, told in one sentence that a user can act on."""


def run_cli(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0, 2 with one sentence on stderr, or 130 after Ctrl-C."""
    try:
        main()
    except SplatrimError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
