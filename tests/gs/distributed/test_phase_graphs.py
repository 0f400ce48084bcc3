"""Steps of several ranks whose phases are graphs: the model is the same as without them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.distributed.ranks import Ranks
from gs.distributed.simulated import simulate
from gs.training.sharded_graphs import PHASES, PhaseGraphs
from gs.training.sharded_step import ShardedStepper
from tests.gs.graph_like import Watched, graph_like

__all__ = ["graph_like"]

pytestmark = pytest.mark.usefixtures("one_thread", "graph_like")

SIZE = 3
Train = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def train(
    jobs: ModuleType, small_scene: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Train:
    """train(graphs, densifier, steps, tight_at=..., **settings): the rows of each rank.

    Images are never cut; at step `tight_at` buffers are too small.
    """
    monkeypatch.setattr("gs.distributed.tasks.MOST_UNEVEN", 10.0)
    monkeypatch.setattr(jobs, "MASKS", dataclasses.replace(jobs.MASKS, mask_prune_iter=31))

    def run(
        graphs: bool, densifier: str | None, steps: int, *, tight_at: int = 0, **settings: Any
    ) -> list[dict[str, Any]]:
        def act(ranks: Ranks) -> dict[str, Any]:
            options = {"batch": SIZE, "iterations": 99, "sh_degree_interval": 6, "exact": False}
            options |= settings
            made = jobs.trainer(ranks, small_scene, str(tmp_path), densifier, **options)
            stepper = made.stepper
            assert isinstance(stepper, ShardedStepper)
            watched = Watched()
            stepper.phase_graphs = PhaseGraphs(watched) if graphs else None
            with stepper.running():
                while made.step < steps:
                    if made.step + SIZE == tight_at:
                        stepper.settle()
                        stepper.planner.least, stepper.planner._kept = 1, {}
                        stepper.planner._needs = dict.fromkeys(range(8), 2.0)
                    made.train_step(made.step + SIZE)
                stepper.settle()
                found: dict[str, Any] = jobs.shard(made)
            found["steps"] = {float(s["step"]) for s in made.optimizer.state.values()}
            found["loss"] = made.tracker.state_dict()["sums"]
            found["plans"], found["kept"] = watched.plans, list(watched._graphs)
            return found

        return simulate(SIZE, act)

    return run


def assert_same_bits(got: list[dict[str, Any]], want: list[dict[str, Any]]) -> None:
    for a, b in zip(got, want, strict=True):
        assert a["steps"] == b["steps"]
        for name, x in b.items():
            if isinstance(x, Tensor):
                assert torch.equal(a[name], x), name
        torch.testing.assert_close(a["loss"], b["loss"], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("densifier", [None, "default", "mcmc"])
def test_graphs_train_the_same_model(train: Train, densifier: str | None) -> None:
    steps = 30 if densifier is None else 51
    got, want = train(True, densifier, steps), train(False, densifier, steps)
    assert_same_bits(got, want)
    for rank in got:
        assert rank["plans"].count("replay") >= 3
        assert {phase for _, phase in rank["kept"]} == set(PHASES)
    if densifier is None:  # warm-up, and one capture once capacities have been learnt
        assert got[0]["plans"][0] == "warm up" and got[0]["plans"].count("capture") == 1


def test_what_does_not_fit_is_taken_again_without_graphs(train: Train) -> None:
    got = train(True, None, 30, tight_at=15)
    assert_same_bits(got, train(False, None, 30))
    assert all(len(rank["kept"]) == len(PHASES) for rank in got)


@pytest.mark.parametrize(
    "settings", [{"regularise": "seen"}, {"batch": 2}], ids=["ranks talk", "images are cut"]
)
def test_other_steps_are_taken_without_graphs(train: Train, settings: dict[str, Any]) -> None:
    assert train(True, None, 12, **settings)[0]["plans"] == []
