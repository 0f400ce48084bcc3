"""The command line of a run in blocks: killed, gone on with, refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from gs.blocks.manifest import read_manifest
from gs.errors import run_cli
from gs.model.ply import load_ply
from gs.run_record import model_file

FLAGS = "--eval --blocks 2 --block_interval 12 --iterations 60 --method 3dgs --quiet"
PATIENCE = 120.0  # seconds; a busy machine


@pytest.fixture
def command(city: Path) -> Callable[..., list[str]]:
    def words(out: Path, *more: str) -> list[str]:
        return ["-s", str(city), "-m", str(out), "--device", "cpu", *FLAGS.split(), *more]

    return words


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    repo: Path,
    tmp_path: Path,
    command: Callable[..., list[str]],
    processes: Callable[..., Any],
    one_thread: None,
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train.main(command(whole))
    words = [sys.executable, str(repo / "train.py")]
    words += command(killed, "--checkpoint_interval", "10")
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
    words = command(killed, "--start_checkpoint", str(killed / "blocks"))
    for status, told in processes(2, "command", words):
        assert status == 0, told
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
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    sentence: str,
) -> None:
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: train.main(command(tmp_path / "out", *more)))
    told = capsys.readouterr().err
    assert end.value.code == 2 and sentence in told, told
    assert not (tmp_path / "out").exists()
