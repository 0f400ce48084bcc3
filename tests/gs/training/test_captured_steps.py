"""When iterations are captured as CUDA graphs, and when graphs are dropped."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from gs.model.gaussians import Gaussians
from gs.training.captured_steps import MAX_GRAPHS, Frame, StepGraphs
from gs.training.strategy import Strategy


class Room(NamedTuple):
    rows: int
    entries: int


def model(n: int = 5) -> Gaussians:
    return Gaussians.from_points(torch.rand(n, 3), torch.rand(n, 3))


def captured(graphs: StepGraphs, key: str, room: Room) -> None:
    graphs._graphs[key] = None, room, None  # type: ignore[assignment]


def test_a_key_is_warmed_up_captured_and_replayed() -> None:
    graphs, gaussians = StepGraphs(), model()
    assert graphs.plan("a", gaussians) == "warm up"
    graphs.warmed_up("a", 5, 3, 40)
    assert graphs.plan("a", gaussians) == "capture"
    captured(graphs, "a", Room(5, 60))
    assert graphs.plan("a", gaussians) == "replay"
    assert graphs.plan("b", gaussians) == "warm up"


@pytest.mark.parametrize("change", ["parameter", "rows", "shared"])
def test_another_tensor_drops_every_graph(change: str) -> None:
    graphs, gaussians = StepGraphs(), model()
    gaussians.add_shared("table", torch.nn.Parameter(torch.zeros(2)), lr=0.1)
    for key in "ab":
        graphs.plan(key, gaussians)
        graphs.warmed_up(key, 5, 3, 40)
        captured(graphs, key, Room(5, 60))
    gaussians.params["means"].data.add_(1.0)
    gaussians.rows["ids"] += 1
    assert graphs.plan("a", gaussians) == "replay"
    if change == "parameter":
        gaussians.params["scales"] = torch.nn.Parameter(gaussians.params["scales"].detach().clone())
    elif change == "rows":
        gaussians.rows["ids"] = gaussians.rows["ids"].clone()
    else:
        gaussians.shared.register_parameter("table", torch.nn.Parameter(torch.zeros(2)))
    assert graphs.plan("a", gaussians) == "warm up"
    assert graphs.plan("b", gaussians) == "warm up"


def test_a_scene_of_many_image_sizes_runs_without_graphs() -> None:
    graphs, gaussians = StepGraphs(), model()
    for key in range(MAX_GRAPHS):
        assert graphs.plan(key, gaussians) == "warm up"
        graphs.warmed_up(key, 5, 3, 40)
    assert graphs.plan(MAX_GRAPHS, gaussians) == "run"
    assert graphs.plan(0, gaussians) == "capture"


def test_room_covers_what_was_seen_and_grows_with_the_model() -> None:
    graphs, gaussians = StepGraphs(), model()
    graphs.plan("a", gaussians)
    graphs.warmed_up("a", 100_000, 50_000, 400_000)
    rows, entries = graphs.room(100_000)
    assert 65_000 < rows < 80_000
    assert 520_000 < entries < 600_000
    assert graphs.room(200_000)[1] > 1.9 * entries
    assert graphs.room(10)[0] == 10  # one camera sees no more than all


def test_a_step_that_did_not_fit_drops_its_graph_and_widens_the_room() -> None:
    graphs = StepGraphs()
    captured(graphs, "a", Room(10, 60))
    assert graphs.fits("a", 10, 10, 60)
    assert not graphs.fits("a", 10, 10, 61)
    assert "a" not in graphs._graphs
    assert graphs.room(10)[1] > 61


def test_a_frame_packs_integers_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)  # there is no GPU to pin it for
    frame = Frame(torch.device("cpu"), 2, ("mask_seed", "step_seed"))
    view, rates = np.arange(25, dtype=np.float32), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    integers = {"step_seed": 5, "mask_seed": 2**33 + 7}
    frame.upload(view, (0.1, 0.2, 0.3), rates, integers, 0.25)
    assert frame.integers["mask_seed"].tolist() == [7, 2]
    assert frame.integers["step_seed"].tolist() == [5, 0]
    assert frame.serial.tolist() == [1] and frame.means_lr.tolist() == [0.25]
    assert torch.equal(frame.rates, rates) and frame.viewmats.flatten().tolist() == [*range(16)]
    assert frame.Ks.flatten().tolist() == [*range(16, 25)]
    assert all(
        x.data_ptr() % 16 == frame.viewmats.data_ptr() % 16
        for x in (*frame.integers.values(), frame.rates, frame.means_lr, frame.background, frame.Ks)
    )
    with pytest.raises(ValueError, match=r"expected \['mask_seed', 'step_seed'\] in every"):
        frame.upload(view, (0.1, 0.2, 0.3), rates, {"step_seed": 5}, 0.25)


def test_only_strategies_that_say_so_are_captured() -> None:
    class Hooked(Strategy):
        def after_step(self, step: int, ctx: object) -> None:
            pass

    assert Strategy().phase(1) is not None
    assert Hooked().phase(1) is None
