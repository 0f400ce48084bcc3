"""What a rendering returns besides images."""

from collections.abc import Callable, Iterator
from typing import Any


class Info(dict[str, Any]):
    """A dictionary some of whose entries are computed when they are first read.

    radii, depths, conics, tiles_per_gauss, n_isects and n_nonfinite are kept by row or in a buffer
    of several; they look like any other entry.

    Args:
        entries: What is known.
        source: Of what is not.
        later: What makes it of the source.
    """

    def __init__(
        self, entries: dict[str, Any], source: Any, later: dict[str, Callable[[Any], Any]]
    ) -> None:
        super().__init__(entries | later)
        self._source, self._later = source, {**later}

    def __getitem__(self, key: str) -> Any:
        if key in self._later:
            self[key] = self._later.pop(key)(self._source)
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._later.pop(key, None)
        super().__setitem__(key, value)

    def __iter__(self) -> Iterator[str]:
        # With an __iter__ of its own, dict(info) and {**info} read every entry through the above.
        return super().__iter__()

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def copy(self) -> Any:
        return dict(self)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default

    def pop(self, key: str, *default: Any) -> Any:
        if key in self._later:
            self[key]
        return super().pop(key, *default)

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]
