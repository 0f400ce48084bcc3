"""Densification by absolute gradients: long Gaussians are cut in two, up to a budget.

Deng et al., "Improving Densification in 3D Gaussian Splatting for High-Fidelity Rendering" (2025,
https://arxiv.org/abs/2508.12313). Until `densify_until_iter`, every iteration adds to each visible
Gaussian the norm of its absolute image-space gradient (Ye et al., "AbsGS", 2024,
https://arxiv.org/abs/2404.10484), in NDC,

    A = |(W/2 sum_pixels |dL/dx|, H/2 sum_pixels |dL/dy|)|

in which pixels that pull to opposite sides do not cancel. Every `densification_interval` iterations
what is fainter than `min_opacity` goes, with what other strategies name, and of those whose mean A
reaches the threshold as many are split as the target leaves room for, drawn without replacement in
proportion to their mean A, or to a score by pixels (gs.densification.pixel_scores). With B the
budget and b = 0 or, by growth_from, the Gaussians at the start,

    target(it) = b + (B - b) sqrt((it - from) / (until - 500 - from)),       at most B

A split along the longest axis e of scale s replaces a Gaussian by two, with d = split_distance,

    means mu +- 3 d s e        scales (1 - d) s, of the other axes sqrt(1 - d^2) of theirs

that end where it ended, 3 standard deviations out, and whose other axes end on its surface; their
opacity is `child_opacity` of its. There are no clones, and nothing goes by size.

Recovery-aware pruning: once at `first_prune_iter` what is fainter than 0.02 goes. Opacities fall to
at most 0.05 at the first `opacity_resets` multiples of `opacity_reset_interval`, and
`recovery_delay` iterations after each of the first two the lowest fifth goes, which by then has not
recovered: an exact number, ties by id, as Gaussians that nothing has shown since all have 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from kernels import add_gradient_norms

from ..model.gaussians import Gaussians
from ..model.rows import gather_rows, keep_rows, replace_values
from ..ranges import AT_LEAST_ONE, COUNT, INNER_SHARE, NOT_NEGATIVE, SHARE, Range
from ..schedule import covers, multiple_in
from ..seeds import derive_seed
from ..training.strategy import StepContext, Strategy, rows_to_prune
from .adaptive import HASTENED_INTERVAL, VIEWS, DensifierConfig, rotate, rows_where
from .budget import budget_limit, check_budget
from .pixel_scores import pixel_scores
from .taming import draw

if TYPE_CHECKING:
    from typing_extensions import Self

ABSOLUTE = "absolute_gradients"  # rows: sum of norms of absolute gradients, NDC
SETTLE_SHARE = 500 / 14_500  # of densification's iterations, the last, in which nothing grows
FIRST_MIN_OPACITY = 0.02
RESET_OPACITY = 0.05
RECOVERIES, RECOVERY_SHARE = 2, 0.2  # resets after which the lowest go, and how many of all
LEAST_RESET_INTERVAL = 500  # iterations, to recover in


@dataclass(frozen=True)
class ErrorConfig(DensifierConfig):
    """Settings of the densifier by absolute gradients; the defaults are the published ones, except
    the budget."""

    budget: str = "5x"
    """Gaussians to grow to: a number, or a multiple of those at the start, such as 5x or 1.5x."""
    growth_from: Literal["nothing", "start"] = "nothing"
    """Where the target begins: at 0, as published, so that a small budget waits before it grows,
    or at the Gaussians of the start."""
    densify_grad_threshold: Annotated[float, NOT_NEGATIVE] = 3e-4
    """Mean absolute image-space gradient (NDC) from which a Gaussian may be split."""
    split_score: Literal["gradient", "edge", "error"] = "gradient"
    """What candidates are drawn in proportion to: their mean absolute gradients, or how much they
    weigh where images have edges, as published, or where the rendering is wrong."""
    score_views: Annotated[int, AT_LEAST_ONE] = 10
    """Training views over which edges or errors are summed at each densification."""
    split_distance: Annotated[float, Range(0, 0.5, is_above=True)] = 0.45
    """Distance of a child from its parent, over the parent's three standard deviations."""
    child_opacity: Annotated[float, INNER_SHARE] = 0.6
    """Opacity of a child over its parent's."""
    min_opacity: Annotated[float, SHARE] = 0.005
    """Gaussians of lower opacity are pruned at each densification."""
    opacity_ceiling: Annotated[float, SHARE] = 1.0
    """Opacities fall to at most this at each densification; 1 leaves them."""
    first_prune_iter: Annotated[int, COUNT] = 300
    """At this iteration Gaussians fainter than 0.02 go; 0 for never."""
    opacity_resets: Annotated[int, COUNT] = 4
    """How many times opacities fall to at most 0.05, while densifying."""
    opacity_reset_interval: Annotated[int, AT_LEAST_ONE] = 3000
    """They do so at multiples of this iteration."""
    recovery_delay: Annotated[int, AT_LEAST_ONE] = 300
    """Iterations after each of the first two resets at which the lowest fifth goes. Give at least
    the number of training views: not scaled, as every Gaussian has to be seen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        budget_limit(self.budget, 1)

    def scaled(self, factor: float) -> Self:
        """The same schedule over `factor` times as many iterations.

        Opacities are not reset where they would have less than 500 iterations to recover.
        """
        interval = max(round(self.opacity_reset_interval * factor), 1)
        return replace(
            super().scaled(factor),
            first_prune_iter=round(self.first_prune_iter * factor),
            opacity_reset_interval=interval,
            opacity_resets=self.opacity_resets if interval >= LEAST_RESET_INTERVAL else 0,
        )

    def hastened(self) -> Self:
        """Fewer densifications, and opacities are never reset, as of the default densifier."""
        interval = max(self.densification_interval, HASTENED_INTERVAL)
        return replace(self, densification_interval=interval, opacity_resets=0)

    def target(self, step: int, n_start: int) -> int:
        """The number of Gaussians that densification at `step` may lead to."""
        limit = budget_limit(self.budget, n_start)
        length = self.densify_until_iter - self.densify_from_iter
        # the last densification is at most an interval before the end, and is to fill the budget
        length = max(length - max(SETTLE_SHARE * length, self.densification_interval), 1.0)
        done = min(max((step - self.densify_from_iter) / length, 0.0), 1.0)
        first = n_start if self.growth_from == "start" else 0
        return first + math.floor((limit - first) * math.sqrt(done))

    def resets_at(self, step: int, n_images: int = 1) -> bool:
        """Whether opacities are reset at `step`: 3000, 6000, 9000 and 12000 by default."""
        due = multiple_in(step, self.opacity_reset_interval, n_images)
        return due is not None and self._resets(due // self.opacity_reset_interval)

    def recovers_at(self, step: int, n_images: int = 1) -> bool:
        """Whether what has not recovered from a reset goes at `step`: 3300 and 6300 by default."""
        rounds = range(1, RECOVERIES + 1)
        due = [k * self.opacity_reset_interval + self.recovery_delay for k in rounds]
        return any(self._resets(k) and covers(step, due[k - 1], n_images) for k in rounds)

    def _resets(self, k: int) -> bool:
        """Whether there is a reset at the k-th multiple of the interval."""
        is_early = k * self.opacity_reset_interval < self.densify_until_iter
        return 1 <= k <= self.opacity_resets and is_early

    def build(self) -> ErrorDensifier:
        return ErrorDensifier(self)


class ErrorDensifier(Strategy):
    """Split along the longest axis up to the budget; see the module's docstring."""

    name = "densify"

    def __init__(self, config: ErrorConfig) -> None:
        self.config = config
        self.seed = 0
        self.n_start = 0
        self._counts: dict[str, float | Tensor] = {}

    def setup(self, gaussians: Gaussians, *, extent: float, iterations: int, seed: int) -> None:
        """Raises SplatrimError where the budget is below the number of Gaussians at the start."""
        resumed = ABSOLUTE in gaussians.rows
        self.seed, self.n_start = seed, len(gaussians)
        for name in (ABSOLUTE, VIEWS):
            zeros = torch.zeros(len(gaussians), device=gaussians.device)
            gaussians.rows.setdefault(name, zeros)
        if not resumed:
            check_budget(self.config.budget, self.n_start)

    def before_render(self, step: int, gaussians: Gaussians) -> dict[str, Any]:
        return {} if self.config.is_over(step, self.n_images) else {"absgrad": True}

    def phase(self, step: int) -> Hashable | None:
        config, n = self.config, self.n_images
        acts = config.densifies_at(step, n) or config.resets_at(step, n)
        acts |= config.recovers_at(step, n) or self._cuts_at(step)
        if acts:
            return None
        return "done" if config.is_over(step, n) else "gathering"

    def _cuts_at(self, step: int) -> bool:
        """Whether the first pruning is at `step`."""
        first = self.config.first_prune_iter
        return first > 0 and covers(step, first, self.n_images)

    def after_backward(self, step: int, ctx: StepContext) -> None:
        config, gaussians, n = self.config, ctx.gaussians, self.n_images
        if not config.is_over(step, n):
            for rendering in ctx.renderings:
                add_statistics(gaussians, rendering.info, skip=ctx.skip)
            if config.densifies_at(step, n):
                self.densify(step, ctx)
        if self._cuts_at(step):
            faint = gaussians.get_opacities().detach() < FIRST_MIN_OPACITY
            keep_rows(gaussians, ctx.optimizer, ~faint)
        if config.resets_at(step, n):
            opacities = gaussians.params["opacities"].detach().clamp_max(_logit(RESET_OPACITY))
            replace_values(gaussians, ctx.optimizer, "opacities", opacities)
        if config.recovers_at(step, n):
            count = int(RECOVERY_SHARE * len(gaussians))
            opacities = gaussians.params["opacities"].detach()
            keep_rows(gaussians, ctx.optimizer, ~lowest(opacities, count, gaussians.rows["ids"]))

    @torch.no_grad()
    def densify(self, step: int, ctx: StepContext) -> None:
        """Prune and split now, and start the statistics afresh."""
        config, gaussians = self.config, ctx.gaussians
        # Unseen Gaussians have 0 / 0; they stay as they are.
        means = (gaussians.rows[ABSOLUTE] / gaussians.rows[VIEWS]).nan_to_num(nan=0.0)
        drop = gaussians.get_opacities() < config.min_opacity
        others = rows_to_prune(step, gaussians, ctx.strategies)
        stay = ~drop if others is None else ~(drop | others)
        candidates = stay & (means >= config.densify_grad_threshold)
        n_stay, n_candidates = torch.stack([stay.sum(), candidates.sum()]).tolist()  # waits
        n_gone = len(gaussians) - n_stay
        n_split = min(max(config.target(step, self.n_start) - n_stay, 0), n_candidates)
        parted = draw(
            candidates,
            self.scores(step, ctx, means),
            n_split,
            seed=derive_seed(self.seed, "error split", step),
            ids=gaussians.rows["ids"],
        )
        self._split(ctx, rows_where(stay & ~parted, n_stay - n_split), rows_where(parted, n_split))
        if config.opacity_ceiling < 1:
            gaussians.params["opacities"].clamp_max_(_logit(config.opacity_ceiling))
        for name in (ABSOLUTE, VIEWS):
            gaussians.rows[name].zero_()
        self._counts = {"n_split": float(n_split), "n_pruned": float(n_gone)}

    def scores(self, step: int, ctx: StepContext, means: Tensor) -> Tensor:  # [N] -> [N]
        """What candidates are drawn in proportion to."""
        if self.config.split_score == "gradient":
            return means
        if ctx.images is None:
            raise ValueError("a score by pixels needs the training images")
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "error views", step))
        views = torch.randperm(len(ctx.cameras), generator=generator)[: self.config.score_views]
        return pixel_scores(
            ctx.gaussians,
            ctx.cameras,
            ctx.images,
            views.tolist(),
            self.config.split_score,
            white_background=ctx.white_background,
        )

    def _split(self, ctx: StepContext, stay: Tensor, parents: Tensor) -> None:  # rows
        """Leave the rows `stay`, and two children of each of `parents`: all first, all second."""
        config, gaussians = self.config, ctx.gaussians
        ids, next_id, numbered = gaussians.rows["ids"][parents], gaussians.next_id, []
        for _ in range(2):
            fresh, next_id = gaussians.numbering(ids, next_id)
            numbered.append(fresh)
        values = {name: x.detach()[parents] for name, x in gaussians.params.items()}
        gather_rows(
            gaussians,
            ctx.optimizer,
            torch.cat([stay, parents, parents]),
            n_kept=len(stay),
            new_ids=torch.cat(numbered),
            last=split_long_axis(
                values, distance=config.split_distance, opacity_share=config.child_opacity
            ),
        )
        gaussians.next_id = next_id

    def scalars(self, step: int) -> dict[str, float | Tensor]:
        return self._counts

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "n_start": self.n_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = int(state.get("seed", self.seed))
        self.n_start = int(state.get("n_start", self.n_start))


