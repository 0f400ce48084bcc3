"""Ranks that train one model together: one process alone, several processes, or several simulated.

    Solo           the process itself; every collective returns what it is given
    Distributed    processes under torchrun (gs.distributed.processes)
    Simulated      threads of one process that take turns (gs.distributed.simulated)

A rank's code is the same under each. Collectives are called by all ranks in the same order. Those
that move tensors make no host wait where NCCL moves them; those of plain values do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar, cast

import torch
from torch import Tensor

from ..errors import SplatrimError, ToldElsewhere
from .clock import PhaseClock

T = TypeVar("T")

EXCHANGE = "exchange"  # in place of a phase, where ranks talk


class Ranks(ABC):
    """A group of ranks that works on one model.

    Attributes:
        rank: This one, from 0.
        size: How many there are.
        device: Where this one's tensors live.
        step: Iteration that the rank is at, for what is said when another falls silent.
        phase: What it does now, for those who measure; `enter` sets it.
        sent_bytes: What it has sent to others in exchanges.
    """

    rank: int
    size: int
    device: torch.device
    step: int = 0
    phase: str = ""
    sent_bytes: int = 0

    @cached_property
    def clock(self) -> PhaseClock:
        """Seconds by phase."""
        return PhaseClock(self.device)

    def enter(self, phase: str) -> None:
        """A phase of the step begins, or with EXCHANGE what lies between two."""
        self.clock.enter(phase)
        if phase != EXCHANGE:
            self.phase = phase

    def exchange(
        self,
        x: Tensor,
        sent: Sequence[int],
        received: Sequence[int],
        out: Tensor | None = None,
    ) -> Tensor:
        """Send rows to every rank and get rows of every rank; nothing waits.

        Args:
            x: Rows for rank 0, then for rank 1, ... [sum(sent), ...]
            sent: How many rows each rank gets.
            received: How many rows each rank sends here.
            out: Where they go; nobody sends it. [sum(received), ...]

        Returns:
            Rows of rank 0, then of rank 1, ... [sum(received), ...]
        """
        per_row = x[:1].numel() * x.element_size() if len(x) else 0
        self.sent_bytes += (sum(sent) - sent[self.rank]) * per_row
        return self._exchange(x, sent, received, out)

    @abstractmethod
    def _exchange(
        self, x: Tensor, sent: Sequence[int], received: Sequence[int], out: Tensor | None
    ) -> Tensor: ...

    @abstractmethod
    def stack(self, x: Tensor, out: Tensor | None = None) -> Tensor:  # [...] -> [W, ...]
        """Every rank's tensor, of one shape, in the order of ranks, in `out`; nothing waits."""

    @abstractmethod
    def tell(self, value: T) -> list[T]:
        """Every rank's plain value, in the order of ranks. Waits."""

    @abstractmethod
    def first_only(self, act: Callable[[], T]) -> T | None:
        """Call `act` on rank 0 while the others wait, however long that takes.

        Returns:
            Its result on rank 0, else None.

        Raises:
            SplatrimError: It failed, on rank 0.
            ToldElsewhere: The same on the others.
        """

    def wait(self, event: torch.cuda.Event) -> None:
        """Wait until the device has come to an event."""
        event.synchronize()

    def gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's rows, however many, in the order of ranks. Waits."""
        counts = self.tell(len(x))
        most = max(counts)
        padded = x.new_zeros(most, *x.shape[1:])
        padded[: len(x)] = x
        return [rows[:n] for rows, n in zip(self.stack(padded), counts, strict=True)]

    def move(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Send the first counts[0] rows to rank 0, the next to rank 1, ...; what comes. Waits."""
        table = self.tell(list(counts))
        return self.exchange(x, counts, [row[self.rank] for row in table])

    def agree(self, value: T) -> T:
        """Rank 0's plain value. Waits."""
        return self.tell(value)[0]

    def together(self, act: Callable[[], T]) -> T:
        """Call `act` on every rank; if it fails on one, fail on all, and let one rank say so.

        Raises:
            SplatrimError: On the first rank that failed.
            ToldElsewhere: On the others.
        """
        try:
            result, error = act(), None
        except SplatrimError as failure:
            result, error = None, failure
        failed = [rank for rank, ok in enumerate(self.tell(error is None)) if not ok]
        if not failed:
            return cast("T", result)
        if self.rank == failed[0]:
            assert error is not None
            raise error
        raise ToldElsewhere

    def tell_failure(self) -> None:
        """This rank ends and has said why: the others need not say that it is lost."""
        return None

    def close(self) -> None:
        """Leave the group."""
        return None


class Solo(Ranks):
    """The only rank."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.rank, self.size, self.device = 0, 1, torch.device(device)

    def _exchange(
        self, x: Tensor, sent: Sequence[int], received: Sequence[int], out: Tensor | None
    ) -> Tensor:
        return x if out is None else out.copy_(x)

    def stack(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return x[None] if out is None else out.copy_(x[None])

    def tell(self, value: T) -> list[T]:
        return [value]

    def first_only(self, act: Callable[[], T]) -> T | None:
        return act()
