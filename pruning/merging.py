"""Simplification by merging: neighbours that are alike become one Gaussian, until few are left.

At each of `merge_iterations`, rounds of merging follow each other until the number of survivors is
reached. In a round every Gaussian looks at those next to it on a Z-order curve, turned at random
from round to round, and finds the one that costs the least to be merged with (pruning/mixtures.py).
Pairs that find each other are merged, the cheapest first, and at most a quarter of all Gaussians go
in a round, so that later rounds see what earlier ones have made. Nothing is rendered: the rule
knows a model and no images, and training goes on from what it leaves.

A merged Gaussian is a new one, without moments.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from gs import (
    AT_LEAST_ONE,
    NOT_NEGATIVE,
    Gaussians,
    Model,
    Range,
    SplatrimError,
    StepContext,
    Strategy,
    covers,
    derive_seed,
    gather_rows,
    morton_order,
)

from .method import MethodConfig
from .mixtures import Mixture, rotation_matrices
from .survivors import n_survivors

MOST_SHARE = 0.25  # of the Gaussians, that go in a round
ROUNDS = 40  # at most; some ten halve a model

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class MergingConfig(MethodConfig):
    """Settings of merging."""

    survivors: str = "0.5x"
    """Gaussians that are left: a number, or a share of those there are before the first merging."""
    merge_iterations: Annotated[tuple[int, ...], AT_LEAST_ONE] = (16_000,)
    """Iterations at which Gaussians are merged, ascending: of several, each takes an equal part."""
    merge_neighbours: Annotated[int, Range(1, 64)] = 8
    """How many that follow on the curve a Gaussian is compared with."""
    color_weight: Annotated[float, NOT_NEGATIVE] = 10.0
    """Weight of squared differences of colours beside those of shapes."""

    NAME: ClassVar[str] = "merging"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"default": {}, "demo": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        n_survivors(self.survivors, 1)
        steps = (0, *self.merge_iterations)
        if len(steps) == 1 or any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
            given = " ".join(map(str, self.merge_iterations))
            raise SplatrimError(f"--merge_iterations must be positive and ascending, not {given}")

    def scaled(self, factor: float) -> Self:
        steps: list[int] = []
        for step in self.merge_iterations:
            steps.append(max(round(step * factor), steps[-1] + 1 if steps else 1))
        return replace(self, merge_iterations=tuple(steps))

    def post_training(self, start: int, iterations: int) -> Self:
        """Merge at the first iteration, and again, where there are several, in the first half."""
        n, length = len(self.merge_iterations), iterations - start
        if length < 2 * n:
            raise SplatrimError(
                f"merging takes at least {2 * n} iterations of refinement:"
                f" give --iterations {start + 2 * n} or more"
            )
        steps = tuple(start + 1 + k * length // (2 * n) for k in range(n))
        return replace(self, merge_iterations=steps)

    def build(self, *, densify_until: int) -> Merging:
        """The strategy; densification has no part in it."""
        return Merging(self)


class Merging(Strategy):
    """The strategy that the trainer calls; see the module's docstring."""

    name = "merging"

    def __init__(self, config: MergingConfig) -> None:
        self.config = config
        self.seed = 0
        self.n_left: int | None = None
        """Survivors, once merging has begun."""

    def setup(self, gaussians: Model, *, extent: float, iterations: int, seed: int) -> None:
        """Raises SplatrimError for anchors, and where nothing would be merged."""
        self.seed = seed
        if not isinstance(gaussians, Gaussians):
            raise SplatrimError("merging takes Gaussians: use --representation explicit")
        late = [step for step in self.config.merge_iterations if step >= iterations]
        if late:
            text = f"--merge_iterations {' '.join(map(str, late))}: the run has {iterations}"
            raise SplatrimError(f"{text}, and the model is saved before its last step merges")

    def phase(self, step: int) -> Hashable | None:
        return "waiting" if self._due(step) is None else None

    def _due(self, step: int) -> int | None:
        """How many mergings are yet to come in and after this step; None where it has none."""
        times = self.config.merge_iterations
        due = [k for k, x in enumerate(times) if covers(step, x, self.n_images)]
        return len(times) - due[-1] if due else None

    @torch.no_grad()
    def after_backward(self, step: int, ctx: StepContext) -> None:
        n_due = self._due(step)
        if n_due is None:
            return
        gaussians, n = ctx.gaussians, len(ctx.gaussians)
        if self.n_left is None:
            self.n_left = n_survivors(self.config.survivors, n)
        # equal factors lead to the last
        target = max(round(self.n_left * (n / self.n_left) ** (1.0 - 1.0 / n_due)), self.n_left)
        seed = derive_seed(self.seed, "merging", step)
        merge_down(gaussians, ctx.optimizer, target, self.config, seed)
        logger.info(f"iteration {step}: merged {n} Gaussians to {len(gaussians)}")

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "n_left": self.n_left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = int(state.get("seed", self.seed))
        self.n_left = state.get("n_left")


