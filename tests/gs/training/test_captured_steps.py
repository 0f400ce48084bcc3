"""When iterations are captured, replayed and repeated, and when graphs are dropped."""

import numpy as np
import pytest
import torch
from torch import Tensor

from gs.model.gaussians import Gaussians
from gs.model.view import VIEW_WORDS
from gs.training.captured_steps import MAX_GRAPHS, Body, Bounds, StepGraphs
from gs.training.step_inputs import InputBuffer
from gs.training.strategy import Strategy
from kernels import Capacity, Counts

HELD = Capacity(5, 60)


class Call:
    """Stands in for a CUDA graph: calls what was captured."""

    def __init__(self, body: Body) -> None:
        self.body = body

    def replay(self) -> None:
        self.body()


def model(n: int = 5) -> Gaussians:
    return Gaussians.from_points(torch.rand(n, 3), torch.rand(n, 3))


def captured(graphs: StepGraphs, key: str, capacity: Capacity = HELD) -> None:
    graphs.capture(key, capacity, lambda: None)


def test_a_key_is_warmed_up_captured_and_replayed() -> None:
    graphs, gaussians, calls = StepGraphs(Call), model(), []
    assert graphs.plan("a", gaussians) == "warm up"
    graphs.warmed_up("a", 5, Counts(3, 40))
    assert graphs.plan("a", gaussians) == "capture"
    graphs.capture("a", HELD, lambda: calls.append("a"))
    assert graphs.plan("a", gaussians) == "replay"
    for _ in range(3):
        graphs.replay("a")
    assert calls == ["a"] * 3
    assert graphs.plan("b", gaussians) == "warm up"


@pytest.mark.parametrize("change", ["parameter", "rows", "shared"])
def test_another_tensor_drops_every_graph(change: str) -> None:
    graphs, gaussians = StepGraphs(Call), model()
    gaussians.add_shared("table", torch.nn.Parameter(torch.zeros(2)), lr=0.1)
    for key in "ab":
        graphs.plan(key, gaussians)
        graphs.warmed_up(key, 5, Counts(3, 40))
        captured(graphs, key)
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
    graphs, gaussians = StepGraphs(Call), model()
    for key in range(MAX_GRAPHS):
        assert graphs.plan(key, gaussians) == "warm up"
        graphs.warmed_up(key, 5, Counts(3, 40))
    assert graphs.plan(MAX_GRAPHS, gaussians) == "run"
    assert graphs.plan(0, gaussians) == "capture"


def test_capacity_covers_what_was_seen_and_grows_with_the_model() -> None:
    graphs, gaussians = StepGraphs(Call), model()
    graphs.plan("a", gaussians)
    graphs.warmed_up("a", 100_000, Counts(50_000, 400_000))
    rows, entries = graphs.capacity(100_000)
    assert 65_000 < rows < 80_000
    assert 520_000 < entries < 600_000
    assert graphs.capacity(200_000).entries > 1.9 * entries


def test_a_step_that_did_not_fit_drops_its_graph_and_widens_the_next() -> None:
    graphs, gaussians = StepGraphs(Call), model()
    graphs.plan("a", gaussians)
    graphs.warmed_up("a", 10, Counts(0, 0))
    captured(graphs, "a", Capacity(10, 60))
    assert graphs.fits("a", 10, Counts(10, 60))
    assert graphs.plan("a", gaussians) == "replay"
    assert not graphs.fits("a", 10, Counts(10, 61))
    assert graphs.plan("a", gaussians) == "capture"
    assert graphs.capacity(10).entries > 61


def buffer_of(*names: str) -> InputBuffer:
    return InputBuffer(torch.device("cpu"), 2, names)


