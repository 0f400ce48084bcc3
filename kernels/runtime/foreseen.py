"""Kernels that another process compiles: who launches one waits for it, and does not do it too.

The process writes a line for each thing it knows, words apart by one space:

    plan LABEL      it is going to compile this variant
    planned         and no others
    done LABEL      this variant is in Triton's cache, or cannot be brought there
"""

import threading
from collections.abc import Iterable

from .cache import Table, caches

PLAN, PLANNED, DONE = "plan", "planned", "done"
PATIENCE = 120.0  # seconds; the dearest variant takes 5


class Foreseen:
    """What that process has said.

    Args:
        cached: Labels of variants that Triton's cache has from before.
        patience: Seconds without a word, after which the process is given up.
    """

    def __init__(self, cached: Iterable[str] = (), *, patience: float = PATIENCE) -> None:
        self._patience = patience
        self.unforeseen: list[str] = []
        """Labels that were launched, and that the process had not planned."""
        self._cached, self._planned, self._done = set(cached), set[str](), set[str]()
        self._is_planned, self._is_over = False, False
        self._changed = threading.Condition()

    def follow(self, lines: Iterable[str]) -> None:
        """Read what the process writes, to its end: for a thread of its own."""
        try:
            for line in lines:
                self._hear(*line.rstrip("\n").split(" ", 1))
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def wait(self, label: str) -> None:
        """Until the variant is in the cache, or nobody is going to bring it there."""
        if label in self._cached:
            return
        with self._changed:
            while not self._is_over and not self._is_settled(label):
                if not self._changed.wait(self._patience):
                    self._is_over = True
            if label not in self._planned:
                self.unforeseen.append(label)

    def _is_settled(self, label: str) -> bool:
        return label in self._done or (self._is_planned and label not in self._planned)

    def _hear(self, what: str, label: str = "") -> None:
        with self._changed:
            if what == PLAN:
                self._planned.add(label)
            elif what == PLANNED:
                self._is_planned = True
            elif what == DONE:
                self._done.add(label)
            self._changed.notify_all()


_compiler = caches.add(Table[str, Foreseen](1))
_NAME = "compiler"


def foresee(foreseen: Foreseen) -> None:
    """Let launches of this process wait for what is foreseen."""
    _compiler[_NAME] = foreseen


def await_variant(label: str) -> None:
    """Wait until a variant need not be compiled here, if another process does it."""
    foreseen = _compiler.get(_NAME)
    if foreseen is not None:
        foreseen.wait(label)
