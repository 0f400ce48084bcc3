"""Programs go on when nobody reads them, and end in order when they are told to."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gs.streams import SteadyStream

WRITES = """
import sys
from gs.errors import run_cli
def main():
    for _ in range(2000):
        print("x" * 100, flush=True)
        print("y" * 100, file=sys.stderr, flush=True)
    open({path!r}, "w").write("done")
run_cli(main)
"""
WAITS = """
import time
from gs.errors import run_cli
from gs.files import atomic_write
def main():
    with atomic_write({path!r}) as file:
        file.write(b"half")
        print("ready", flush=True)
        time.sleep(60)
run_cli(main)
"""


def start(repo: Path, program: str, path: Path, before: str = "", after: str = "") -> str:
    """A shell line that runs `program` with its output at `path`."""
    source = path.with_suffix(".py")
    source.write_text(program.format(path=str(path)))
    return f"cd {repo} && {before}PYTHONPATH=. {sys.executable} {source} {after}"


@pytest.mark.parametrize(
    "after", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "| head -n 1", "2>&1 | head -n 1"]
)
def test_closed_streams_fail_nothing(repo: Path, tmp_path: Path, after: str) -> None:
    line = start(repo, WRITES, tmp_path / "out", after=after)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr
    assert (tmp_path / "out").read_text() == "done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_leave_nothing_by_halves(repo: Path, tmp_path: Path, number: int) -> None:
    line = start(repo, WAITS, tmp_path / "out", before="exec env ")
    process = subprocess.Popen(
        ["bash", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert len(said.splitlines()) == 1 and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["out.py"]


def test_nohup_is_respected(repo: Path, tmp_path: Path) -> None:
    line = start(repo, WAITS, tmp_path / "out", before="trap '' HUP; exec env ")
    process = subprocess.Popen(["bash", "-c", line], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=30)


def test_characters_that_a_terminal_lacks_are_spelt_out() -> None:
    raw = io.BytesIO()
    stream = SteadyStream(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("5×4")
    stream.flush()
    assert raw.getvalue() == b"5\\xd74"


def test_a_lost_terminal_is_left() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = SteadyStream(os.fdopen(writer, "w"))
    for _ in range(3):
        assert stream.write("line\n") == 5
        stream.flush()
