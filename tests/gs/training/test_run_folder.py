"""A folder holds one run: another is refused or set aside, and one process trains into it."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from gs.errors import SplatrimError
from gs.files import atomic_write
from gs.run_record import RunRecord, find_model, model_file, read_record, write_record
from gs.training.run_folder import LOCK, RunFolder


def train(out: Path, *iterations: int, **options: Any) -> RunFolder:
    """What a training does to its folder."""
    folder = RunFolder(out, **options)
    folder.check()
    with folder.held():
        for iteration in iterations:
            path = model_file(out, iteration)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(folder.run)
            folder.add_model(iteration)
            (out / f"chkpnt{iteration}.pth").write_text(folder.run)
            folder.add_checkpoint(iteration)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_another_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "out", 40)
    before = contents(tmp_path)
    with pytest.raises(SplatrimError, match="holds another run: .*--overwrite"):
        train(tmp_path / "out", 20)
    stranger = {"run": "other", "step": 10}
    with pytest.raises(SplatrimError, match="holds another run"):
        train(tmp_path / "out", 20, start=stranger)
    assert contents(tmp_path) == before
    assert LOCK not in before


def test_overwriting_sets_the_old_run_aside_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(out, 40)
    (out / "notes.txt").write_text("mine")
    old = contents(out)
    train(out, 20, overwrite=True)
    assert contents(tmp_path / "out.1") == old
    assert find_model(out)[0] == 20 and not (out / "notes.txt").exists()
    new = contents(out)
    train(out, 7, overwrite=True)
    assert contents(tmp_path / "out.2") == new and contents(tmp_path / "out.1") == old


def test_what_the_run_reads_is_not_set_aside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(out, 40)
    for path in (out, out / "scene", model_file(out, 40)):
        with pytest.raises(SplatrimError, match="would be set aside: give another -m"):
            train(out, 20, overwrite=True, inputs=(path,))
    train(out, 20, overwrite=True, inputs=(tmp_path / "scene",))


def test_a_resumed_run_stays_and_forgets_what_came_after(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = train(out, 10, 20, 40)
    second = train(out, 30, start={"run": first.run, "step": 20})
    assert second.run == first.run
    record = read_record(out)
    assert record is not None
    assert list(record.models) == [10, 20, 30] and record.checkpoints == (10, 20, 30)
    assert record.continues is None
    with pytest.raises(SplatrimError, match="--overwrite would set aside .* which the run goes on"):
        train(out, 30, start={"run": first.run, "step": 20}, overwrite=True)


def test_going_on_elsewhere_is_another_run(tmp_path: Path) -> None:
    first = train(tmp_path / "a", 10)
    second = train(tmp_path / "b", 20, start={"run": first.run, "step": 10})
    record = read_record(tmp_path / "b")
    assert record is not None and record.run == second.run != first.run
    assert record.continues == {"run": first.run, "step": 10}


def test_a_run_that_saved_nothing_makes_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    train(out)
    (out / "train.log").write_text("it broke")
    train(out, 20)
    assert (tmp_path / "out.1" / "train.log").read_text() == "it broke"
    assert f"is now {tmp_path / 'out.1'}" in caplog.text
    assert not (out / "train.log").exists() and find_model(out)[0] == 20


def test_folders_without_a_record(tmp_path: Path) -> None:
    """Of Inria's program, or of an earlier version: a checkpoint in it may go on there."""
    out = tmp_path / "out"
    for iteration in (10, 40):
        model_file(out, iteration).parent.mkdir(parents=True)
        model_file(out, iteration).touch()
        (out / f"chkpnt{iteration}.pth").touch()
    with pytest.raises(SplatrimError, match="holds another run"):
        train(out, 20)
    with pytest.raises(SplatrimError, match="holds another run"):
        train(out, 20, start={"step": 10}, came_from=tmp_path / "chkpnt10.pth")
    train(out, 20, start={"step": 10}, came_from=out / "chkpnt10.pth")
    record = read_record(out)
    assert record is not None
    assert list(record.models) == [10, 20] and record.checkpoints == (10, 20)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    train(tmp_path, 7)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def _hold(out: Path, ready: Any) -> None:
    with RunFolder(out).held(), atomic_write(out / "model.ply") as file:
        file.write(b"half")
        file.flush()
        ready.set()
        time.sleep(60)


def start_holder(out: Path) -> Any:
    """A process that trains into `out` and is in the midst of saving."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(out, ready))
    process.start()
    assert ready.wait(60)
    return process


def test_one_process_at_a_time_and_dead_ones_do_not_count(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start_holder(out)
    try:
        before = contents(out)
        for overwrite in (False, True):
            folder = RunFolder(out, overwrite=overwrite)
            sentence = f"process {process.pid} on .* is training into {out}: wait"
            with pytest.raises(SplatrimError, match=sentence):
                folder.check()
            with pytest.raises(SplatrimError, match=sentence), folder.held():
                pass
        assert contents(out) == before
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    left = [path.name for path in out.iterdir()]
    assert LOCK in left and any(name.endswith(".tmp") for name in left)
    record = read_record(out)
    assert record is not None
    train(out, 20, start={"run": record.run, "step": 10})
    left = [path.name for path in out.iterdir()]
    assert sorted(left) == ["chkpnt20.pth", "point_cloud", "run.json"]


def test_temporaries_of_the_living_stay(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    killed = tmp_path / "test" / ".00000.png.0123abcd.tmp"
    killed.touch()
    (tmp_path / ".mine.tmp").touch()
    with atomic_write(tmp_path / "test" / "00001.png") as file:
        file.write(b"view")
        train(tmp_path, 7)
    assert (tmp_path / "test" / "00001.png").read_bytes() == b"view"
    assert not killed.exists() and (tmp_path / ".mine.tmp").exists()


def test_saving_without_training_touches_no_record(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.add_model(3)
    assert list(tmp_path.iterdir()) == []
    write_record(tmp_path, RunRecord("other", {5: "x"}))
    folder.add_model(4)
    record = read_record(tmp_path)
    assert record is not None and record.run == "other" and list(record.models) == [5]


def test_a_folder_that_cannot_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "out", 40)

    def busy(self: Path, target: Path) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(SplatrimError, match="cannot set aside .*: Device or resource busy"):
        train(tmp_path / "out", 20, overwrite=True)
    assert find_model(tmp_path / "out")[0] == 40
