"""Markov chain Monte Carlo where the Gaussians are spread over ranks.

What gs.densification.mcmc does, to the same Gaussians with the same ids: weights of all ranks are
gathered and every rank makes all draws; it shares the opacity of those that are its own, and makes
the Gaussians that are put there. The dead are removed, and who is put in their place is new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.rows import gather_rows
from ..seeds import derive_seed
from ..training.strategy import StepContext, rows_to_prune

if TYPE_CHECKING:
    from collections.abc import Callable

    from .mcmc import MCMCDensifier

    Draw = Callable[..., Tensor]
    Share = Callable[..., None]


@torch.no_grad()
def densify_shards(
    densifier: MCMCDensifier, step: int, ctx: StepContext, draw: Draw, share: Share
) -> dict[str, float]:
    """Move the dead and add others now; how many were.

    Args:
        densifier: Whose settings and state count.
        step: The iteration.
        ctx: Of a shard.
        draw: gs.densification.mcmc.draw_sources.
        share: gs.densification.mcmc.share.
    """
    config, gaussians, ranks = densifier.config, ctx.gaussians, ctx.ranks
    assert ranks is not None
    ids, opacities = gaussians.rows["ids"], gaussians.get_opacities()
    named = rows_to_prune(step, gaussians, ctx.strategies)
    stay = torch.ones_like(opacities, dtype=torch.bool) if named is None else ~named
    dead = stay & (opacities <= config.min_opacity)
    n_all, n_stay, n_dead = ctx.total(len(gaussians), int(stay.sum()), int(dead.sum()))
    n_gone, n_new = n_all - n_stay, densifier.n_new(n_all, n_stay)
    if n_dead == n_stay:  # there is none to put them onto
        n_dead = n_new = 0
    n_drawn = n_dead + n_new
    kept = stay & ~dead if n_drawn else stay
    own, new_ids = ids.new_empty(0).long(), ids.new_empty(0)
    if n_drawn:
        weights = torch.where(kept, opacities, 0.0)
        everyone = torch.cat(ranks.gather(ids))
        seed = derive_seed(densifier.seed, "mcmc", step)
        drawn = draw(torch.cat(ranks.gather(weights)), everyone, n_drawn, seed=seed)
        numbers, own = _here(ids, everyone[drawn])
        new_ids = (gaussians.next_id + numbers).to(ids)
        share(gaussians, ctx.optimizer, own, min_opacity=config.min_opacity)
    if n_drawn + n_gone:
        rows = kept.nonzero()[:, 0]
        sources = torch.cat([rows, own])
        gather_rows(gaussians, ctx.optimizer, sources, n_kept=len(rows), new_ids=new_ids)
        gaussians.next_id += n_drawn
    densifier.n_last = n_stay + n_new
    return {
        "n_relocated": float(n_dead),
        "n_added": float(n_new),
        "n_pruned": float(n_gone),
    }


def _here(ids: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:  # [N] ascending, [n]
    """Which draws are of Gaussians that live here, and their rows."""
    if len(ids) == 0:
        return drawn.new_empty(0).long(), drawn.new_empty(0).long()
    rows = torch.searchsorted(ids, drawn).clamp_max(len(ids) - 1)
    numbers = (ids[rows] == drawn).nonzero()[:, 0]
    return numbers, rows[numbers]
