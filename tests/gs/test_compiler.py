"""When a process is started that compiles, and what it leaves for the next run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gs import compiler
from gs.compiler import cached_labels, note_of, start_compiler, write_note
from splatrim.warmup import count_cores

WORDS = ["-s", "scene", "-m", "out", "--method", "3dgs"]


@pytest.fixture(autouse=True)
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a driver and an empty cache, where nothing is interpreted."""
    monkeypatch.setattr(compiler, "NODES", (tmp_path,))
    monkeypatch.setattr(compiler, "GPUS", tmp_path / "gpus")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("TRITON_INTERPRET", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that were started."""
    commands: list[list[str]] = []

    def start(command: list[str], **_: Any) -> None:
        commands.append(command)

    monkeypatch.setattr(subprocess, "Popen", start)
    return commands


def test_it_is_started_with_the_flags_of_the_training(started: list[list[str]]) -> None:
    start_compiler(WORDS)
    assert started == [[sys.executable, "-m", "splatrim.warmup", "--tell", "--", *WORDS]]


@pytest.mark.parametrize(
    "words",
    ["--device cpu", "--device=cpu", "--no_precompile", "--no-precompile", "--help_all"],
)
def test_it_is_not_started_where_the_flags_say_so(started: list[list[str]], words: str) -> None:
    assert start_compiler([*WORDS, *words.split()]) is None and not started


@pytest.mark.parametrize("name", ["TRITON_INTERPRET", "LOCAL_RANK"])
def test_it_is_not_started_where_the_environment_says_so(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    assert start_compiler(WORDS) is None and not started


def test_it_is_not_started_without_a_driver(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "NODES", (Path("/nowhere"),))
    assert start_compiler(WORDS) is None and not started


def test_a_noted_training_needs_none(started: list[list[str]]) -> None:
    write_note(WORDS, 90, ["b", "a"])
    assert start_compiler(["--method", "3dgs", "-s", "other", "--seed", "7"]) is None
    assert not started
    start_compiler(["--method", "lp-3dgs"])
    assert len(started) == 1
    assert cached_labels(90) == {"a", "b"} and cached_labels(80) == set()


def test_lenses_are_those_of_a_scene() -> None:
    native = ["--distortion", "native", "-s"]
    assert note_of([*native, "a"]) != note_of([*native, "b"])
    assert note_of([*native, "a", "--seed", "1"]) == note_of([*native, "a", "--seed", "2"])


def test_another_gpu_or_other_sources_have_notes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = note_of(WORDS)
    assert before == note_of(WORDS)
    model = tmp_path / "gpus" / "0000:01:00.0" / "information"
    model.parent.mkdir(parents=True)
    model.write_text("Model: \t NVIDIA H200\nIRQ: 5\n")
    other = note_of(WORDS)
    assert other != before and other.parent == before.parent
    (tmp_path / "kernels").mkdir()
    monkeypatch.setattr(compiler, "ROOT", tmp_path)
    assert note_of(WORDS).parent != before.parent


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"capability": 90}', '{"capability": 90'])
def test_a_broken_note_is_left_out(text: str) -> None:
    write_note(WORDS, 90, ["a"])
    note_of(WORDS).with_name("other.json").write_text(text)
    assert cached_labels(90) == {"a"}


def test_what_a_training_waits_for_is_told_and_noted(tmp_path: Path) -> None:
    """In the interpreter there is nothing to compile; all else goes its way."""
    flags = ["--capability", "90", "--processes", "2", "--tell", "--"]
    words = ["--method", "3dgs", "--iterations", "300"]
    done = subprocess.run(
        [sys.executable, "-m", "splatrim.warmup", *flags, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(compiler.ROOT), "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
    said = [line.split(" ", 1) for line in done.stdout.splitlines()]
    planned = [label for what, *label in said if what == "plan"]
    assert said[len(planned)] == ["planned"] and len(planned) > 30
    assert sorted(planned) == sorted(label for what, *label in said if what == "done")
    assert cached_labels(90) == {label for (label,) in planned}
    assert note_of(words).is_file()


def test_the_words_of_a_training_reach_the_warmup(tmp_path: Path) -> None:
    """A wrong flag of the training is the warmup's error; nothing is compiled for it."""
    words = ["--capability", "90", "--", "--method", "nothing"]
    done = subprocess.run(
        [sys.executable, "-m", "splatrim", "warmup", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(compiler.ROOT)},
    )
    assert done.returncode == 2 and "unknown --method 'nothing'" in done.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("text", "most"), [("150000 100000\n", 1), ("max 100000\n", None)])
def test_the_quota_of_a_container_counts(tmp_path: Path, text: str, most: int | None) -> None:
    n = len(os.sched_getaffinity(0))
    quota = tmp_path / "cpu.max"
    assert count_cores(quota) == n
    quota.write_text(text)
    assert count_cores(quota) == (most or n)
