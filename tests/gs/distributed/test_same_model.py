"""The model that several ranks train is the one that one rank trains; what processes do at all.

They stand here together, as starting them takes longest.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.run_record import saved_checkpoints
from gs.training.checkpoint_shards import load_shards

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., list[Any]]
# Adam makes a full step of the gradient of a Gaussian that hardly shows, and so of its last bits
AFTER_ADAM = 1e-5


def joined(parts: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The rows of all ranks, by id; each rank's ascend."""
    ids = torch.cat([part["rows.ids"] for part in parts])
    for part in parts:
        assert (part["rows.ids"].diff() > 0).all()
    order = ids.argsort()
    names = [name for name, x in parts[0].items() if isinstance(x, Tensor)]
    return {name: torch.cat([part[name] for part in parts])[order] for name in names}


def assert_same(got: list[dict[str, Any]], want: list[dict[str, Any]], limit: float) -> None:
    for name in ("next_id", "n"):
        assert {part[name] for part in got} == {want[0][name]}
    a, b = joined(got), joined(want)
    assert torch.equal(a["rows.ids"], b["rows.ids"])
    for name, x in b.items():
        scale = x.double().abs().max().clamp_min(1e-30)
        assert ((a[name] - x).abs().max() / scale) <= limit, name
    torch.testing.assert_close(got[0]["loss"], want[0]["loss"], rtol=1e-6, atol=0.0)


@pytest.fixture(scope="module")
def one_rank(small_scene: str, jobs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a single sharded rank makes of some settings."""
    from gs.distributed.simulated import simulate

    kept: dict[Any, list[Any]] = {}

    def run(densifier: str) -> list[Any]:
        if densifier not in kept:
            out = str(tmp_path_factory.mktemp("one"))
            act = lambda ranks: jobs.train(ranks, small_scene, out, densifier)  # noqa: E731
            kept[densifier] = simulate(1, act)
        return kept[densifier]

    return run


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("exact", [True, False], ids=["float64", "float32"])
def test_gradients(
    simulated: Run, jobs: ModuleType, small_scene: str, tmp_path: Path, batch: int, exact: bool
) -> None:
    out, options = str(tmp_path), {"batch": batch, "exact": exact, "iterations": 99}
    want = simulated(1, "gradients", small_scene, out, **options)
    for n in (2, 3, 7):
        got = simulated(n, "gradients", small_scene, out, **options)
        assert torch.equal(joined(got)["masks"], joined(want)["masks"])
        assert_same(got, want, 1e-12 if exact else 1e-5)
    if not exact:  # one sharded rank does what a rank alone does, to the last bit
        assert_same([jobs.gradients(None, small_scene, out, **options)], want, 0.0)


def test_regularisers_of_the_seen(
    simulated: Run, jobs: ModuleType, small_scene: str, tmp_path: Path
) -> None:
    out, seen = str(tmp_path), {"regularise": "seen", "iterations": 99}
    want = [jobs.gradients(None, small_scene, out, exact=False, **seen)]
    got = simulated(3, "gradients", small_scene, out, exact=False, **seen)
    assert_same(got, want, 1e-5)
    assert_same(simulated(1, "gradients", small_scene, out, exact=False, **seen), want, 0.0)
    options = {**seen, "adam_rows": "seen", "steps": 6}
    want, got = (simulated(n, "train", small_scene, out, "mcmc", **options) for n in (1, 3))
    assert_same(got, want, AFTER_ADAM)


@pytest.mark.parametrize("densifier", ["default", "mcmc"])
@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_simulated(
    simulated: Run, one_rank: Any, small_scene: str, tmp_path: Path, densifier: str, n: int
) -> None:
    want = one_rank(densifier)
    assert want[0]["next_id"] > 330 or densifier == "mcmc" and want[0]["next_id"] > 300
    got = simulated(n, "train", small_scene, str(tmp_path), densifier)
    assert_same(got, want, AFTER_ADAM)


@pytest.mark.parametrize("densifier", ["default", "mcmc"])
def test_processes(
    processes: Run, one_rank: Any, small_scene: str, tmp_path: Path, densifier: str
) -> None:
    got = processes(3, "train", small_scene, str(tmp_path), densifier)
    assert_same(got, one_rank(densifier), AFTER_ADAM)


def test_processes_stop_together(processes: Run, small_scene: str, tmp_path: Path) -> None:
    found = processes(3, "stop", small_scene, str(tmp_path))
    assert {x["step"] for x in found} == {8}
    assert [*saved_checkpoints(tmp_path)] == [8]
    assert load_shards(tmp_path / "chkpnt8")["step"] == 8


def test_collectives(processes: Run, simulated: Run) -> None:
    want, got = simulated(3, "collectives"), processes(3, "collectives")
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.pop("exchange"), b.pop("exchange"))
        assert torch.equal(a.pop("stack"), b.pop("stack"))
        for x, y in zip(a.pop("gather"), b.pop("gather"), strict=True):
            assert torch.equal(x, y)
        assert a == b
    assert want[0]["tell"] == [("rank", 0), ("rank", 1), ("rank", 2)]
    assert [x["first"] for x in want] == [7, None, None]
    assert [x["failure"] for x in want] == ["exit 2", "rank 1 cannot", "exit 2"]
