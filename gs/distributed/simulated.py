"""Several ranks as threads of one process that take turns: one computes while the others wait.

A rank runs up to its next collective, leaves there what it sends, and hands on to the next rank.
When its turn comes again, all have been there. So W ranks are a loop over ranks between two
exchanges, each of which is a transposition; what a rank does and how long it takes is as if it had
the device for itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import SplatrimError, ToldElsewhere
from .ranks import Ranks

T = TypeVar("T")


class Watch(Protocol):
    """Sees ranks take turns."""

    def begins(self, rank: int) -> None: ...

    def ends(self, rank: int, phase: str) -> None: ...


class _Abandoned(BaseException):
    """Another rank has failed."""


class _Turns:
    """Whose turn it is, and what ranks have left for each other."""

    def __init__(self, size: int, watch: Watch | None) -> None:
        self.size, self.watch = size, watch
        self.changed = threading.Condition()
        self.current = -1
        self.failures: dict[int, BaseException] = {}
        self.rounds = [0] * size  # collectives that each has come to
        # of two rounds: the first rank may reach the next before the last has seen this one
        self.values: tuple[list[Any], list[Any]] = ([None] * size, [None] * size)

    def begin(self, rank: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.current == rank)
        if self.failures:
            raise _Abandoned
        if self.watch is not None:
            self.watch.begins(rank)

    def hand_on(self, rank: int, phase: str) -> None:
        if torch.cuda.is_initialized():  # others read what it leaves, on other streams
            torch.cuda.synchronize()
        if self.watch is not None:
            self.watch.ends(rank, phase)
        with self.changed:
            self.current = (rank + 1) % self.size
            self.changed.notify_all()


class Simulated(Ranks):
    """One of several ranks of this process; `simulate` makes them."""

    def __init__(self, rank: int, size: int, device: torch.device, turns: _Turns) -> None:
        self.rank, self.size, self.device = rank, size, device
        self._turns, self._round = turns, 0
        self._span = ""  # what is watched: a phase, or EXCHANGE

    def enter(self, phase: str) -> None:
        watch = self._turns.watch
        if watch is not None:
            watch.ends(self.rank, self._span)
        super().enter(phase)
        self._span = phase
        if watch is not None:
            watch.begins(self.rank)

    def _all(self, value: Any) -> list[Any]:
        turns, values = self._turns, self._turns.values[self._round % 2]
        values[self.rank] = value
        self._round += 1
        turns.rounds[self.rank] = self._round
        turns.hand_on(self.rank, self._span)
        turns.begin(self.rank)
        if min(turns.rounds) < self._round:
            raise RuntimeError("a rank has ended while others wait for it")
        return list(values)

    def _exchange(
        self, x: Tensor, sent: Sequence[int], received: Sequence[int], out: Tensor | None
    ) -> Tensor:
        parts = [parts[self.rank] for parts in self._all(x.split(list(sent)))]
        if [len(part) for part in parts] != list(received):
            raise RuntimeError(f"expected {list(received)} rows, got {[len(p) for p in parts]}")
        return torch.cat(parts) if out is None else torch.cat(parts, out=out)

    def stack(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        rows = self._all(x)
        return torch.stack(rows) if out is None else torch.stack(rows, out=out)

    def tell(self, value: T) -> list[T]:
        return self._all(value)

    def first_only(self, act: Callable[[], T]) -> T | None:
        result, failure = None, None
        if self.rank == 0:
            try:
                result = act()
            except SplatrimError as error:
                failure = error
        if failure is not None:
            self.tell(False)
            raise failure
        if not self.tell(True)[0]:
            raise ToldElsewhere
        return result


def simulate(
    size: int,
    act: Callable[[Ranks], T],
    *,
    device: torch.device | str = "cpu",
    watch: Watch | None = None,
) -> list[T]:
    """Call `act` as each of several ranks; their results in the order of ranks.

    Args:
        size: How many ranks.
        act: What a rank does.
        device: All ranks' device.
        watch: Is told whose turn it is.

    Raises:
        Exception: What the first rank that failed has raised.
    """
    turns, results = _Turns(size, watch), dict[int, T]()

    def run(rank: int) -> None:
        try:
            turns.begin(rank)
            results[rank] = act(Simulated(rank, size, torch.device(device), turns))
        except _Abandoned:
            pass
        except BaseException as error:
            turns.failures[rank] = error
        turns.hand_on(rank, "")

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    with turns.changed:
        turns.current = 0
        turns.changed.notify_all()
    for thread in threads:
        thread.join()
    told = [e for e in turns.failures.values() if not isinstance(e, ToldElsewhere)]
    for error in (*told, *turns.failures.values()):
        raise error
    return [results[rank] for rank in range(size)]
