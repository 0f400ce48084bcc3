"""Runs of several ranks: checkpoints, stopping, buffers that are too small, bytes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.errors import SplatrimError
from gs.run_record import saved_checkpoints
from gs.training.checkpoint_shards import load_shards, remove_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., list[Any]]


def joined(parts: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The rows of all ranks, by id."""
    order = torch.cat([part["rows.ids"] for part in parts]).argsort()
    names = [name for name, x in parts[0].items() if isinstance(x, Tensor)]
    return {name: torch.cat([part[name] for part in parts])[order] for name in names}


@pytest.fixture(scope="module")
def nine(jobs: Any, small_scene: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of three ranks, between two densifications."""
    from gs.distributed.simulated import simulate

    out = str(tmp_path_factory.mktemp("nine"))
    act = lambda ranks: jobs.resume(ranks, small_scene, out, None, 9)  # noqa: E731
    return simulate(3, act)[0]["path"]


def test_as_many_ranks_resume_bit_for_bit(
    simulated: Run, small_scene: str, tmp_path: Path, nine: str
) -> None:
    want = simulated(3, "resume", small_scene, str(tmp_path / "a"), None, 14)
    got = simulated(3, "resume", small_scene, str(tmp_path / "b"), nine, 14)
    for a, b in zip(got, want, strict=True):
        for name, x in b.items():
            if name != "path":
                same = torch.equal(a[name], x) if isinstance(x, Tensor) else a[name] == x
                assert same, name


def test_other_numbers_of_ranks_resume(
    simulated: Run, small_scene: str, tmp_path: Path, nine: str
) -> None:
    want = simulated(3, "resume", small_scene, str(tmp_path / "a"), None, 11)
    ten = simulated(2, "resume", small_scene, str(tmp_path / "b"), nine, 10)[0]["path"]
    got = simulated(4, "resume", small_scene, str(tmp_path / "c"), ten, 11)
    assert got[0]["next_id"] == want[0]["next_id"] and got[0]["n"] == want[0]["n"]
    a, b = joined(got), joined(want)
    assert torch.equal(a["rows.ids"], b["rows.ids"])
    for name, x in b.items():
        assert (a[name] - x).abs().max() <= 1e-5 * x.abs().max().clamp_min(1e-30), name
    assert "exp_avg.means" in a


def test_one_process_reads_shards(nine: str) -> None:
    state = load_shards(Path(nine))
    assert state["step"] == 9 and not state["is_shard"]
    ids = state["rows"]["ids"]
    assert (ids.diff() > 0).all() and len(ids) == len(state["params"]["means"])
    assert state["optimizer"]["means"]["exp_avg"].shape == state["params"]["means"].shape
    parts = [load_shards(Path(nine), rank, 4)["rows"]["ids"] for rank in range(4)]
    assert torch.equal(torch.cat(parts).sort().values, ids)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("manifest", "manifest.json is missing .* the last complete one is .*chkpnt9$"),
        ("truncated", r"shard_001.pth is damaged"),
        ("absent", r"shard_001.pth is missing"),
        ("json", "manifest.json"),
    ],
)
def test_damage_is_a_sentence(nine: str, tmp_path: Path, damage: str, sentence: str) -> None:
    shutil.copytree(nine, tmp_path / "chkpnt9")
    folder, shard = tmp_path / "chkpnt12", tmp_path / "chkpnt12" / "shard_001.pth"
    shutil.copytree(nine, folder)
    if damage == "manifest":
        (folder / "manifest.json").unlink()
    elif damage == "json":
        (folder / "manifest.json").write_text(json.dumps({"format": "other"}))
    elif damage == "absent":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(SplatrimError, match=sentence):
        load_shards(folder)


def test_a_stray_file_is_left_out(
    nine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "chkpnt9"
    shutil.copytree(nine, folder)
    shutil.copy(folder / "shard_000.pth", folder / "shard_007.pth")
    n = len(load_shards(Path(nine))["rows"]["ids"])
    assert len(load_shards(folder)["rows"]["ids"]) == n
    assert "shard_007.pth is not of this checkpoint" in caplog.text


def test_a_checkpoint_is_removed_whole(nine: str, tmp_path: Path) -> None:
    shutil.copytree(nine, tmp_path / "chkpnt9")
    assert [*saved_checkpoints(tmp_path)] == [9]
    remove_checkpoint(tmp_path, 9)
    assert not [*tmp_path.iterdir()]


def test_all_stop_where_one_is_asked_to(simulated: Run, small_scene: str, tmp_path: Path) -> None:
    found = simulated(3, "stop", small_scene, str(tmp_path))
    assert {x["step"] for x in found} == {8}  # it asks after step 6, and steps have two images
    assert {x["path"] for x in found} == {str(tmp_path / "chkpnt8")}
    assert [*saved_checkpoints(tmp_path)] == [8]


def test_what_does_not_fit_is_taken_again(simulated: Run, small_scene: str, tmp_path: Path) -> None:
    want = simulated(3, "train", small_scene, str(tmp_path / "a"), steps=2, iterations=99)
    got = simulated(3, "overflow", small_scene, str(tmp_path / "b"))
    assert {x["takes"] for x in got} == {2} and all(x["steps"] == {1.0} for x in got)
    assert got[0]["loss"] == want[0]["loss"]
    a, b = joined(got), joined(want)
    for name, x in b.items():
        assert torch.equal(a[name], x), name


@pytest.mark.parametrize("n", [2, 4])
def test_bytes_are_those_of_records_and_images(
    simulated: Run, small_scene: str, tmp_path: Path, n: int
) -> None:
    for found in simulated(n, "sent", small_scene, str(tmp_path)):
        assert found["sent"] == found["want"] > 0


def test_ranks_have_the_same_settings(simulated: Run, small_scene: str, tmp_path: Path) -> None:
    found = simulated(3, "differing", small_scene, str(tmp_path / "out"))
    assert found == [
        "rank 1 has --lambda_mask 0.001 and rank 0 has 0.0005: start all ranks with the same"
        " command",
        "exit 2",
        "exit 2",
    ]
    assert not (tmp_path / "out").exists()
