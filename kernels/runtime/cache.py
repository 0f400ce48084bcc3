"""Every cache of kernels/, registered in one object that clears them all.

Finding out what a call has in common with earlier ones, and doing that only once, takes most of the
host's time off small scenes. What was found is kept in tables beside the code that needs it. They
hold nothing but what can be found again: cleared caches cost time and change no result.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

MOST = 256  # kinds of calls in a table; then all are forgotten

P = ParamSpec("P")
R = TypeVar("R")
Key = TypeVar("Key")
Value = TypeVar("Value")


class Clearable(Protocol):
    """What can be emptied."""

    def clear(self) -> None: ...


Cache = TypeVar("Cache", bound=Clearable)


class Table(dict[Key, Value]):
    """A dictionary of so many keys at most: one more empties it first."""

    def __init__(self, most: int = MOST) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: Key, value: Value) -> None:
        if len(self) >= self._most and key not in self:
            self.clear()
        super().__setitem__(key, value)


class Caches:
    """All tables and remembered functions of kernels/."""

    def __init__(self) -> None:
        self._clear: list[Callable[[], None]] = []

    def add(self, cache: Cache) -> Cache:
        """A cache that `clear` is going to empty, too."""
        self._clear.append(cache.clear)
        return cache

    def remembered(self, function: Callable[P, R]) -> Callable[P, R]:
        """A decorator: results are kept by hashable arguments."""
        cached = functools.lru_cache(MOST)(function)
        self._clear.append(cached.cache_clear)
        return cached  # pyright: ignore[reportReturnType]

    def clear(self) -> None:
        """Forget everything; later calls find it again."""
        for clear in self._clear:
            clear()


caches = Caches()