@torch.no_grad()
def add_statistics(
    gaussians: Gaussians, info: dict[str, Any], *, skip: Tensor | None = None
) -> None:
    """Add this iteration's absolute image-space gradients of visible Gaussians to the row buffers.

    Args:
        gaussians: The model, with the buffers that `ErrorDensifier.setup` adds.
        info: From the rendering with `absgrad`, after backward: radii [C,N,2], means2d [C,N,2] with
            `.absgrad` in pixels, width, height.
        skip: One int32 on the device; if it is not 0, nothing is added.
    """
    gradients: Tensor | None = getattr(info["means2d"], "absgrad", None)  # [C, N, 2]
    if gradients is None:
        raise ValueError("densification needs info['means2d'].absgrad: run backward first")
    add_gradient_norms(
        gradients,
        info["radii"],
        gaussians.rows[ABSOLUTE],
        gaussians.rows[VIEWS],
        width=info["width"],
        height=info["height"],
        skip=skip,
    )


def split_long_axis(
    parents: Mapping[str, Tensor],  # means, quats, scales (log), opacities (logits): [M, ...]
    *,
    distance: float,
    opacity_share: float,
) -> dict[str, Tensor]:
    """Means [2M,3], log-scales [2M,3] and logits [2M] of the children: all first, then all second.

    The first lie along the positive direction of the axis; the module's docstring has the formulas.
    """
    scales, longest = parents["scales"].max(-1, keepdim=True)  # of equal ones the first
    axes = torch.zeros_like(parents["scales"]).scatter_(-1, longest, 3.0 * distance * scales.exp())
    offsets = rotate(parents["quats"], axes)
    shrunk = parents["scales"] + 0.5 * math.log1p(-distance * distance)
    shrunk = shrunk.scatter(-1, longest, scales + math.log1p(-distance))
    opacities = opacity_share * parents["opacities"].sigmoid()
    return {
        "means": torch.cat([parents["means"] + offsets, parents["means"] - offsets]),
        "scales": shrunk.repeat(2, 1),
        "opacities": torch.logit(opacities).repeat(2),
    }


def lowest(values: Tensor, count: int, ids: Tensor) -> Tensor:  # [N], [N] int32 -> [N] bool
    """Exactly `count` rows with the lowest values; of equal ones those of the lowest ids."""
    by_id = ids.argsort()
    order = by_id[values[by_id].sort(stable=True).indices[:count]]
    return torch.zeros_like(values, dtype=torch.bool).index_fill_(0, order, True)


def _logit(opacity: float) -> float:
    return math.log(opacity / (1.0 - opacity))
