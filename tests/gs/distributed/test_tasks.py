"""A batch cut into tasks, and the loss of the parts."""

import numpy as np
import pytest
import torch

from gs.data.camera import Camera
from gs.distributed.exchange import GUESS, LEAST, SLACK, Planner
from gs.distributed.tasks import HALO, STRIP, CostTable, cut_batch, n_strips
from kernels import photometric_gradient, photometric_rows

HEIGHTS = [(16,), (9, 40), (144, 17, 100), (135,) * 8]


def costs_of(heights: tuple[int, ...], kind: str) -> list[np.ndarray]:
    rng = np.random.default_rng(len(heights))
    costs = [rng.random(n_strips(h)) for h in heights]
    if kind == "none":
        return [np.zeros_like(x) for x in costs]
    if kind == "one dear strip":
        costs[-1][0] = 1000.0
    return costs


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("heights", HEIGHTS, ids=str)
@pytest.mark.parametrize("kind", ["any", "none", "one dear strip"])
def test_every_strip_has_one_task(heights: tuple[int, ...], size: int, kind: str) -> None:
    tasks = cut_batch(costs_of(heights, kind), size)
    covered = [np.zeros(n_strips(h), int) for h in heights]
    for task in tasks:
        n = n_strips(heights[task.image])
        covered[task.image][task.first : task.last] += 1
        assert 0 <= task.rank < size
        assert task.above == HALO * (task.first > 0) and task.below == HALO * (task.last < n)
        top, bottom = task.window(heights[task.image])
        first, last = task.rows(heights[task.image])
        assert 0 <= top <= first < last <= bottom <= heights[task.image]
        assert last - first <= STRIP * (task.last - task.first)
    assert all((x == 1).all() for x in covered)
    order = [(task.rank, task.image, task.first) for task in tasks]
    assert order == sorted(order, key=lambda place: (place[1], place[2])) == sorted(order)


def test_cuts_are_at_equal_costs() -> None:
    costs = [np.random.default_rng(k).random(68) + 0.5 for k in range(8)]
    loads = np.zeros(8)
    for task in cut_batch(costs, 8):
        loads[task.rank] += costs[task.image][task.first : task.last].sum()
    assert loads.max() / loads.mean() < 1.08


def test_a_cut_beside_an_edge_moves_onto_it() -> None:
    equal = [np.ones(50), np.ones(50)]
    equal[0][0] = 1.5  # the middle is within the second image's first strip
    tasks = cut_batch(equal, 2)
    assert [(task.image, task.first, task.last) for task in tasks] == [(0, 0, 50), (1, 0, 50)]


def test_even_images_are_not_cut() -> None:
    costs = [np.ones(5), 1.2 * np.ones(5), np.ones(5), 1.1 * np.ones(5)]
    found = [(task.image, task.first, task.last, task.rank) for task in cut_batch(costs, 2)]
    assert found == [(0, 0, 5, 0), (1, 0, 5, 0), (2, 0, 5, 1), (3, 0, 5, 1)]
    costs[0] *= 9.0
    assert len(cut_batch(costs, 2)) > 4 and len(cut_batch(costs, 3)) > 4


def test_whole_images_keep_capacities_that_suffice() -> None:
    camera = Camera("0.png", None, 64, 48, torch.eye(4), torch.eye(3), 64, 48)
    planner = Planner([camera] * 4, 2)
    planner.resized(1000)

    def room(counts: list[int]) -> int:
        """Of the plan after a step in which ranks have sent so many rows to the tasks."""
        plan = planner.plan([0, 3])
        table = np.array([counts, counts], dtype=np.float64)
        planner.learn(plan, table, np.zeros(sum(plan.strips)), np.array([0.1]), {})
        plan = planner.plan([0, 3])
        assert plan.is_whole and len({*plan.capacities}) == 1
        assert planner.plan([1, 2]).key == plan.key  # cameras that nobody has visited
        return plan.capacities[0]

    def of(n: float) -> int:
        return LEAST + int(np.ceil(SLACK * n))

    assert planner.plan([0, 3]).capacities == [of(GUESS * 1000)] * 2
    assert room([100, 90]) == of(100)  # what was guessed is not kept
    assert room([102, 90]) == of(100) and room([40, 30]) == of(100)
    assert room([90, 140]) == of(140)
    planner.resized(2000)
    assert planner.plan([0, 3]).capacities == [of(280)] * 2
    assert planner.plan([0, 1, 2]).key is None  # three images for two ranks are cut


def test_a_new_camera_costs_what_others_do() -> None:
    table = CostTable()
    assert (table.entries(3, 64, 40) == 0.0).all() and not table.knows(3)
    assert table.costs(3, 64, 40).tolist() == [0.5 * 64 * rows for rows in (16, 16, 8)]
    table.note(1, np.array([10.0, 20.0, 30.0]))
    assert table.entries(3, 64, 40).tolist() == [20.0] * 3
    assert table.entries(1, 64, 40).tolist() == [10.0, 20.0, 30.0]
    again = CostTable()
    again.load_state_dict(table.state_dict())
    assert again.knows(1) and again.entries(1, 64, 40).tolist() == [10.0, 20.0, 30.0]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_losses_of_tasks_are_that_of_the_image(size: int) -> None:
    height, width = 100, 7
    g = torch.Generator().manual_seed(size)
    colors = torch.rand(height, width, 3, generator=g, dtype=torch.float64)
    target = torch.rand(height, width, 3, generator=g, dtype=torch.float64)
    want, v_want = photometric_gradient(colors, target, 0.2)
    total, v_total = torch.zeros_like(want), torch.zeros_like(v_want)
    tasks = cut_batch([np.ones(n_strips(height))], size)
    assert len(tasks) == size
    for task in tasks:
        (first, last), (top, bottom) = task.rows(height), task.window(height)
        window = slice(top, bottom)
        values, v_colors = photometric_rows(
            colors[window], target[window], 0.2, first=first - top, last=last - top, n_rows=height
        )
        total += values
        v_total[window] += v_colors
    torch.testing.assert_close(total, want, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(v_total, v_want, rtol=1e-12, atol=1e-16)
