"""Stages of a run: what a setting is from given shares of the run's iterations on.

Written as "0:4,0.25:2,0.5:1": 4 from the start, 2 after a quarter of the iterations, 1 after half
of them. Before the first share it is 1, and shares fit a run of any length.
"""

from __future__ import annotations

import math
from functools import lru_cache

from .errors import SplatrimError


@lru_cache(maxsize=64)
def read_stages(flag: str, stages: str, *, whole: bool = False) -> tuple[tuple[float, float], ...]:
    """Shares of the iterations, ascending, and the value from each on; () for "".

    Args:
        flag: Name of the setting, for the message.
        stages: As the module's docstring says.
        whole: Whether values are whole numbers.

    Raises:
        SplatrimError: It reads otherwise, shares do not ascend from 0 to 1, or a value is below 1.
    """
    if not stages.strip():
        return ()
    found: list[tuple[float, float]] = []
    try:
        for text in stages.split(","):
            share, value = map(float, text.split(":"))
            ascends = 0 <= share < 1 and (not found or share > found[-1][0])
            fits = 1 <= value < math.inf and (not whole or value == int(value))
            if not (ascends and fits):
                raise ValueError
            found.append((share, value))
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise SplatrimError(
            f"--{flag} {stages}: give ascending shares of the run from 0 to 1, each with what holds"
            f" from there on ({kind}, at least 1), such as 0:4,0.25:2"
        ) from None
    return tuple(found)


def value_at(stages: tuple[tuple[float, float], ...], share: float) -> float:
    """The value after a share of the iterations."""
    value = 1.0
    for start, x in stages:
        if share >= start:
            value = x
    return value
