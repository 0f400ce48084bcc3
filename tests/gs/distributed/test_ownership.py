"""Rows go to the rank that their id names, and nothing of them is lost on the way."""

import torch
from torch import Tensor

from gs.distributed.ownership import gather_model, keep_own, move_rows, new_ids, owner, row_tensors
from gs.distributed.ranks import Ranks
from gs.distributed.simulated import simulate
from gs.model.gaussians import Gaussians
from gs.model.model import fresh_ids
from gs.model.rates import OptimConfig
from gs.model.rows import gather_rows
from gs.training.optimizer import build_optimizer

N = 200


def test_every_id_has_one_owner_and_all_ranks_about_as_many() -> None:
    ids = torch.arange(100_000, dtype=torch.int32)
    assert not owner(ids, 1).any()
    for size in (2, 3, 8, 64):
        owners = owner(ids, size)
        assert torch.equal(owners, owner(ids, size)) and owners.min() >= 0 and owners.max() < size
        expected = len(ids) / size
        chi2 = ((torch.bincount(owners, minlength=size) - expected) ** 2 / expected).sum()
        # mean size - 1, and the deviation is the root of twice that
        assert abs(chi2 - (size - 1)) < 5 * (2 * (size - 1)) ** 0.5


def test_new_ids_are_those_of_one_rank() -> None:
    parents = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:77].int()
    want, free = fresh_ids(parents, 5000)

    def act(ranks: Ranks) -> tuple[Tensor, Tensor, int]:
        own = parents[owner(parents, ranks.size) == ranks.rank]
        return own, *new_ids(ranks, own, 5000)

    for size in (2, 5):
        found = simulate(size, act)
        assert {last for _, _, last in found} == {free}
        by_parent = dict(zip(parents.tolist(), want.tolist(), strict=True))
        for own, ids, _ in found:
            assert ids.dtype == torch.int32
            assert ids.tolist() == [by_parent[parent] for parent in own.tolist()]


def model() -> tuple[Gaussians, torch.optim.Adam]:
    """Gaussians whose every number, moment and buffer is its own."""
    g = torch.Generator().manual_seed(1)
    gaussians = Gaussians.from_points(*torch.rand(2, N, 3, generator=g), sh_degree=1)
    gaussians.rows["weights"] = torch.rand(N, generator=g)
    optimizer = build_optimizer(gaussians, OptimConfig(), extent=1.0)
    for parameter in gaussians.params.values():
        parameter.grad = torch.randn(parameter.shape, generator=g)
    optimizer.step()
    return gaussians, optimizer


def contents(parts: list[dict[tuple[str, str], Tensor]]) -> dict[tuple[str, str], Tensor]:
    """All ranks' rows by id."""
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    order = joined["rows", "ids"].argsort()
    return {key: x[order] for key, x in joined.items()}


def test_rows_move_with_all_that_is_theirs() -> None:
    def act(ranks: Ranks) -> dict[tuple[str, str], Tensor]:
        gaussians, optimizer = model()
        keep_own(gaussians, optimizer, ranks)
        assert gaussians.is_shard
        # some go by other names now, of other owners; the last rank has lost all of its own
        ids = gaussians.rows["ids"]
        gaussians.rows["ids"] = torch.where(ids % 3 == 0, ids + 1000, ids)
        if ranks.rank == ranks.size - 1:
            gather_rows(gaussians, optimizer, torch.empty(0, dtype=torch.int64), n_kept=0)
        move_rows(gaussians, optimizer, ranks)
        ids = gaussians.rows["ids"]
        assert (owner(ids, ranks.size) == ranks.rank).all() and (ids.diff() > 0).all()
        for group in optimizer.param_groups:
            assert group["params"][0] is gaussians.params[group["name"]]
        return row_tensors(gaussians, optimizer)

    gaussians, optimizer = model()
    want = row_tensors(gaussians, optimizer)
    for size in (2, 4):
        got = contents(simulate(size, act))
        ids = want["rows", "ids"]
        kept = owner(ids, size) != size - 1
        names = torch.where(ids % 3 == 0, ids + 1000, ids)[kept]
        order = names.argsort()
        assert torch.equal(got["rows", "ids"], names[order])
        for key, x in want.items():
            if key != ("rows", "ids"):
                assert torch.equal(got[key], x[kept][order]), key
        assert ("exp_avg", "means") in got


def test_the_first_rank_gathers_the_model() -> None:
    whole, _ = model()

    def act(ranks: Ranks) -> Gaussians:
        gaussians, optimizer = model()
        keep_own(gaussians, optimizer, ranks)
        kept = gaussians.rows["ids"] % 7 > 0
        gathered = gather_model(gaussians.exported(kept), gaussians.rows["ids"][kept], ranks)
        assert isinstance(gathered, Gaussians)
        return gathered

    gathered = simulate(3, act)[0]
    want = whole.exported(whole.rows["ids"] % 7 > 0)
    for name, x in want.to_tensors().items():
        assert torch.equal(gathered.to_tensors()[name], x)
