"""What a rendering returns besides images: a dictionary that computes some entries when read."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

Source = TypeVar("Source")


class Info(dict[str, Any], Generic[Source]):
    """A dictionary some of whose entries are computed when they are first read.

    radii, depths, conics, tiles_per_gauss, n_isects and n_nonfinite are kept by row or in a buffer
    of several; they look like any other entry.

    Args:
        entries: What is known.
        source: Of what is not.
        later: What makes it of the source.
    """

    def __init__(
        self,
        entries: dict[str, object],
        source: Source,
        later: Mapping[str, Callable[[Source], object]],
    ) -> None:
        super().__init__({**entries, **later})
        self._source, self._later = source, {**later}

    def __getitem__(self, key: str) -> Any:
        if key in self._later:
            self[key] = self._later.pop(key)(self._source)
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: object) -> None:
        self._later.pop(key, None)
        super().__setitem__(key, value)

    def __iter__(self) -> Iterator[str]:
        # With an __iter__ of its own, dict(info) and {**info} read every entry through the above.
        return super().__iter__()

    def __or__(self, other: Mapping[str, object]) -> dict[str, Any]:  # pyright: ignore
        return {**dict(self), **other}

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def get(self, key: str, default: object = None) -> Any:  # pyright: ignore
        return self[key] if key in self else default

    def pop(self, key: str, *default: object) -> Any:  # pyright: ignore
        if key in self._later:
            self[key]
        return super().pop(key, *default)

    def values(self) -> list[object]:  # pyright: ignore
        return [self[key] for key in self]

    def items(self) -> list[tuple[str, object]]:  # pyright: ignore
        return [(key, self[key]) for key in self]
