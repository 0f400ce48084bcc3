"""What the host does while it waits for the counts of a call."""

import pytest
import torch
from torch import Tensor

from kernels import Counts
from kernels.runtime.capacity import UNKNOWN, LearnedCapacity


class Stream:
    """A GPU that writes its counts at the third query, and goes on for long after."""

    def __init__(self, word: Tensor, value: int) -> None:
        self.word, self.value, self.queries = word, value, 0

    def query(self) -> bool:
        self.queries += 1
        if self.queries == 3:
            self.word.fill_(self.value)
        return self.queries > 20

    def synchronize(self) -> None:
        raise AssertionError("waits for what was queued after the counts")


def waiting(
    monkeypatch: pytest.MonkeyPatch, value: int = 3 | 40 << 32
) -> tuple[LearnedCapacity, Stream]:
    learned = LearnedCapacity(torch.device("cpu"))
    word = learned.expect()
    word.fill_(UNKNOWN)
    stream = Stream(word, value)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return learned, stream


def test_a_long_wait_ends_with_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    learned, stream = waiting(monkeypatch)
    assert learned.learn() == Counts(3, 40)
    assert stream.queries < 20


def test_counts_that_never_come_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    learned, _ = waiting(monkeypatch, UNKNOWN)
    with pytest.raises(RuntimeError, match="has not written its counts"):
        learned.learn()
