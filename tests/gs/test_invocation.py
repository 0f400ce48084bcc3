"""Printed commands run as they are pasted, however the program was started and from where."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gs.config import resume_arguments, resume_command
from gs.invocation import command


def test_resume_command_replaces_an_old_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["some where/train.py"])
    args = shlex.split("-s 'my scene' --start_checkpoint old.pth --eval")
    command = resume_command(args, Path("output/abc"), Path("out/chkpnt7.pth"))
    words = shlex.split(command)
    assert shutil.which(words[0]) == sys.executable
    assert words[1:5] == ["some where/train.py", "-s", "my scene", "--eval"]
    assert words[5:7] == ["-m", "output/abc"]
    assert words[7:] == ["--start_checkpoint", "out/chkpnt7.pth"]
    args = shlex.split("-s x --model-path=m --start-checkpoint=old.pth")
    command = resume_command(args, Path("unused"), Path("c"))
    assert command.endswith("train.py' -s x --model-path=m --start_checkpoint c")
    command = resume_command(args, Path("unused"), Path("c"), n_ranks=4)
    assert command.startswith("torchrun --nproc_per_node 4 'some where/train.py' -s x ")


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        ("--iterations 5", "--iterations 30005"),
        ("--iterations=5", "--iterations=30005"),
        ("--iterations 32000", "--iterations 32000"),
        ("--iterations", "--iterations"),
        ("", ""),
    ],
)
def test_iterations_after_a_ply_are_counted_on(given: str, counted: str) -> None:
    args = [*shlex.split("-m m --start_ply a.ply"), *given.split()]
    words = resume_arguments(args, Path("m"), Path("c"))
    assert words == ["-m", "m", *counted.split(), "--start_checkpoint", "c"]
    without = resume_arguments(["-m", "m", *given.split()], Path("m"), Path("c"))
    assert without == ["-m", "m", *given.split(), "--start_checkpoint", "c"]


@pytest.mark.parametrize("started", ["train.py", "gs/render.py", "notebook"])
def test_a_printed_command_runs_from_another_folder(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(repo / started)])
    # as where nothing is installed
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path) != repo])
    line = command("render", "-m", "no folder")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: no such folder: no folder\n"


def test_the_console_script_is_named_as_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "bin" / "splatrim"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", str(script.parent))
    assert command("view", "-m", Path("a b")) == "splatrim view -m 'a b'"
    monkeypatch.setenv("PATH", "/nowhere")
    assert command("view") == f"{shlex.quote(str(script))} view"
