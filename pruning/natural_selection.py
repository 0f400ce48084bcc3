"""Natural selection: all opacities are pushed down alike, and those survive that images hold up.

Deng et al., "Gaussian Natural Selection" (2025, https://arxiv.org/abs/2511.16980). With v the
logits of opacities, o = sigmoid(v) and a span of T = select_until_iter - select_from_iter
iterations, every `select_interval`-th of them adds to the loss

    lambda mean((v + 20) / max(0.05, 1 - o))^2      in the first T / 8, with fixed denominators
    3 lambda (mean(v) + 20)^2                       afterwards

The first takes the same share of every opacity, the second pushes every logit alike: only a
photometric gradient keeps a Gaussian. Every second time, lambda becomes 0.8 or 1.2 times as large
where the B-th largest opacity is below 0.9 or above 1.1 of a goal, which falls linearly from 0.8 of
what it is at first to 0 after 7/8 of T; B is the number of survivors. After T / 8 what is fainter
than 0.001 goes. Once fewer than 1.05 B are left, or at the end of T, B are drawn by opacity without
replacement, and selection is over.

Steps of opacities are four times as long, from the first iteration of T until T / 8 after selection
is over. They are lengthened after Adam has taken them, whatever schedule its rates follow.
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
    COUNT,
    NOT_NEGATIVE,
    SHARE,
    Model,
    SplatrimError,
    StepContext,
    Strategy,
    derive_seed,
    keep_rows,
    multiple_in,
)

from .method import MethodConfig
from .scores import sample_keep
from .survivors import n_survivors

DEPTH = 20.0  # logits are pushed towards minus this
PRESSURE = 3.0  # of the second term over the first
LEAST_REST = 0.05  # of 1 - o
GOAL_SHARE, GOAL_END = 0.8, 7 / 8  # of the B-th largest opacity at first; of T
PART = 1 / 8  # of T: the first term, and longer steps afterwards
SLACK = 1.05  # over B at which the last cut comes
POST_SHARE = 0.6  # of post-training
FEWEST_PUSHES = 50  # in T

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class NaturalSelectionConfig(MethodConfig):
    """Settings of natural selection; the defaults are the published ones."""

    survivors: str = "0.33x"
    """Gaussians that are left: a number, or a share of those there are when selection begins.
    Published: a third of what densification grows to."""
    select_from_iter: Annotated[int, COUNT] = 15_000
    """Selection begins after this iteration, which should not be before densification ends."""
    select_until_iter: Annotated[int, AT_LEAST_ONE] = 23_000
    """The last cut is at this iteration at the latest."""
    select_interval: Annotated[int, AT_LEAST_ONE] = 50
    """Opacities are pushed, and the faint go, at multiples of this iteration."""
    lambda_select: Annotated[float, NOT_NEGATIVE] = 2e-4
    """Weight of the push at first."""
    faint_opacity: Annotated[float, SHARE] = 0.001
    """Gaussians of lower opacity go while selecting."""
    opacity_gain: Annotated[float, NOT_NEGATIVE] = 4.0
    """How many times as long steps of opacities are while selecting."""

    NAME: ClassVar[str] = "natural-selection"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "demo": {"survivors": "0.5x"},
        "post": {"survivors": "0.5x"},
    }
    POST_PRESET: ClassVar[str | None] = "post"

    def __post_init__(self) -> None:
        super().__post_init__()
        n_survivors(self.survivors, 1)
        if self.select_from_iter >= self.select_until_iter:
            raise SplatrimError(
                f"--select_until_iter {self.select_until_iter} is not after"
                f" --select_from_iter {self.select_from_iter}: give a later one"
            )

    def scaled(self, factor: float) -> Self:
        """The same schedule over `factor` times as many iterations.

        Pushes stay as far apart, unless fewer than 50 would be left.
        """
        return self._within(
            round(self.select_from_iter * factor), round(self.select_until_iter * factor)
        )

    def post_training(self, start: int, iterations: int) -> Self:
        """Selection in the first three fifths of the iterations after `start`."""
        return self._within(start, start + round(POST_SHARE * (iterations - start)))

    def _within(self, first: int, last: int) -> Self:
        last = max(last, first + 1)
        interval = min(self.select_interval, max((last - first) // FEWEST_PUSHES, 1))
        return replace(
            self, select_from_iter=first, select_until_iter=last, select_interval=interval
        )

    def build(self, *, densify_until: int) -> NaturalSelection:
        """The strategy; its own schedule says when densification is over."""
        return NaturalSelection(self)


class NaturalSelection(Strategy):
    """The strategy that the trainer calls; see the module's docstring."""

    name = "natural_selection"
    regularized = ("opacities",)

    def __init__(self, config: NaturalSelectionConfig) -> None:
        self.config = config
        self.seed = 0
        self.weight = config.lambda_select
        self.n_left: int | None = None
        """Survivors, once selection has begun."""
        self.first_quantile: float | None = None
        """The B-th largest opacity when selection began."""
        self.ended: int | None = None
        """The iteration of the last cut."""
        self._before: Tensor | None = None  # logits before the optimizer's step

    @property
    def span(self) -> int:
        """T, iterations."""
        return self.config.select_until_iter - self.config.select_from_iter

    def setup(self, gaussians: Model, *, extent: float, iterations: int, seed: int) -> None:
        """Raises SplatrimError for anchors, whose opacities a network makes."""
        if gaussians.parts > 1 or "opacities" not in gaussians.params:
            raise SplatrimError(
                "natural selection pushes the opacities of Gaussians, which anchors do not have:"
                " use --representation explicit"
            )
        self.seed = seed

    def phase(self, step: int) -> Hashable | None:
        if self._pushes_at(step):
            return None
        return "boosted" if self._lengthens(step) else "resting"

    def _pushes_at(self, step: int) -> bool:
        if self.ended is not None:
            return False
        config, n = self.config, self.n_images
        last = config.select_until_iter
        due = multiple_in(step, config.select_interval, n)
        pushes = due is not None and config.select_from_iter < due <= last
        return pushes or step - n < last <= step

    def _lengthens(self, step: int) -> bool:
        if self.config.opacity_gain == 1:
            return False
        last = self.config.select_until_iter if self.ended is None else self.ended
        return self.config.select_from_iter < step <= last + PART * self.span

    @torch.no_grad()
    def after_backward(self, step: int, ctx: StepContext) -> None:
        opacities = ctx.gaussians.params["opacities"]
        if self._pushes_at(step):
            self._push(step, opacities)
        if self._lengthens(step):
            self._before = opacities.detach().clone()

    def _push(self, step: int, opacities: Tensor) -> None:
        if self.n_left is None:
            self.n_left = n_survivors(self.config.survivors, len(opacities))
        if len(opacities) <= self.n_left:
            self.ended = step
            return
        if self.first_quantile is None or (step // self.config.select_interval) % 2 == 0:
            self.steer(step, opacities.detach().sigmoid(), self.n_left)
        is_early = step - self.config.select_from_iter <= PART * self.span
        push = decay_gradient if is_early else pressure_gradient
        gradient = self.n_images * push(opacities.detach(), self.weight)
        if opacities.grad is None:
            opacities.grad = gradient.expand_as(opacities).clone()
        else:
            opacities.grad += gradient

    def steer(self, step: int, opacities: Tensor, n_left: int) -> None:  # [N]
        """Set the weight by where the `n_left`-th largest opacity is beside the goal. Waits."""
        quantile = float(opacities.topk(n_left).values[-1])
        if self.first_quantile is None:
            self.first_quantile = quantile
            return
        goal = self.goal(step)
        if quantile < 0.9 * goal:
            self.weight *= 0.8
        elif quantile > 1.1 * goal:
            self.weight *= 1.2

    def goal(self, step: int) -> float:
        """Where the B-th largest opacity is to be at `step`."""
        done = (step - self.config.select_from_iter) / (GOAL_END * self.span)
        return GOAL_SHARE * (self.first_quantile or 0.0) * min(max(1.0 - done, 0.0), 1.0)

    @torch.no_grad()
    def after_step(self, step: int, ctx: StepContext) -> None:
        opacities = ctx.gaussians.params["opacities"]
        if self._before is not None and self._before.shape == opacities.shape:
            gain = self.config.opacity_gain
            opacities.copy_(torch.lerp(self._before, opacities.detach(), gain))
        self._before = None
        if self._pushes_at(step):
            self._cut(step, ctx)

    def _cut(self, step: int, ctx: StepContext) -> None:
        """Remove the faint, and once there are few all that are too many."""
        config, gaussians = self.config, ctx.gaussians
        assert self.n_left is not None  # a push comes first
        if step - config.select_from_iter > PART * self.span:
            keep = gaussians.params["opacities"].detach().sigmoid() >= config.faint_opacity
            if int(keep.sum()) < self.n_left:  # those that are drawn by opacity
                keep.fill_(True)
            keep_rows(gaussians, ctx.optimizer, keep)
        if len(gaussians) < SLACK * self.n_left or step >= config.select_until_iter:
            opacities = gaussians.params["opacities"].detach().sigmoid()
            seed = derive_seed(self.seed, "natural selection", step)
            kept = min(self.n_left, len(gaussians))
            keep = sample_keep(opacities, kept, seed=seed, ids=gaussians.rows["ids"])
            keep_rows(gaussians, ctx.optimizer, keep)
            self.ended = step
            logger.info(f"iteration {step}: {len(gaussians)} Gaussians survive")

    def scalars(self, step: int) -> dict[str, float | Tensor]:
        return {"lambda_select": self.weight}

    def state_dict(self) -> dict[str, Any]:
        names = ("seed", "weight", "n_left", "first_quantile", "ended")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = int(state.get("seed", self.seed))
        self.weight = float(state.get("weight", self.weight))
        for name in ("n_left", "first_quantile", "ended"):
            setattr(self, name, state.get(name))


def decay_gradient(logits: Tensor, weight: float) -> Tensor:  # [N] -> [N]
    """Gradient of weight mean((v + 20) / r)^2 with r = max(0.05, 1 - o) held fixed."""
    rest = (1.0 - logits.sigmoid()).clamp_min(LEAST_REST)
    mean = ((logits + DEPTH) / rest).mean()
    return weight * 2.0 / len(logits) * mean / rest


def pressure_gradient(logits: Tensor, weight: float) -> Tensor:  # [N] -> []
    """Gradient of 3 weight (mean(v) + 20)^2 by any of the logits."""
    return weight * 2.0 * PRESSURE / len(logits) * (logits.mean() + DEPTH)
