"""Which rank owns a Gaussian: a function of its id, and how rows come to their owners.

A Philox word of the id, modulo the number of ranks, so that shards differ by about the root of
their size and nothing has to be remembered. Rows of a shard ascend by id.

Ids of new Gaussians follow from their parents' ids, whatever ranks these live on: all numbers are
those that one rank would give.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels import philox

from ..model.gaussians import Gaussians
from ..model.model import Model
from .ranks import Ranks

OWNER_SEED = 0x6F776E6572  # apart from the seeds of masks


def owner(ids: Tensor, size: int) -> Tensor:  # [N] int32 -> [N] int64
    """The rank that each id belongs to, of so many."""
    if size == 1:
        return torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
    return philox(OWNER_SEED, ids) % size


def new_ids(ranks: Ranks, parents: Tensor, first: int) -> tuple[Tensor, int]:  # [M] int32
    """Ids of one child of each parent: numbered from `first` by parents' ids, over all ranks.

    Args:
        ranks: All call it.
        parents: Ids of those that live here, ascending; none is anywhere twice. [M]
        first: The first free id.

    Returns:
        The children's ids, and the next that is free. [M]
    """
    everyone = torch.cat(ranks.gather(parents)).sort().values
    return first + torch.searchsorted(everyone, parents).to(parents), first + len(everyone)


@torch.no_grad()
def keep_own(model: Model, optimizer: torch.optim.Optimizer | None, ranks: Ranks) -> None:
    """Of a model that every rank has as a whole, keep the rows that this one owns, by id."""
    own = owner(model.rows["ids"], ranks.size) == ranks.rank
    _replace(model, optimizer, {}, own.nonzero()[:, 0])
    model.is_shard = ranks.size > 1


@torch.no_grad()
def gather_model(model: Model, ids: Tensor, ranks: Ranks) -> Model:  # [N]
    """On the first rank the model of which each rank has exported a part, in the order of ids.

    Args:
        model: What this rank has exported; the others get it back.
        ids: Names of its rows, those of the model that is trained. [N]
        ranks: All call it.
    """
    counts = [len(ids)] + [0] * (ranks.size - 1)
    order = ranks.move(ids, counts).argsort()
    tensors = {name: ranks.move(x, counts)[order] for name, x in model.to_tensors().items()}
    if ranks.rank > 0:
        return model
    whole = Gaussians(tensors, specs=model.specs.values())
    whole.active_sh_degree = model.active_sh_degree
    return whole


@torch.no_grad()
def move_rows(model: Model, optimizer: torch.optim.Optimizer | None, ranks: Ranks) -> None:
    """Bring every row to the rank that owns it, with moments and buffers, and sort by id.

    A parameter loses its gradient, as by any row edit. All ranks call it.
    """
    ids = model.rows["ids"]
    owners = owner(ids, ranks.size)
    stay = (owners == ranks.rank).nonzero()[:, 0]
    leave = (owners != ranks.rank).nonzero()[:, 0]
    leave = leave[owners[leave].argsort(stable=True)]
    counts = torch.bincount(owners[leave], minlength=ranks.size).tolist()
    tensors = row_tensors(model, optimizer)
    table = ranks.tell(counts)
    received = [row[ranks.rank] for row in table]
    arrived = {key: ranks.exchange(x[leave], counts, received) for key, x in tensors.items()}
    _replace(model, optimizer, arrived, stay)


def row_tensors(
    model: Model, optimizer: torch.optim.Optimizer | None
) -> dict[tuple[str, str], Tensor]:
    """All that has a row per Gaussian: parameters, moments, buffers.

    Keys are ("params", name), ("exp_avg", name) and so on, and ("rows", name).
    """
    found: dict[tuple[str, str], Tensor] = {}
    for name, parameter in model.params.items():
        found["params", name] = parameter.detach()
        moments = {} if optimizer is None else optimizer.state.get(parameter, {})
        found |= {(key, name): x for key, x in moments.items() if x.dim()}
    return found | {("rows", name): x for name, x in model.rows.items()}


def _replace(
    model: Model,
    optimizer: torch.optim.Optimizer | None,
    arrived: dict[tuple[str, str], Tensor],
    stay: Tensor,
) -> None:
    """Give the model the rows that stay and those that have arrived, ascending by id."""
    tensors = row_tensors(model, optimizer)

    def joined(key: tuple[str, str]) -> Tensor:
        return torch.cat([tensors[key][stay], arrived[key]]) if arrived else tensors[key][stay]

    order = joined(("rows", "ids")).argsort()
    for name in list(model.params):
        old = model.params[name]
        parameter = nn.Parameter(joined(("params", name))[order].contiguous())
        if optimizer is not None:
            group = next(g for g in optimizer.param_groups if g["name"] == name)
            group["params"] = [parameter]
            moments = optimizer.state.pop(old, {})
            if moments:
                optimizer.state[parameter] = {
                    key: joined((key, name))[order] if x.dim() else x for key, x in moments.items()
                }
        model.params[name] = parameter
    model.rows = {name: joined(("rows", name))[order] for name in model.rows}
