"""Launches wait for what another process compiles, and for nothing else."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from kernels import Foreseen, caches, foresee
from kernels.runtime.foreseen import await_variant

SOON = 10.0  # seconds: more than a thread ever needs


class Process:
    """Its output, line by line as the test has it."""

    def __init__(self, foreseen: Foreseen) -> None:
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._thread = threading.Thread(target=foreseen.follow, args=(self,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[str]:
        while (line := self._lines.get()) is not None:
            yield f"{line}\n"

    def says(self, *lines: str) -> None:
        for line in lines:
            self._lines.put(line)

    def ends(self) -> None:
        self._lines.put(None)
        self._thread.join(SOON)


def waits(foreseen: Foreseen, label: str) -> threading.Thread:
    thread = threading.Thread(target=foreseen.wait, args=(label,), daemon=True)
    thread.start()
    return thread


def ended(thread: threading.Thread) -> bool:
    thread.join(SOON)
    return not thread.is_alive()


def test_a_planned_variant_is_waited_for() -> None:
    foreseen = Foreseen()
    process = Process(foreseen)
    process.says("plan a(N=1, x=2)", "plan b")
    first = waits(foreseen, "a(N=1, x=2)")
    process.says("planned", "done b")
    assert ended(waits(foreseen, "b"))
    assert first.is_alive()
    process.says("done a(N=1, x=2)")
    assert ended(first) and foreseen.unforeseen == []
    process.ends()


def test_what_nobody_compiles_is_not_waited_for_once_that_is_known() -> None:
    foreseen = Foreseen()
    process = Process(foreseen)
    other = waits(foreseen, "other")
    process.says("plan a")
    other.join(0.05)
    assert other.is_alive()  # it might still be planned
    process.says("planned")
    assert ended(other) and foreseen.unforeseen == ["other"]
    process.ends()


def test_a_process_that_dies_holds_nobody_up() -> None:
    foreseen = Foreseen()
    process = Process(foreseen)
    process.says("plan a", "planned")
    thread = waits(foreseen, "a")
    process.ends()
    assert ended(thread) and foreseen.unforeseen == []


def test_a_silent_process_is_given_up() -> None:
    foreseen = Foreseen(patience=0.05)
    process = Process(foreseen)
    process.says("plan a", "planned")
    assert ended(waits(foreseen, "a")) and foreseen.unforeseen == []
    process.ends()


def test_a_cached_variant_is_not_waited_for() -> None:
    foreseen = Foreseen(["a"])
    foreseen.wait("a")
    assert foreseen.unforeseen == []


def test_only_launches_after_foresee_wait() -> None:
    caches.clear()
    await_variant("a")
    foreseen = Foreseen()
    foreseen.follow(["planned\n"])
    foresee(foreseen)
    await_variant("a")
    assert foreseen.unforeseen == ["a"]
    caches.clear()
    await_variant("b")
    assert foreseen.unforeseen == ["a"]


@pytest.mark.parametrize("line", ["", "what", "plan", "done"])
def test_lines_that_mean_nothing_do_no_harm(line: str) -> None:
    foreseen = Foreseen()
    foreseen.follow([f"{line}\n", "planned\n"])
    foreseen.wait("a")
    assert foreseen.unforeseen == ["a"]
