"""Hooks of strategies, and how their verdicts join."""

import torch
from torch import Tensor

from gs.model.gaussians import Gaussians
from gs.training.strategy import Strategy, final_keep, rows_to_prune


class Names(Strategy):
    """Names fixed rows, to prune and not to keep."""

    def __init__(self, *rows: int) -> None:
        self.named = list(rows)

    def prune_rows(self, step: int, gaussians: Gaussians) -> Tensor | None:
        rows = torch.zeros(len(gaussians), dtype=torch.bool)
        rows[self.named] = True
        return rows

    def final_keep(self, gaussians: Gaussians) -> Tensor | None:
        return ~self.prune_rows(0, gaussians)  # type: ignore[operator]


def gaussians(n: int = 5) -> Gaussians:
    return Gaussians.from_points(torch.rand(n, 3), torch.rand(n, 3), sh_degree=0)


def test_base_strategy_changes_nothing() -> None:
    model, strategy = gaussians(), Strategy()
    assert strategy.before_render(1, model) == {}
    assert strategy.scalars(1) == {} and strategy.state_dict() == {}
    assert rows_to_prune(1, model, [strategy]) is None
    assert final_keep(model, [strategy]) is None


def test_rows_to_prune_is_the_union() -> None:
    rows = rows_to_prune(1, gaussians(), [Strategy(), Names(0, 2), Names(2, 4)])
    assert rows is not None and rows.tolist() == [True, False, True, False, True]


def test_final_keep_is_the_intersection() -> None:
    rows = final_keep(gaussians(), [Names(0, 2), Strategy(), Names(4)])
    assert rows is not None and rows.tolist() == [False, True, False, True, False]