def test_a_buffer_packs_integers_by_name() -> None:
    buffer = buffer_of("mask_seed", "noise_seed")
    words = np.arange(VIEW_WORDS, dtype=np.float32)
    rates = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    integers = {"noise_seed": 9, "mask_seed": 2**33 + 7}
    found = buffer.inputs(33, 21, 0.2)
    buffer.upload(words, (0.1, 0.2, 0.3), 5, integers, 0.25, rates)
    assert {name: torch.as_tensor(x).tolist() for name, x in found.integers.items()} == {
        "mask_seed": [7, 2],
        "noise_seed": [9, 0],
    }
    assert found.seed is not None and found.means_lr is not None and found.rates is not None
    assert found.seed.tolist() == [5, 0] and found.means_lr.tolist() == [0.25]
    assert torch.equal(found.background, torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(found.rates, rates)
    assert found.view.viewmats.flatten().tolist() == [*range(16)]
    assert found.view.Ks.flatten().tolist() == [*range(16, 25)]
    assert (found.view.width, found.view.height) == (33, 21)
    integer_tensors = [torch.as_tensor(x) for x in found.integers.values()]
    tensors = [found.seed, *integer_tensors, found.rates, found.means_lr, found.background]
    start = found.view.viewmats.data_ptr()
    assert all((x.data_ptr() - start) % 16 == 0 for x in tensors)
    assert len({x.data_ptr() for x in tensors}) == len(tensors)
    with pytest.raises(ValueError, match=r"expected \['mask_seed', 'noise_seed'\] in every"):
        buffer.upload(words, (0.1, 0.2, 0.3), 5, {"mask_seed": 5}, 0.25, rates)


def test_a_buffer_has_numbers_by_name() -> None:
    buffer = InputBuffer(torch.device("cpu"), 2, ("mask_seed",), numbers=("rate", "weight"))
    words, rates = np.zeros(VIEW_WORDS, dtype=np.float32), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = buffer.inputs(33, 21, 0.2)
    given = {"weight": 0.125, "rate": 1e-3}
    buffer.upload(words, (0.1, 0.2, 0.3), 5, {"mask_seed": 7}, 0.25, rates, given)
    assert {name: x.tolist() for name, x in found.numbers.items()} == {
        "rate": pytest.approx([1e-3]),
        "weight": [0.125],
    }
    seed = torch.as_tensor(found.integers["mask_seed"])
    assert seed.tolist() == [7, 0] and found.rates is not None
    assert torch.equal(found.rates, rates)
    with pytest.raises(ValueError, match=r"device_numbers: expected \['rate', 'weight'\]"):
        buffer.upload(words, (0.1, 0.2, 0.3), 5, {"mask_seed": 7}, 0.25, rates, {"rate": 1.0})


@pytest.mark.parametrize(
    ("counts", "missing", "skip"),
    [((5, 60), None, 0), ((6, 1), None, 1), ((1, 61), 0, 1), ((5, 60), 0, 0), ((5, 60), 2, 1)],
)
def test_a_step_reports_and_knows_whether_it_fits(
    counts: tuple[int, int], missing: int | None, skip: int
) -> None:
    buffer = buffer_of()
    bounds = Bounds(HELD, torch.tensor(HELD, dtype=torch.int32), buffer)
    for _ in range(2):
        buffer.upload(np.zeros(VIEW_WORDS, np.float32), (0, 0, 0), 1, {}, 0.0, torch.zeros(2, 2))
        lacking = None if missing is None else torch.tensor([missing], dtype=torch.int32)
        got = bounds.check(torch.tensor(counts, dtype=torch.int32), lacking)
        assert got.tolist() == [skip]
        assert buffer.wait() == (*counts, missing or 0)


def test_only_strategies_that_say_so_are_captured() -> None:
    class Hooked(Strategy):
        def after_step(self, step: int, ctx: object) -> None:
            pass

    class Exposed(Strategy):
        def after_render(self, step: int, colors: Tensor, ctx: object) -> Tensor:
            return colors

    assert Strategy().phase(1) is not None
    assert Hooked().phase(1) is None and Exposed().phase(1) is None