@torch.no_grad()
def merge_down(
    gaussians: Gaussians,
    optimizer: torch.optim.Optimizer | None,
    n_left: int,
    config: MergingConfig,
    seed: int,
) -> None:
    """Merge Gaussians in rounds until `n_left` are left, or no two find each other.

    Args:
        gaussians: The model.
        optimizer: Its optimizer, or None when there is none yet.
        n_left: How many are to be left.
        config: Neighbours and weight of colours.
        seed: Of the curve's turns.
    """
    for k in range(ROUNDS):
        n = len(gaussians)
        mixture = Mixture(gaussians.to_tensors())
        generator = torch.Generator().manual_seed(derive_seed(seed, "turn", k))
        turn = rotation_matrices(torch.randn(1, 4, generator=generator, dtype=torch.float64))[0]
        order = morton_order((mixture.means @ turn.to(mixture.means).T).float())
        a, b = mutual_pairs(mixture, order, config.merge_neighbours, config.color_weight)
        n_pairs = min(n - n_left, int(MOST_SHARE * n) + 1, len(a))
        if n_pairs <= 0:
            return
        a, b = a[:n_pairs], b[:n_pairs]
        stays = torch.ones(n, dtype=torch.bool, device=gaussians.device)
        stays[a] = stays[b] = False
        stay = stays.nonzero()[:, 0]
        ids, next_id = gaussians.numbering(gaussians.rows["ids"][a], gaussians.next_id)
        gather_rows(
            gaussians,
            optimizer,
            torch.cat([stay, a]),
            n_kept=len(stay),
            new_ids=ids,
            last=mixture.parameters(a, b),
        )
        gaussians.next_id = next_id


def mutual_pairs(
    mixture: Mixture,
    order: Tensor,  # [N] int64
    n_neighbours: int,
    color_weight: float,
) -> tuple[Tensor, Tensor]:  # [M] int64 each
    """Rows that cost each other the least to be merged with, the cheapest pairs first.

    Args:
        mixture: The Gaussians.
        order: Rows along a curve.
        n_neighbours: How many in a row on the curve are compared.
        color_weight: Of colours in the cost.
    """
    n, device = len(order), order.device
    least = torch.full((n,), torch.inf, dtype=torch.float64, device=device)
    partner = torch.full((n,), -1, dtype=torch.int64, device=device)
    for k in range(1, min(n_neighbours, n - 1) + 1):
        first, second = order[:-k], order[k:]
        # one that is not finite is no pair
        costs = mixture.costs(first, second, color_weight).nan_to_num(nan=torch.inf)
        for own, other in ((first, second), (second, first)):
            better = costs < least[own]
            partner[own] = torch.where(better, other, partner[own])
            least[own] = torch.where(better, costs, least[own])
    rows = torch.arange(n, device=device)
    agree = (partner > rows) & (partner[partner.clamp_min(0)] == rows)
    a = rows[agree]
    a = a[least[a].sort(stable=True).indices]
    return a, partner[a]
