"""The programs as a user runs them: nobody reads their output, or somebody ends them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gs.data.demo import write_demo_scene
from gs.run_record import find_model, saved_checkpoints
from gs.training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "demo"
    write_demo_scene(folder, views=9, width=48, height=36)
    return folder


@pytest.fixture(scope="module")
def out(repo: Path, scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose stdout and stderr nobody read."""
    out = tmp_path_factory.mktemp("run") / "out"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell(repo, scene, out, 12)} 2>&1 | head -c 1"],
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 0
    return out


def shell(repo: Path, scene: Path, out: Path, iterations: int) -> str:
    line = f"OMP_NUM_THREADS=1 exec {sys.executable} {repo}/train.py -s {scene} -m {out} --eval"
    return f"{line} --device cpu --iterations {iterations} --init_points 60"


def test_a_run_that_nobody_reads(out: Path) -> None:
    assert find_model(out)[0] == 12


def test_closed_streams(repo: Path, scene: Path, tmp_path: Path) -> None:
    line = f"{shell(repo, scene, tmp_path / 'out', 12)} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], timeout=200).returncode == 0
    assert find_model(tmp_path / "out")[0] == 12


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_lost_terminal_saves_a_checkpoint(
    repo: Path, scene: Path, tmp_path: Path, number: int
) -> None:
    out = tmp_path / "out"
    reader, writer = os.pipe()
    process = subprocess.Popen(
        ["bash", "-c", shell(repo, scene, out, 3000)], stdout=writer, stderr=writer
    )
    os.close(writer)
    deadline = time.monotonic() + 120
    while not (out / "train.log").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.close(reader)  # what is written from here on fails
    process.send_signal(number)
    assert process.wait(120) == 130
    (checkpoint,) = saved_checkpoints(out).values()
    assert 0 < load_checkpoint(checkpoint)["step"] < 3000
    assert not list(out.rglob(".*"))


def test_rendering_ends_in_order(repo: Path, out: Path) -> None:
    words = [sys.executable, "-m", "gs.render", "-m", str(out), "--device", "cpu", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, cwd=repo, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("test/*/renders/00000.png")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.terminate()
    _, said = process.communicate(timeout=60)
    # it may have been done already
    assert (process.returncode, said) in ((143, "terminated\n"), (0, ""))
    assert not list(out.rglob(".*.tmp"))
