"""The command line of a run in blocks: killed, gone on with, refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gs.blocks.manifest import read_manifest
from gs.model.ply import load_ply
from gs.run_record import model_file

FLAGS = "--eval --blocks 2 --block_interval 12 --iterations 60 --method 3dgs --quiet"
PATIENCE = 120.0  # seconds; a busy machine


@pytest.fixture
def command(repo: Path, city: Path) -> Callable[..., list[str]]:
    def words(out: Path, *more: str, n_ranks: int = 1) -> list[str]:
        flags = ["-s", str(city), "-m", str(out), "--device", "cpu", *FLAGS.split(), *more]
        launch = [sys.executable]
        if n_ranks > 1:
            launch += ["-m", "torch.distributed.run", "--standalone"]
            launch += [f"--nproc_per_node={n_ranks}"]
        return [*launch, str(repo / "train.py"), *flags]

    return words


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    tmp_path: Path, command: Callable[..., list[str]]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run(command(whole))
    assert done.returncode == 0, done.stderr
    words = command(killed, "--checkpoint_interval", "10")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + PATIENCE
    while not (killed / "blocks" / "manifest.json").is_file():
        assert process.poll() is None and time.monotonic() < ends
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_manifest(killed).iteration < 60
    # two ranks go on with what one has begun
    resumed = run(command(killed, "--start_checkpoint", str(killed / "blocks"), n_ranks=2))
    assert resumed.returncode == 0, resumed.stderr
    a, b = (load_ply(model_file(folder, 60)) for folder in (whole, killed))
    assert all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--blocks", "9"], "--blocks 9: the scene has 21 training cameras; give at most 1 block"),
        (["--start_ply", "x.ply"], "--start_ply prunes a finished model in one piece"),
        (["--block_init", "whole"], "--block_init whole needs --surroundings none"),
        (["--start_checkpoint", "nothing"], "nothing holds no blocks: go on from the folder"),
    ],
)
def test_what_does_not_go_with_blocks_is_a_sentence(
    tmp_path: Path,
    command: Callable[..., list[str]],
    more: list[str],
    sentence: str,
) -> None:
    done = run(command(tmp_path / "out", *more))
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
