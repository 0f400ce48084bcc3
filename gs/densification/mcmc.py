"""Densification as Markov chain Monte Carlo: the dead move to where the living are, and all wander.

Kheradmand et al., "3D Gaussian Splatting as Markov Chain Monte Carlo" (NeurIPS 2024,
https://arxiv.org/abs/2404.09591). Every `densification_interval` iterations, Gaussians of opacity
`min_opacity` or less are put onto others, drawn in proportion to opacity, and as many more are
added by the same draw as `growth` and the budget allow. Where n were put onto one of opacity o and
scales s, there are N = n + 1 afterwards, all alike, with (section 3.2, equation 9)

    o' = 1 - (1 - o)^(1/N)
    s' = s o / I      I = sum over j = 1..N of C(N, j) (-1)^(j+1) o'^j / sqrt(j)

so that the image hardly changes: N of them blend to opacity o in the centre, and to the same sum
along a line through it, as I is the integral of 1 - (1 - o' exp(-x^2/2))^N over x, by sqrt(2 pi).
That integral is how I is computed (the trapezoidal rule is exact to 1e-9 for such a function):
terms of the sum cancel, and it needs no limit on N. Their moments start afresh.

Every step adds the gradients of lambda_opacity mean(o) + lambda_scale mean(s) (equation 10), which
let Gaussians die and are no part of the logged loss, and after the optimizer moves means by

    noise_lr lr sigmoid(-100 (o - 0.005)) Sigma eta        eta ~ N(0, I), lr that of positions

(equation 8, see kernels/update/langevin.py). There are no statistics of gradients, and
opacities are not reset. What other strategies name is removed, not moved, and the budget allows for
others in its place; what they remove by themselves, between densifications, stays removed: the
budget falls to what they left. All draws are by seed, iteration and id.

The published code starts from scales of 0.1 of the distance to the neighbours (`initial_scale`; by
default it is 1 here, as in 3DGS), draws for the dead first and for the added from what that leaves,
and counts no more than 51 Gaussians in one place.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional

from kernels import add_langevin_noise, add_regularizer_gradients, philox

from ..model.gaussians import Gaussians
from ..model.rows import clear_moments, copy_rows, gather_rows
from ..ranges import COUNT, INNER_SHARE, NOT_NEGATIVE, POSITIVE
from ..seeds import derive_seed
from ..training.strategy import Population, StepContext, Strategy, rows_to_prune
from .adaptive import DensifierConfig, rows_where
from .budget import budget_limit, check_budget
from .mcmc_shards import densify_shards

if TYPE_CHECKING:
    from typing_extensions import Self

STEEPNESS = 100.0
THRESHOLD = 0.005
POINTS, SPACING = 65, 1 / 8  # of the trapezoidal rule, from 0 to 8 standard deviations


@dataclass(frozen=True)
class MCMCConfig(DensifierConfig):
    """Settings of Markov chain Monte Carlo; the defaults are the published ones, except the budget
    and initial_scale."""

    densify_until_iter: Annotated[int, COUNT] = 25_000
    """Densify before this iteration."""
    budget: str = "5x"
    """Gaussians to grow to: a number, or a multiple of those at the start, such as 5x or 1.5x."""
    growth: Annotated[float, NOT_NEGATIVE] = 0.05
    """Share of the Gaussians that each densification adds, within the budget."""
    min_opacity: Annotated[float, INNER_SHARE] = 0.005
    """Gaussians of this opacity or less are dead, and moved."""
    initial_opacity: Annotated[float, INNER_SHARE] = 0.5
    """Opacity that training starts with: what is shared among several must not be faint."""
    initial_scale: Annotated[float, POSITIVE] = 1.0
    """Scales that training starts with, over the distance to the neighbours; 0.1 is published."""
    noise_lr: Annotated[float, NOT_NEGATIVE] = 5e5
    """Size of the noise on positions, times their learning rate."""
    lambda_opacity: Annotated[float, NOT_NEGATIVE] = 0.01
    """Weight of the mean opacity in the loss."""
    lambda_scale: Annotated[float, NOT_NEGATIVE] = 0.01
    """Weight of the mean scale in the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        budget_limit(self.budget, 1)

    def scaled(self, factor: float) -> Self:
        """The same schedule over `factor` times as many iterations.

        The interval stays at 50 iterations or more: fewer densifications add more each.
        """
        config = super().scaled(factor)
        rounds = config.densification_interval / (self.densification_interval * factor)
        return replace(config, growth=(1.0 + self.growth) ** rounds - 1.0)

    def build(self) -> MCMCDensifier:
        return MCMCDensifier(self)


