"""The latest model is the one that the run's own record names."""

import json
from pathlib import Path

import pytest

from gs.errors import SplatrimError
from gs.run_record import (
    RunRecord,
    find_model,
    has_saved,
    holds_run,
    model_file,
    read_record,
    saved_checkpoints,
    write_record,
)


def save(folder: Path, *iterations: int) -> None:
    for iteration in iterations:
        path = model_file(folder, iteration)
        path.parent.mkdir(parents=True)
        path.touch()


def test_models_of_other_runs_are_not_found(tmp_path: Path) -> None:
    save(tmp_path, 7, 20, 40)
    (tmp_path / "chkpnt40.pth").touch()
    (tmp_path / "chkpnt10.pth").touch()
    write_record(tmp_path, RunRecord("b", {7: "x", 20: "y"}, (10,)))
    assert find_model(tmp_path) == (20, model_file(tmp_path, 20))
    assert find_model(tmp_path, 7)[0] == 7
    assert list(saved_checkpoints(tmp_path)) == [10]
    with pytest.raises(SplatrimError, match="no model of iteration 40; it has 7, 20"):
        find_model(tmp_path, 40)
    model_file(tmp_path, 20).unlink()
    assert find_model(tmp_path)[0] == 7


def test_a_record_comes_back(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    record = RunRecord("a", {30: "m", 7: "n"}, (7, 30), {"run": None, "step": 3})
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert record.until(29) == RunRecord("a", {7: "n"}, (7,), record.continues)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"run": 1, "models": {}, "checkpoints": []}',
        '{"run": "a", "models": {"x": "m"}, "checkpoints": []}',
        '{"run": "a", "models": {"7": 3}, "checkpoints": []}',
        '{"run": "a", "models": {}, "checkpoints": ["7"]}',
        '{"run": "a", "models": {}, "checkpoints": [], "continues": 4}',
        "[" * 100_000,
        "{",
    ],
)
def test_broken_records(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SplatrimError, match=r"run\.json"):
        find_model(tmp_path)


def test_what_holds_a_run(tmp_path: Path) -> None:
    assert not holds_run(tmp_path) and not holds_run(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "config.json").write_text('{"window": 3}')
    assert not holds_run(tmp_path)
    for name, text in (
        ("cfg_args", ""),
        ("history.json", ""),
        ("run.json", ""),
        ("chkpnt7.pth", ""),
        ("config.json", json.dumps({"model_path": "x", "iterations": 3})),
        ("point_cloud/iteration_7/point_cloud.ply", ""),
    ):
        folder = tmp_path / f"with {Path(name).name}"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
        assert holds_run(folder), name
        assert has_saved(folder) == (".p" in name)


def test_models_are_found_by_number(tmp_path: Path) -> None:
    with pytest.raises(SplatrimError, match="no saved model"):
        find_model(tmp_path)
    for name in ("iteration_9", "iteration_10", "iteration_x", "iteration_200"):
        (tmp_path / "point_cloud" / name).mkdir(parents=True)
        if name != "iteration_200":
            (tmp_path / "point_cloud" / name / "point_cloud.ply").touch()
    assert find_model(tmp_path)[0] == 10
    assert find_model(tmp_path, 9)[1].parent.name == "iteration_9"
    with pytest.raises(SplatrimError, match="no model of iteration 11; it has 9, 10"):
        find_model(tmp_path, 11)
