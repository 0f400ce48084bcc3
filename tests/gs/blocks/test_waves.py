"""Waves: each block once per round, no neighbours at once, no rank idle while another has two."""

import itertools

import pytest
import torch

from gs.blocks.cells import Cells, full_grid, split
from gs.blocks.frame import Frame
from gs.blocks.waves import assign, colours, plan_round

FLAT = Frame(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (0.0, 0.0, 0.0), "given")


def tree(n_blocks: int) -> Cells:
    points = torch.rand(900, 3, generator=torch.Generator().manual_seed(n_blocks))
    return split(FLAT, points, torch.ones(900), n_blocks)


PLANS = [tree(n) for n in range(1, 18)] + [full_grid((0, 0, 0, 1, 1, 1), (3, 1, 4))]


@pytest.mark.parametrize("cells", PLANS, ids=lambda cells: str(cells.n_blocks))
def test_each_block_once_and_no_neighbours_at_once(cells: Cells) -> None:
    waves, touching = plan_round(cells), cells.touching()
    assert sorted(itertools.chain(*waves)) == list(range(cells.n_blocks))
    assert all(wave for wave in waves) and len(waves) <= 5
    for wave in waves:
        assert not any(b in touching[a] for a, b in itertools.combinations(wave, 2))


def test_a_line_has_two_colours_and_a_grid_four() -> None:
    assert colours([{1}, {0, 2}, {1, 3}, {2}]) == [1, 0, 1, 0]
    assert len(plan_round(full_grid((0, 0, 0, 1, 1, 1), (4, 1, 1)))) == 2
    assert len(plan_round(full_grid((0, 0, 0, 1, 1, 1), (4, 4, 1)))) == 4


def test_one_wave_on_demand() -> None:
    assert plan_round(tree(5), "one") == [[0, 1, 2, 3, 4]]
    with pytest.raises(ValueError, match="waves: expected coloured or one, got 'two'"):
        plan_round(tree(5), "two")


@pytest.mark.parametrize("n_ranks", range(1, 18))
@pytest.mark.parametrize("n_blocks", range(1, 18))
def test_work_is_shared(n_blocks: int, n_ranks: int) -> None:
    wave = [3 * b + 1 for b in range(n_blocks)]
    costs = [float(b * b % 7 + (b % 3 == 0)) for b in range(3 * n_blocks)]
    groups = assign(wave, costs, n_ranks)
    blocks = [block for group in groups for block in group.blocks]
    ranks = [rank for group in groups for rank in group.ranks]
    assert sorted(blocks) == wave
    assert sorted(ranks) == list(range(n_ranks))  # so none is idle
    if n_ranks < n_blocks:
        assert all(len(group.ranks) == 1 and group.blocks for group in groups)
        loads = sorted(sum(costs[b] for b in group.blocks) for group in groups)
        # longest first is within 4/3 of the best, which no rank can go below
        best = max(sum(costs[b] for b in wave) / n_ranks, max(costs[b] for b in wave))
        assert loads[-1] <= 4 / 3 * best + max(costs) / 3
    else:
        assert all(len(group.blocks) == 1 for group in groups)
        sizes = {len(group.ranks) for group in groups}
        assert sizes <= {n_ranks // n_blocks, -(-n_ranks // n_blocks)}


def test_the_dearest_block_comes_first() -> None:
    groups = assign([0, 1, 2, 3], [1.0, 5.0, 3.0, 3.0], 2)
    assert [group.blocks for group in groups] == [(1, 0), (2, 3)]
    groups = assign([0, 1], [1.0, 5.0], 5)
    assert [(group.ranks, group.blocks) for group in groups] == [((0, 1, 2), (1,)), ((3, 4), (0,))]


def test_free_blocks_are_spread() -> None:
    groups = assign([0, 1, 2], [0.0, 0.0, 0.0], 2)
    assert sorted(len(group.blocks) for group in groups) == [1, 2]
