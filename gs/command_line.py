"""A command's settings, read from its command line by tyro."""

import sys
from collections.abc import Sequence
from typing import TypeVar

import tyro

S = TypeVar("S")


def read_settings_of(
    kind: type[S],
    args: Sequence[str] | None,
    description: str | None,
    *,
    with_negations: bool = False,
) -> S:
    """Settings of one kind; --help and wrong flags end the process, as tyro has it.

    Args:
        kind: A dataclass, whose docstrings of fields are the help.
        args: Words; None takes those of the process.
        description: What --help says first.
        with_negations: Whether a flag that is on or off also has its --no_ form.
    """
    pairs = () if with_negations else (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(
        kind,
        args=sys.argv[1:] if args is None else args,
        description=description,
        config=(tyro.conf.OmitArgPrefixes, *pairs),
        use_underscores=True,
    )
