"""What a JSON file must hold, checked in one place before any of it is used.

A check is a function of a value and of the value's place in the file, which raises `Mismatch`:

    RESULTS = mapped(mapped(number()))                 {"ours_7": {"PSNR": 30.1, "SSIM": 0.9}}
    fields({"run": text, "checkpoints": listed(integer(0))}, needs=("run",))

`read_checked` reads a file and names the place where it differs. Numbers are finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from .errors import SplatrimError
from .files import read_json

Check = Callable[[Any, str], None]

LARGEST = 1e300  # of a number; more overflows in the next sum
SHOWN = 40  # characters of a wrong value


class Mismatch(ValueError):
    """A value is not what it must be; says where and what."""


def read_checked(path: str | Path, check: Check) -> Any:
    """Read a JSON file and check it.

    Raises:
        SplatrimError: it is missing, unreadable, not JSON, or not what `check` wants.
    """
    data = read_json(path)
    try:
        check(data, "")
    except Mismatch as error:
        raise SplatrimError(f"{path} is broken: {error}") from error
    return data


def refuse(value: Any, where: str, wanted: str) -> Mismatch:
    """What to raise for a value that is not `wanted`."""
    shown = repr(value) if isinstance(value, (bool, int, float, str)) else type(value).__name__
    if len(shown) > SHOWN:
        shown = f"{shown[:SHOWN]}..."
    place = f"{where}: " if where else ""
    return Mismatch(f"{place}expected {wanted}, got {shown}")


def number(low: float = -LARGEST, high: float = LARGEST, *, is_finite: bool = True) -> Check:
    """A number from `low` to `high`; NaN and infinity too where it need not be finite."""

    def check(value: Any, where: str) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_finite and isinstance(value, float) and not math.isfinite(value):
            return
        if not is_number or not low <= value <= high:
            raise refuse(value, where, _bounded("a number", low, high))

    return check


def integer(low: int = -(2**63), high: int = 2**63 - 1) -> Check:
    """A whole number from `low` to `high`."""

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise refuse(value, where, _bounded("a whole number", low, high))

    return check


def text(value: Any, where: str) -> None:
    """A string."""
    if not isinstance(value, str):
        raise refuse(value, where, "text")


def flag(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise refuse(value, where, "true or false")


def anything(value: Any, where: str) -> None:
    """Whatever it is, its owner looks at it."""


def maybe(check: Check) -> Check:
    """null, or what `check` wants."""

    def check_maybe(value: Any, where: str) -> None:
        if value is not None:
            check(value, where)

    return check_maybe


def listed(check: Check) -> Check:
    """A list of what `check` wants."""

    def check_list(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)):
            raise refuse(value, where, "a list")
        for index, item in enumerate(value):
            check(item, f"{where}[{index}]")

    return check_list


def mapped(check: Check, key: Check = text) -> Check:
    """An object whose values are what `check` wants, and its keys what `key` wants."""

    def check_map(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise refuse(value, where, "an object")
        for name, item in value.items():
            key(name, f"a name in {where}" if where else "a name")
            check(item, _inner(where, name))

    return check_map


def fields(checks: Mapping[str, Check], *, needs: Collection[str] = ()) -> Check:
    """An object with some known entries; others may be anything.

    Args:
        checks: What the known ones must be, where they are there.
        needs: Those that must be there.
    """

    def check_fields(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise refuse(value, where, "an object")
        for name in needs:
            if name not in value:
                raise Mismatch(f"{_inner(where, name)} is missing")
        for name, check in checks.items():
            if name in value:
                check(value[name], _inner(where, name))

    return check_fields


def digits(value: Any, where: str) -> None:
    """An iteration as the name of an entry."""
    if not (isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 11):
        raise refuse(value, where, "an iteration")


def _inner(where: str, name: Any) -> str:
    name = str(name)
    name = name if len(name) <= SHOWN else f"{name[:SHOWN]}..."
    return f"{where}.{name}" if where else name


def _bounded(what: str, low: float, high: float) -> str:
    if abs(low) >= 2**63 - 1 and abs(high) >= 2**63 - 1:
        return what
    if math.isinf(high) or high >= 2**31 - 1:
        return f"{what} of at least {low:g}"
    return f"{what} from {low:g} to {high:g}"