class MCMCDensifier(Strategy):
    """Relocate, add, regularise and wander; see the module's docstring."""

    name = "densify"
    runs_on_several_ranks = True
    regularized = ("opacities", "scales")

    def __init__(self, config: MCMCConfig) -> None:
        self.config = config
        self.seed = 0
        self.n_start = 0
        self.n_last = 0  # rows that the last densification left
        self.ceiling: int | None = None  # what is left of the budget once others have pruned
        self._counts: dict[str, float | Tensor] = {}

    def setup(self, gaussians: Gaussians, *, extent: float, iterations: int, seed: int) -> None:
        """Raises SplatrimError where the budget is below the number of Gaussians at the start."""
        self.seed, self.n_start, self.n_last = seed, len(gaussians), len(gaussians)
        check_budget(self.config.budget, self.n_start)
        opacities = gaussians.params["opacities"].data
        # those of a trained model differ
        if not gaussians.is_shard and bool((opacities == opacities[0]).all()):
            o = self.config.initial_opacity
            opacities.fill_(math.log(o / (1.0 - o)))
            gaussians.params["scales"].data += math.log(self.config.initial_scale)

    def phase(self, step: int) -> Hashable | None:
        return None if self.config.densifies_at(step, self.n_images) else "wandering"

    def after_backward(self, step: int, ctx: StepContext) -> None:
        if self.config.densifies_at(step, self.n_images):
            self.densify(step, ctx)
            return
        opacities, scales = (ctx.gaussians.params[name] for name in ("opacities", "scales"))
        population: Population | None = ctx.out.info.get("population")
        if opacities.grad is None or scales.grad is None:
            raise ValueError("regularisers need the gradients of opacities and scales")
        counts: Tensor | None = ctx.out.info.get("observations")
        part, n_seen = 1.0, torch.zeros(()) if counts is None else counts.sum()
        if population is not None and counts is None:
            part = len(opacities) / population.n  # of means over all
        elif population is not None and population.observations is not None:
            n_seen = n_seen + population.observations
        add_regularizer_gradients(
            opacities,
            scales,
            opacities.grad,
            scales.grad,
            lambda_opacity=part * self.n_images * self.config.lambda_opacity,
            lambda_scale=part * self.n_images * self.config.lambda_scale,
            shares=None if counts is None else counts / n_seen.clamp_min(1.0),
        )

    def after_step(self, step: int, ctx: StepContext) -> None:
        if step == ctx.iterations:  # the optimizer has left it out, too
            return
        params = ctx.gaussians.params
        add_langevin_noise(
            params["means"],
            params["quats"],
            params["scales"],
            params["opacities"],
            ctx.gaussians.rows["ids"],
            seed=ctx.device_seed,
            lr=ctx.means_lr,
            noise_lr=self.config.noise_lr,
            steepness=STEEPNESS,
            threshold=THRESHOLD,
            skip=ctx.skip,
        )

    @torch.no_grad()
    def densify(self, step: int, ctx: StepContext) -> None:
        """Move the dead and add others now; tensors stay where they are if none comes or goes."""
        if ctx.ranks is not None:
            self._densify_shards(step, ctx)
            return
        config, gaussians = self.config, ctx.gaussians
        opacities = gaussians.get_opacities()
        named = rows_to_prune(step, gaussians, ctx.strategies)
        stay = torch.ones_like(opacities, dtype=torch.bool) if named is None else ~named
        dead = stay & (opacities <= config.min_opacity)
        n_stay, n_dead = torch.stack([stay.sum(), dead.sum()]).tolist()
        n_gone = len(gaussians) - n_stay
        n_new = self.n_new(len(gaussians), n_stay)
        if n_dead == n_stay:  # there is none to put them onto
            n_dead = n_new = 0
        if n_dead + n_new:
            weights = torch.where(stay & ~dead, opacities, 0.0)
            sources = draw_sources(
                weights,
                gaussians.rows["ids"],
                n_dead + n_new,
                seed=derive_seed(self.seed, "mcmc", step),
            )
            share(gaussians, ctx.optimizer, sources, min_opacity=config.min_opacity)
            copy_rows(gaussians, ctx.optimizer, rows_where(dead, n_dead), sources[:n_dead])
        else:
            sources = stay.new_empty(0, dtype=torch.int64)
        if n_gone + n_new:
            first, ids = gaussians.next_id, gaussians.rows["ids"]
            gather_rows(
                gaussians,
                ctx.optimizer,
                torch.cat([rows_where(stay, n_stay), sources[n_dead:]]),
                n_kept=n_stay,
                new_ids=torch.arange(first, first + n_new, device=ids.device).to(ids),
            )
            gaussians.next_id = first + n_new
        self.n_last = len(gaussians)
        self._counts = {
            "n_relocated": float(n_dead),
            "n_added": float(n_new),
            "n_pruned": float(n_gone),
        }

    def _densify_shards(self, step: int, ctx: StepContext) -> None:
        least = self.config.min_opacity
        draw = partial(draw_sources, seed=derive_seed(self.seed, "mcmc", step))
        part = partial(share, ctx.gaussians, ctx.optimizer, min_opacity=least)
        counts, self.n_last = densify_shards(step, ctx, least, self.n_new, draw, part)
        self._counts = {**counts}

    def n_new(self, n: int, n_stay: int) -> int:
        """How many of n Gaussians, of which some stay, are added now."""
        if n < self.n_last:
            self.ceiling = n
        return max(min(self.limit(), int(n_stay * (1.0 + self.config.growth))) - n_stay, 0)

    def limit(self) -> int:
        """The number of Gaussians that may be reached now."""
        limit = budget_limit(self.config.budget, self.n_start)
        return limit if self.ceiling is None else min(limit, self.ceiling)

    def scalars(self, step: int) -> dict[str, float | Tensor]:
        return self._counts

    def state_dict(self) -> dict[str, Any]:
        names = ("seed", "n_start", "n_last", "ceiling")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = int(state.get("seed", self.seed))
        self.n_start = int(state.get("n_start", self.n_start))
        self.n_last = int(state.get("n_last", self.n_last))
        self.ceiling = state.get("ceiling")


