"""Markov chain Monte Carlo where the Gaussians are spread over ranks.

What gs.densification.mcmc does, to the same Gaussians with the same ids: weights of all ranks are
gathered and every rank makes all draws; it shares the opacity of those that are its own, and makes
the Gaussians that are put there. The dead are removed, and who is put in their place is new.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..model.rows import gather_rows
from ..training.strategy import StepContext, rows_to_prune

Draw = Callable[[Tensor, Tensor, int], Tensor]
"""Rows drawn, of weights [N], ids [N] and the number n. [n]"""
Share = Callable[[Tensor], None]
"""Gives the model's rows [n] what is their part once others are put onto them."""
Growth = Callable[[int, int], int]
"""How many are added to n Gaussians, of which some stay."""


@torch.no_grad()
def densify_shards(
    step: int, ctx: StepContext, min_opacity: float, growth: Growth, draw: Draw, share: Share
) -> tuple[dict[str, float], int]:
    """Move the dead and add others now.

    Returns:
        How many were moved, added and pruned, and how many there are.
    """
    gaussians, ranks = ctx.gaussians, ctx.ranks
    assert ranks is not None
    ids, opacities = gaussians.rows["ids"], gaussians.get_opacities()
    named = rows_to_prune(step, gaussians, ctx.strategies)
    stay = torch.ones_like(opacities, dtype=torch.bool) if named is None else ~named
    dead = stay & (opacities <= min_opacity)
    n_all, n_stay, n_dead = ctx.total(len(gaussians), int(stay.sum()), int(dead.sum()))
    n_gone, n_new = n_all - n_stay, growth(n_all, n_stay)
    if n_dead == n_stay:  # there is none to put them onto
        n_dead = n_new = 0
    n_drawn = n_dead + n_new
    kept = stay & ~dead if n_drawn else stay
    own, new_ids = ids.new_empty(0).long(), ids.new_empty(0)
    if n_drawn:
        weights = torch.where(kept, opacities, 0.0)
        everyone = torch.cat(ranks.gather(ids))
        drawn = draw(torch.cat(ranks.gather(weights)), everyone, n_drawn)
        numbers, own = _here(ids, everyone[drawn])
        new_ids = (gaussians.next_id + numbers).to(ids)
        share(own)
    if n_drawn + n_gone:
        rows = kept.nonzero()[:, 0]
        sources = torch.cat([rows, own])
        gather_rows(gaussians, ctx.optimizer, sources, n_kept=len(rows), new_ids=new_ids)
        gaussians.next_id += n_drawn
    counts = {"n_relocated": n_dead, "n_added": n_new, "n_pruned": n_gone}
    return {name: float(n) for name, n in counts.items()}, n_stay + n_new


def _here(ids: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:  # [N] ascending, [n]
    """Which draws are of Gaussians that live here, and their rows."""
    if len(ids) == 0:
        return drawn.new_empty(0).long(), drawn.new_empty(0).long()
    rows = torch.searchsorted(ids, drawn).clamp_max(len(ids) - 1)
    numbers = (ids[rows] == drawn).nonzero()[:, 0]
    return numbers, rows[numbers]
