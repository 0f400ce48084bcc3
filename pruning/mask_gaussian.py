"""MaskGaussian: sampled existence masks, and pruning of Gaussians that are never sampled.

Liu et al., "MaskGaussian: Adaptive 3D Gaussian Representation from Probabilistic Masks" (CVPR 2025,
https://arxiv.org/abs/2412.20522). Every Gaussian has two logits (keep, drop) and exists with
probability p = softmax(logits)[keep]. One hard sample M per iteration multiplies alpha inside the
rasterizer; its straight-through gradient moves the logits, and the loss gains

    lambda(it) * mean(M)^2,     lambda(it) = lambda_mask for from <= it <= until, else 0

with the mean over all N Gaussians, seen or not, also where others have a part of them. What is
absent from each of ten fresh samples goes, inside every densification and at multiples of
mask_prune_iter after it.

A step of several images draws anew for each of those of one size, and has b terms, of the mean of
the draws. Images that share a draw have the noise of their gradients in common, and it is most of
the noise there is: the root of b, by which rates grow, would fall short, and masks fall too slowly.

The published post-training of a finished model (30000 to 35000) writes its mask loss inside the
bracket that the share of D-SSIM, 0.2, multiplies: its lambda_mask of 0.1 weighs 0.02 as counted
here (lambda_mask_factor). It removes nothing before the end. The preset "post" does, so that
iterations get faster as masks fall, and goes on dividing by the number N at the start: the mean
over what is left would push each of n Gaussians (N / n)^2 times as hard.

The published code saves one random draw of every Gaussian's mask: the presets "published-alpha",
"published-beta", "published-gamma" and "published-post" do so too, all others save the Gaussians
with p > final_threshold. A draw keeps sum(p) Gaussians on average, and history.json has the size of
each logged iteration's draw (n_used) to compare with the number saved. One published thing no
preset has: the mask's backward pass, which is wrong where masks of 0 and 1 mix.

In a model whose rows are anchors of k Gaussians each, every one of those has its logits [N, k, 2]
and its draw, and what is absent from ten samples is switched off; an anchor with nothing left goes.
There mean(M) is the mean of p over all N k, which is what M's mean is within 1 / sqrt(N k), with
the same gradient: those that are not in view are not drawn.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from gs import (
    COUNT,
    INNER_SHARE,
    NOT_NEGATIVE,
    POST_ITERATIONS,
    Histogram,
    Model,
    ParameterSpec,
    Population,
    RenderOutput,
    SplatrimError,
    State,
    StepContext,
    Strategy,
    derive_seed,
    keep_parts,
    multiple_in,
    step_gain,
    unit_histogram,
    without_added,
)
from kernels import sample_masks, sampled_in_any

from .method import MethodConfig

INITIAL_LOGITS = (10.0, 1.0)  # keep, drop: p = sigmoid(9) = 0.99988
LOGITS_ORDER = 35  # of the optimizer's groups: between opacities and scales, as published
PRUNE_SAMPLES = 10
FINAL_THRESHOLD = 0.8  # least probability of the Gaussians that are kept at the end
METHOD = "mask-gaussian"
PUBLISHED_NAMES = ("mask", "masks")  # of the logits, in published checkpoints and .ply files


@dataclass(frozen=True)
class MaskGaussianConfig(MethodConfig):
    """Settings of MaskGaussian; the defaults are the published setting beta."""

    lambda_mask: Annotated[float, NOT_NEGATIVE] = 0.0005
    """Weight of mean(M)^2 in the loss."""
    lambda_mask_factor: Annotated[float, NOT_NEGATIVE] = 1.0
    """Multiplies lambda_mask; 0.2 in post-training, where the published weight is so counted."""
    mask_from_iter: Annotated[int, COUNT] = 0
    """First iteration with the mask loss."""
    mask_until_iter: Annotated[int, COUNT] = 30_000
    """Last iteration with the mask loss (inclusive)."""
    mask_prune_iter: Annotated[int, COUNT] = 1000
    """Once densification is over, prune at multiples of this iteration; 0 for never."""
    mean_over: Literal["present", "start"] = "present"
    """Whose mean the mask loss has: that of the Gaussians there are, as published, or of as many as
    there were at the start, so that pruning makes the loss no stronger."""
    mask_lr: Annotated[float, NOT_NEGATIVE] = 0.01
    """Learning rate of mask logits."""
    final_mask: Literal["threshold", "sample"] = "threshold"
    """Which Gaussians the saved model has: those with p > final_threshold, or one random draw as
    published."""
    final_threshold: Annotated[float, INNER_SHARE] = FINAL_THRESHOLD
    """Least probability of the Gaussians that are saved, above 0 and below 1. On bonsai, 0.5, 0.8
    and 0.9 keep 393, 377 and 363 thousand for 31.278, 31.275 and 31.257 dB."""

    NAME: ClassVar[str] = "mask-gaussian"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "beta": {},
        "alpha": {"lambda_mask": 0.1, "mask_from_iter": 19_000, "mask_until_iter": 20_000},
        "gamma": {"lambda_mask": 0.001},
        "demo": {"lambda_mask": 0.001},  # a few hundred iterations on the built-in scene
        "post": {
            "lambda_mask": 0.1,
            "lambda_mask_factor": 0.2,
            "mask_prune_iter": 500,
            "mean_over": "start",
        },
        # as published to the last step, which is a random draw
        "published-beta": {"final_mask": "sample"},
        "published-alpha": {
            "lambda_mask": 0.1,
            "mask_from_iter": 19_000,
            "mask_until_iter": 20_000,
            "final_mask": "sample",
        },
        "published-gamma": {"lambda_mask": 0.001, "final_mask": "sample"},
        "published-post": {
            "lambda_mask": 0.1,
            "lambda_mask_factor": 0.2,
            "mask_prune_iter": 0,
            "final_mask": "sample",
        },
    }
    POST_PRESET: ClassVar[str | None] = "post"

    PROPERTIES: ClassVar[tuple[str, ...]] = ("masks",)

    @classmethod
    def adopt(cls, state: State) -> State:
        """Published checkpoints call the logits mask, .ply files masks."""
        name = next((name for name in PUBLISHED_NAMES if name in state["params"]), None)
        if name is None:
            return state
        if state["params"][name].shape[1:] != (2,):
            shape = list(state["params"][name].shape)
            raise SplatrimError(f"the model is damaged: its mask logits have shape {shape}")
        return _renamed({**state, "method": METHOD}, name, "mask_logits")

    @classmethod
    def hand_over(cls, state: State, successor: str) -> State:
        """Masks go on being learned, or go with the Gaussians that the run would not have saved.

        Published checkpoints do not say whom their run saved: those with p > FINAL_THRESHOLD count.
        """
        if successor == METHOD or "mask_logits" not in state["params"]:
            return state
        given = (state.get("config") or {}).get("pruning") or {}
        is_sampled = given.get("final_mask") == "sample"
        share = given.get("final_threshold", FINAL_THRESHOLD)
        if not isinstance(share, float):
            raise SplatrimError(f"the checkpoint is damaged: its final_threshold is {share!r:.40}")
        rule = cls(final_mask="sample" if is_sampled else "threshold", final_threshold=share)
        strategy = rule.build(densify_until=0)
        seed = (state.get("strategies") or {}).get(strategy.name, {}).get("seed")
        strategy.seed = seed if isinstance(seed, int) else 0
        logits = state["params"]["mask_logits"]
        keep = strategy.kept_at_the_end(logits, state["rows"]["ids"])
        if not bool(keep.any()):
            raise SplatrimError("the masks of the model drop every Gaussian: nothing to train")
        return without_added(state, keep)

    def scaled(self, factor: float) -> "MaskGaussianConfig":
        """The same schedule over `factor` times as many iterations.

        Where steps are larger, the rate of the logits grows by the square of that: the gap that
        they have to cross stays the same.
        """
        return replace(
            self,
            mask_from_iter=round(self.mask_from_iter * factor),
            mask_until_iter=round(self.mask_until_iter * factor),
            mask_prune_iter=self._interval(factor),
            mask_lr=self.mask_lr * step_gain(factor) ** 2,
        )

    def post_training(self, start: int, iterations: int) -> "MaskGaussianConfig":
        """The mask loss in every iteration after `start`; pruning over 5000 iterations as set."""
        return replace(
            self,
            mask_from_iter=start,
            mask_until_iter=iterations,
            mask_prune_iter=self._interval((iterations - start) / POST_ITERATIONS),
        )

    def _interval(self, factor: float) -> int:
        return self.mask_prune_iter and max(round(self.mask_prune_iter * factor), 1)

    def build(self, *, densify_until: int) -> "MaskGaussian":
        """The strategy; `densify_until` is the iteration at which densification ends."""
        return MaskGaussian(self, densify_until=densify_until)


class MaskGaussian(Strategy):
    """The strategy that the trainer calls; see the module's docstring."""

    name = "mask_gaussian"
    runs_on_several_ranks = True
    regularized = ("mask_logits",)

    def __init__(self, config: MaskGaussianConfig, *, densify_until: int) -> None:
        self.config = config
        self.densify_until = densify_until
        self.seed = 0
        self.n_start = 0
        self._n_used: Tensor | None = None

    def setup(self, gaussians: Model, *, extent: float, iterations: int, seed: int) -> None:
        n, parts = len(gaussians), gaussians.parts
        self.seed, self.n_start = seed, n * parts
        tail = (2,) if parts == 1 else (parts, 2)
        spec = ParameterSpec("mask_logits", tail, self.config.mask_lr, order=LOGITS_ORDER)
        gaussians.add_parameter(spec, torch.tensor(INITIAL_LOGITS).expand(n, *tail))

    def before_render(self, step: int, gaussians: Model) -> dict[str, Any]:
        ids = gaussians.part_ids()
        return {"mask_logits": logits_of(gaussians), "mask_ids": ids, "masks_by_camera": True}

    def device_inputs(self, step: int) -> dict[str, int]:
        return {"mask_seed": derive_seed(self.seed, "mask", step)}

    def loss(self, step: int, gaussians: Model, out: RenderOutput) -> Tensor | None:
        if gaussians.parts == 1:
            masks = out.info["masks"]  # [N], differentiable
        else:
            logits = logits_of(gaussians)
            masks = torch.sigmoid(logits[:, 0] - logits[:, 1])
        n_used, n_present = masks.sum(), len(masks)
        population: Population | None = out.info.get("population")
        if population is not None:  # the mean is over all, and so is the same for every part
            n_used, n_present = n_used + population.kept, population.n
        # In place, so that replays of a captured step go on writing it.
        kept = self._n_used
        self._n_used = n_used.detach() if kept is None else kept.copy_(n_used.detach())
        if not self._penalizes_at(step):
            return None
        weight = self.config.lambda_mask * self.config.lambda_mask_factor
        n = n_present if self.config.mean_over == "present" else self.n_start
        counts: Tensor | None = out.info.get("observations")
        if counts is None:
            return weight * (n_used / n).square()
        n_seen, observed = counts.sum(), (counts * masks).sum()
        if population is not None and population.observations is not None:
            assert population.observed is not None
            n_seen, observed = n_seen + population.observations, observed + population.observed
        return weight * (n_present / n * observed / n_seen.clamp_min(1.0)).square()

    def _penalizes_at(self, step: int) -> bool:
        first = step - self.n_images + 1
        return self.config.mask_from_iter <= step and first <= self.config.mask_until_iter

    def _prunes_at(self, step: int) -> bool:
        interval = self.config.mask_prune_iter
        due = multiple_in(step, interval, self.n_images) if interval else None
        return due is not None and due >= self.densify_until

    def phase(self, step: int) -> Hashable | None:
        return None if self._prunes_at(step) else self._penalizes_at(step)

    def after_backward(self, step: int, ctx: StepContext) -> None:
        if self._prunes_at(step):
            dropped = self.prune_rows(step, ctx.gaussians)
            keep_parts(ctx.gaussians, ctx.optimizer, ~dropped)

    @torch.no_grad()
    def prune_rows(self, step: int, gaussians: Model) -> Tensor:  # [N * parts] bool
        """Gaussians that none of ten samples has; their seeds are apart from the rendering's."""
        seeds = [derive_seed(self.seed, "prune", step, draw) for draw in range(PRUNE_SAMPLES)]
        return ~sampled_in_any(logits_of(gaussians), seeds, gaussians.part_ids())

    @torch.no_grad()
    def final_keep(self, gaussians: Model) -> Tensor:  # [N * parts] bool
        return self.kept_at_the_end(logits_of(gaussians), gaussians.part_ids())

    def kept_at_the_end(
        self,
        logits: Tensor,  # [N, 2]
        ids: Tensor,  # [N] int32
    ) -> Tensor:  # [N] bool
        """Which Gaussians the saved model has."""
        if self.config.final_mask == "sample":
            return sample_masks(logits, self.final_seed, ids) > 0.5
        share = self.config.final_threshold
        return logits[:, 0] - logits[:, 1] > math.log(share / (1.0 - share))

    @property
    def final_seed(self) -> int:
        """Seed of the draw that `final_mask="sample"` saves."""
        return derive_seed(self.seed, "final")

    def scalars(self, step: int) -> dict[str, float | Tensor]:
        return {} if self._n_used is None else {"num_used_gs": self._n_used}

    def histograms(self, gaussians: Model) -> dict[str, Histogram]:
        logits = logits_of(gaussians).detach()
        found = unit_histogram(torch.sigmoid(logits[:, 0] - logits[:, 1]))
        return {"masks": {**found, "label": "probability of being kept"}}

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "n_start": self.n_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = int(state.get("seed", self.seed))
        self.n_start = int(state.get("n_start", self.n_start))


def logits_of(gaussians: Model) -> Tensor:  # [N * parts, 2]
    """Logits of every Gaussian, those of a row next to each other."""
    logits = gaussians.params["mask_logits"]
    return logits if logits.dim() == 2 else logits.flatten(0, 1)


def _renamed(state: State, old: str, new: str) -> State:
    """A state in which the parameter `old` is called `new`."""

    def rename(entries: dict[str, Any]) -> dict[str, Any]:
        return {new if name == old else name: value for name, value in entries.items()}

    optimizer = rename(state["optimizer"])
    if "lrs" in optimizer:
        optimizer["lrs"] = rename(optimizer["lrs"])
    return {**state, "params": rename(state["params"]), "optimizer": optimizer}