def draw_sources(
    weights: Tensor,  # [N], at least 0, some positive
    ids: Tensor,  # [N] int32
    n: int,
    *,
    seed: int,
) -> Tensor:  # [n] int64
    """Draw n rows with replacement in proportion to their weights, of those that are given.

    Counter-based by (seed, draw). Rows are walked through by id and weights are summed as whole
    numbers of 2^-24, exactly, so that a draw depends neither on the order of rows nor on threads.
    """
    order = ids.argsort()
    ends = (weights.double() * 2**24).ceil().long()[order].cumsum(0)
    words = philox(seed, torch.arange(n, device=weights.device))
    points = ((words.double() + 0.5) / 2**32 * ends[-1]).long()
    return order[torch.searchsorted(ends, points, right=True)]


@torch.no_grad()
def share(
    gaussians: Gaussians,
    optimizer: torch.optim.Optimizer | None,
    sources: Tensor,  # [n] int64
    *,
    min_opacity: float,
) -> None:
    """Give every source what is its part once others have been put onto it, and zero moments.

    What has been drawn is at least as opaque as `min_opacity` afterwards, so that it is not dead.
    """
    counts = torch.bincount(sources, minlength=len(gaussians))
    rows = counts.nonzero()[:, 0]
    opacities, scales = gaussians.params["opacities"], gaussians.params["scales"]
    logits, factors = shares(opacities[rows], counts[rows] + 1)
    opacities[rows] = logits.clamp_min(math.log(min_opacity / (1.0 - min_opacity)))
    scales[rows] += factors.log()[:, None]
    clear_moments(gaussians, optimizer, rows)


def shares(logits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:  # [M], [M] -> [M], [M]
    """Logits of opacities o', and factors s' / s, of `counts` Gaussians in the place of one."""
    transparency = -functional.softplus(logits.double()) / counts  # log(1 - o')
    new = -torch.expm1(transparency)  # o'
    x = SPACING * torch.arange(POINTS, device=logits.device, dtype=torch.float64)
    blended = -torch.expm1(
        counts[:, None] * torch.log1p(-new[:, None] * torch.exp(-0.5 * x.square()))
    )
    blended[:, 0] *= 0.5
    integrals = blended.sum(1) * 2.0 * SPACING / math.sqrt(2.0 * math.pi)
    factors = torch.sigmoid(logits.double()) / integrals
    return (new.log() - transparency).to(logits), factors.to(logits)
