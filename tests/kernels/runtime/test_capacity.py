"""What the host does while it waits for the counts of a call."""

import pytest
import torch
from torch import Tensor

from kernels.runtime.capacity import UNKNOWN, Capacity, Room


class Stream:
    """A GPU that tells its counts when asked for the third time, and goes on for long after."""

    def __init__(self, told: Tensor, value: int) -> None:
        self.told, self.value, self.asked = told, value, 0

    def query(self) -> bool:
        self.asked += 1
        if self.asked == 3:
            self.told.fill_(self.value)
        return self.asked > 20

    def synchronize(self) -> None:
        raise AssertionError("waits for what was queued after the counts")


def waiting(monkeypatch: pytest.MonkeyPatch, value: int = 3 | 40 << 32) -> tuple[Capacity, Stream]:
    capacity = Capacity(torch.device("cpu"))
    told = capacity.prepare()
    told.fill_(UNKNOWN)
    stream = Stream(told, value)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return capacity, stream


def test_a_long_wait_ends_with_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity, stream = waiting(monkeypatch)
    assert capacity.answer() == Room(3, 40)
    assert stream.asked < 20


def test_counts_that_never_come_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity, _ = waiting(monkeypatch, UNKNOWN)
    with pytest.raises(RuntimeError, match="has not told its counts"):
        capacity.answer()
