"""Logs: what is in them, and that a disk which takes no more of them ends no training."""

import logging
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gs.errors import SplatrimError
from gs.training.event_log import EventLog
from gs.training.tracker import Tracker

FULL_DISK = """
import logging, resource, sys, torch
from pathlib import Path
from gs.logs import LogFile, show_log
from gs.training.event_log import EventLog
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
show_log(quiet=True)
logger = logging.getLogger("splatrim")
folder = Path(sys.argv[1])
logger.addHandler(LogFile(folder / "train.log"))
log = EventLog(folder, 1)
for step in range(300):
    log.scalar("loss", 0.5, step)
    log.image("view", torch.zeros(8, 8, 3, dtype=torch.uint8), step)
    logger.info("x" * 100)
log.close()
print("trained")
"""


def test_what_is_logged(tmp_path: Path) -> None:
    log = EventLog(tmp_path, 1)
    log.scalar("loss", 0.25, 3)
    log.image("view", torch.zeros(4, 6, 3, dtype=torch.uint8), 3)
    log.histogram("opacities", torch.rand(10), 3)
    log.histogram("nothing", torch.full((3,), float("nan")), 3)
    log.close()
    log.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(3, 0.25)]
    assert [(e.width, e.height) for e in found.Images("view")] == [(6, 4)]
    assert found.Tags()["histograms"] == ["opacities"]


def test_a_full_disk_is_told_once_and_ends_nothing(repo: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr[-500:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(lines) == len(done.stderr.splitlines()) == 2, done.stderr
    assert any("TensorBoard" in line for line in lines)
    assert any("train.log" in line for line in lines)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_no_place_for_events(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("mine")
    with caplog.at_level(logging.WARNING):
        log = EventLog(tmp_path / "file", 1)
        log.scalar("loss", 0.25, 3)
        log.close()
    assert len(caplog.records) == 1


def test_no_place_for_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train.log").mkdir()
    with Tracker(3, quiet=True) as tracker:
        tracker.open(tmp_path, 1)
        tracker.info("trained")
    assert "there is no " in caplog.text and "trained" in caplog.text


def test_a_history_that_has_a_later_chance_fails_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "history.json").mkdir()
    tracker = Tracker(3, quiet=True)
    tracker.write_history(tmp_path / "history.json", last=False)
    assert "cannot write" in caplog.text
    with pytest.raises(SplatrimError, match="cannot write .*history.json"):
        tracker.write_history(tmp_path / "history.json")


def test_the_bar_of_post_training_counts_what_is_to_be_done(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Tracker(30_020, quiet=False, begin=30_000) as tracker:
        tracker.open(tmp_path, 30_011)
        tracker.record(torch.full((1,), 0.5), torch.full((2,), 0.5))
        tracker.log(30_020, 1, {})
    shown = capfd.readouterr().err
    assert "10/20" in shown and "20/20" in shown
