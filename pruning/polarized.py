"""Polarized opacities: terms that take opacities to 0 or 1, and colours smooth among neighbours.

Once densification is over, with o the opacities of N Gaussians, the loss gains

    lambda_sum sum_i (4e-4 o_i + 3e-5 o_i^2)        GS2 (2026, https://arxiv.org/abs/2604.01884)
    lambda_polar mean_i o_i (1 - o_i)
    w mean_i |z_i - z_n(i)| |x_i - x_n(i)|

and every `prune_interval` iterations Gaussians fainter than `faint_opacity` go. The first is a sum,
so that what it weighs for a Gaussian does not depend on how many there are; under it those fade
that images do not hold up. The second pushes what is above a half to 1 and what is below to 0.

The third, in place of GS2's learned smoothing among neighbours, whose weights are not published,
compares constant colours z and positions x with those of the next Gaussian n(i) on a Z-order curve,
unless that is more than four times as far away as the median. The curve is renewed every
`renew_interval` iterations and when Gaussians go, and with it w: such that the term's gradient of
positions has `smooth_share` of the norm of the whole.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from gs import (
    AT_LEAST_ONE,
    COUNT,
    NOT_NEGATIVE,
    POST_ITERATIONS,
    SHARE,
    Gaussians,
    Model,
    RenderOutput,
    SplatrimError,
    StepContext,
    Strategy,
    covers,
    keep_rows,
    morton_order,
    multiple_in,
)

from .method import MethodConfig

LINEAR, QUADRATIC = 4e-4, 3e-5  # of opacities, in GS2's term
FARTHEST = 4.0  # times the median distance to the next
SMALLEST = 1e-12  # squared scene units, so that distances of 0 have a gradient
NEXT = "next_on_curve"  # rows: the row that comes next, or the row itself


@dataclass(frozen=True)
class PolarizedConfig(MethodConfig):
    """Settings of polarized opacities; the defaults are GS2's published term alone."""

    polarize_from_iter: Annotated[int, COUNT] = 15_000
    """Terms count after this iteration, which should not be before densification ends."""
    lambda_sum: Annotated[float, NOT_NEGATIVE] = 1e-3
    """Weight of the sum over opacities."""
    lambda_polar: Annotated[float, NOT_NEGATIVE] = 0.0
    """Weight of the mean of o (1 - o)."""
    smooth_share: Annotated[float, NOT_NEGATIVE] = 0.0
    """Norm of the gradient of positions that smoothness has, over that of the whole; 0: none."""
    faint_opacity: Annotated[float, SHARE] = 0.005
    """Gaussians of lower opacity go."""
    prune_interval: Annotated[int, AT_LEAST_ONE] = 100
    """They do so at multiples of this iteration, to the end."""
    renew_interval: Annotated[int, AT_LEAST_ONE] = 1000
    """Neighbours are found anew at multiples of this iteration."""

    NAME: ClassVar[str] = "polarized"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "polar": {"lambda_polar": 0.01},
        "smooth": {"smooth_share": 0.1},
        "demo": {},
    }

    def scaled(self, factor: float) -> Self:
        """The same schedule over `factor` times as many iterations; opacities settle as long."""
        return replace(
            self,
            polarize_from_iter=round(self.polarize_from_iter * factor),
            renew_interval=max(round(self.renew_interval * factor), 1),
            prune_interval=self._interval(factor),
        )

    def post_training(self, start: int, iterations: int) -> Self:
        """The terms from the first iteration on, as over 5000 of them."""
        share = (iterations - start) / POST_ITERATIONS
        return replace(
            self,
            polarize_from_iter=start,
            prune_interval=min(self._interval(share), max((iterations - start) // 2, 1)),
        )

    def _interval(self, factor: float) -> int:
        return max(round(self.prune_interval * factor), min(self.prune_interval, 50))

    def build(self, *, densify_until: int) -> Polarized:
        """The strategy; its own schedule says when densification is over."""
        return Polarized(self)


class Polarized(Strategy):
    """The strategy that the trainer calls; see the module's docstring."""

    name = "polarized"
    regularized = ("opacities",)

    def __init__(self, config: PolarizedConfig) -> None:
        self.config = config
        self._weight = torch.zeros(())  # w, on the device

    def setup(self, gaussians: Model, *, extent: float, iterations: int, seed: int) -> None:
        """Raises SplatrimError for anchors, whose opacities a network makes."""
        if not isinstance(gaussians, Gaussians):
            raise SplatrimError(
                "polarized opacities are those of Gaussians, which anchors do not have:"
                " use --representation explicit"
            )
        self._weight = self._weight.to(gaussians.device)
        if self.config.smooth_share > 0:
            rows = torch.arange(len(gaussians), device=gaussians.device)
            gaussians.rows.setdefault(NEXT, rows)

    def loss(self, step: int, gaussians: Gaussians, out: RenderOutput) -> Tensor | None:
        config = self.config
        if not self._acts_at(step):
            return None
        opacities = gaussians.get_opacities()
        loss = config.lambda_sum * opacity_sum(opacities)
        if config.lambda_polar > 0:
            loss = loss + config.lambda_polar * (opacities * (1.0 - opacities)).mean()
        if config.smooth_share > 0 and not self._begins_at(step):
            loss = loss + self._weight * smoothness(gaussians)
        return loss

    def phase(self, step: int) -> Hashable | None:
        if self._prunes_at(step) or self._renews_at(step):
            return None
        return "pushing" if self._acts_at(step) else "waiting"

    def _acts_at(self, step: int) -> bool:
        return step > self.config.polarize_from_iter

    def _begins_at(self, step: int) -> bool:
        return covers(step, self.config.polarize_from_iter + 1, self.n_images)

    def _prunes_at(self, step: int) -> bool:
        due = multiple_in(step, self.config.prune_interval, self.n_images)
        return due is not None and due > self.config.polarize_from_iter

    def _renews_at(self, step: int) -> bool:
        """Whether neighbours are found at `step` even if no Gaussian goes."""
        if self.config.smooth_share == 0 or not self._acts_at(step):
            return False
        due = multiple_in(step, self.config.renew_interval, self.n_images)
        return due is not None or self._begins_at(step)

    @torch.no_grad()
    def after_backward(self, step: int, ctx: StepContext) -> None:
        gaussians, has_neighbours = ctx.gaussians, self.config.smooth_share > 0
        if self._renews_at(step):
            gaussians.rows[NEXT] = next_on_curve(gaussians.params["means"].detach())
            self._weigh(gaussians)
        if self._prunes_at(step):
            keep = gaussians.get_opacities() >= self.config.faint_opacity
            if not bool(keep.all()):  # otherwise captured steps go on
                keep_rows(gaussians, ctx.optimizer, keep)
                if has_neighbours:
                    gaussians.rows[NEXT] = next_on_curve(gaussians.params["means"].detach())

    def _weigh(self, gaussians: Gaussians) -> None:
        """Set the weight of smoothness by the gradients of positions that are there."""
        means = gaussians.params["means"]
        if means.grad is None:
            return
        with torch.enable_grad():
            (own,) = torch.autograd.grad(smoothness(gaussians), means)
        share = self.config.smooth_share / self.n_images
        self._weight.copy_(share * means.grad.norm() / own.norm().clamp_min(1e-30))

    def state_dict(self) -> dict[str, Any]:
        return {"weight": float(self._weight)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._weight.fill_(float(state.get("weight", 0.0)))


def opacity_sum(opacities: Tensor) -> Tensor:  # [N] -> []
    """Sum of 4e-4 o + 3e-5 o^2."""
    return (LINEAR * opacities + QUADRATIC * opacities.square()).sum()


def smoothness(gaussians: Gaussians) -> Tensor:  # []
    """Mean of differences of colour times distance, over the Gaussians and their next ones."""
    means, colors = gaussians.params["means"], gaussians.params["sh0"][:, 0]
    rows = gaussians.rows[NEXT]
    steps = (means - means[rows]).square().sum(-1)
    return ((colors - colors[rows]).abs().sum(-1) * (steps + SMALLEST).sqrt()).mean()


def next_on_curve(means: Tensor) -> Tensor:  # [N, 3] -> [N] int64
    """The row that comes next on a Z-order curve; the row itself where that is far, or none."""
    order = morton_order(means)
    own, other = order[:-1], order[1:]
    distances = (means[own] - means[other]).norm(dim=-1)
    rows = torch.arange(len(means), device=means.device)
    if len(own):
        rows[own] = torch.where(distances <= FARTHEST * distances.median(), other, own)
    return rows
