"""Ranges of settings: each number's stands beside its field, and one function checks them all.

    growth: Annotated[float, NOT_NEGATIVE] = 0.05

A config calls `check_ranges(self)` in `__post_init__`, so that what a command line, a preset or a
program asks for is refused with the flag's name before anything is done. NaN and infinity are in no
range.
"""

from __future__ import annotations

import functools
import math
import typing
from dataclasses import dataclass, fields
from typing import Any

from .errors import SplatrimError

MOST = 2**31 - 1  # iterations, Gaussians, pixels: what 32 bits count


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless said otherwise."""

    low: float
    high: float = math.inf
    is_above: bool = False
    """Without `low` itself."""
    is_below: bool = False
    """Without `high` itself."""

    def holds(self, value: float) -> bool:
        inside = self.low < value if self.is_above else self.low <= value
        inside &= value < self.high if self.is_below else value <= self.high
        return inside and abs(value) < math.inf

    def __str__(self) -> str:
        above = f"above {self.low:g}" if self.is_above else f"at least {self.low:g}"
        if self.high == math.inf or self.high >= MOST:
            return "positive" if self.is_above and self.low == 0 else above
        if not self.is_above and not self.is_below:
            return f"{self.low:g} to {self.high:g}"
        if self.is_above and self.is_below:
            return f"between {self.low:g} and {self.high:g}"
        return f"{above} and {'below' if self.is_below else 'at most'} {self.high:g}"


POSITIVE = Range(0, is_above=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(0, MOST)
AT_LEAST_ONE = Range(1, MOST)
ITERATION = Range(-1, MOST)
"""-1 is published for "never"."""
SHARE = Range(0, 1)
SOME_SHARE = Range(0, 1, is_above=True)
INNER_SHARE = Range(0, 1, is_above=True, is_below=True)
PRUNED_SHARE = Range(0, 1, is_below=True)
SEED = Range(0, 2**63 - 1)


def check_ranges(config: Any) -> None:
    """Raise SplatrimError, with the flag's name, if a number of a config is out of its range."""
    for name, held in _ranges(type(config)).items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is None or held.holds(number):
                continue
            is_huge = held.high >= MOST and number > held.high
            wanted = f"at most {held.high}" if is_huge else str(held)
            raise SplatrimError(f"--{name} must be {wanted}, not {number}")


@functools.cache
def _ranges(config: type) -> dict[str, Range]:
    """The range of each field of a dataclass that has one."""
    hints = typing.get_type_hints(config, include_extras=True)
    found = {}
    for field in fields(config):
        for note in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(note, Range):
                found[field.name] = note
    return found
