"""Printed commands run as they are pasted, however the program was started and from where."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gs.config import resume_command
from gs.invocation import command


def test_resume_command_replaces_an_old_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["some where/train.py"])
    args = shlex.split("-s 'my scene' --start_checkpoint old.pth --eval")
    command = resume_command(args, Path("output/abc"), Path("out/chkpnt7.pth"), 90)
    words = shlex.split(command)
    assert shutil.which(words[0]) == sys.executable
    assert words[1:5] == ["some where/train.py", "-s", "my scene", "--eval"]
    assert words[5:9] == ["-m", "output/abc", "--iterations", "90"]
    assert words[9:] == ["--start_checkpoint", "out/chkpnt7.pth"]
    args = shlex.split("-s x --model-path=m --iterations 5 --start-checkpoint=old.pth")
    command = resume_command(args, Path("unused"), Path("c"), 30_005)
    wanted = "train.py' -s x --model-path=m --iterations 30005 --start_checkpoint c"
    assert command.endswith(wanted)


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
