"""Densification within a budget: who is cloned or split is drawn by a score over sampled views.

Mallick, Goel et al., "Taming 3DGS: High-Quality Radiance Fields with Limited Resources" (SIGGRAPH
Asia 2024, https://arxiv.org/abs/2406.15643), sections 3.1 and 3.2. From S Gaussians at the start to
the budget U, K densifications aim at

    N(x) = S + (U - S) (2 x/K - (x/K)^2),        x = 1..K

so that growth is fastest at first and ends at U. Those that could be added at x are the default
densifier's (gs.densification.adaptive): mean image-space gradient at the threshold or above, cloned
if small and split if large, each one row more. As many are drawn as N(x) leaves room for, clones
and splits in proportion to their candidates, without replacement, with probabilities proportional
to the score

    sum over views v    50 L_v  sum_k  w_k q_kv / median(q_kv > 0)

of the Gaussians visible in v, L_v being the photometric loss of the view and q_k (weight w_k)

    gradient 25     opacity 100     depth 5          extent in pixels 10     volume 25
    pixels 0.1      weights 50      saliency 10      distance 50

"pixels" and "weights" are the rasterizer's contrib_count and contrib_sum, "volume" is the product
of the scales. A pixel's saliency is 50 times its L1 error over the view's mean one, plus 50 times
the strength of the image's edges; here it is summed with the Gaussian's blending weights, as the
derivative of an image by its colour. "distance" is that of a Gaussian's pixels to its centre,
summed, for which pixels times extent stand.

Of the faint and the oversized, half go at each densification, drawn in proportion to 1 / score: a
Gaussian that matters may recover. What other strategies name goes as always. Scores are of the
plain model: masks that a pruner samples have no part in them.

The published removal is another: it draws half as many rows as there are faint and oversized ones,
in proportion to 1 / score, and in its first 27 rounds removes only what is both drawn and faint or
oversized. Here the draw is among the faint and oversized, in every round, so that more of them go.
Nor are opacities turned into absolute values after iteration 15000: the saved model stays one that
every viewer shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional

from kernels import rasterization, uniform

from ..losses import counted_of, photometric_loss, to_float
from ..model.gaussians import Gaussians
from ..model.light import as_taken
from ..model.renderer import render
from ..model.view import view_of
from ..ranges import AT_LEAST_ONE
from ..seeds import derive_seed
from ..training.strategy import StepContext, rows_to_prune
from .adaptive import (
    GRADIENTS,
    MAX_RELATIVE_SCALE,
    VIEWS,
    DefaultDensifier,
    DensifyConfig,
    Grown,
    split,
)
from .budget import budget_limit, check_budget

if TYPE_CHECKING:
    from ..data.camera import Camera
    from ..evaluation.views import Images

WEIGHTS = {
    "gradient": 25.0,
    "opacity": 100.0,
    "depth": 5.0,
    "extent": 10.0,
    "volume": 25.0,
    "pixels": 0.1,
    "weights": 50.0,
    "saliency": 10.0,
    "distance": 50.0,
}
LOSS_WEIGHT = 50.0
ERROR_WEIGHT = 50.0
EDGE_WEIGHT = 50.0
LAMBDA_DSSIM = 0.2
PRUNED_SHARE = 0.5
MIN_SCORE = 1e-12  # of a drawn probability, so that 1 / score is finite


@dataclass(frozen=True)
class TamingConfig(DensifyConfig):
    """Settings of the densifier with a budget; the defaults are the paper's for indoor scenes."""

    densification_interval: Annotated[int, AT_LEAST_ONE] = 500
    """Densify at multiples of this iteration."""
    budget: str = "2x"
    """Gaussians to grow to: a number, or a multiple of those at the start, such as 2x or 1.5x."""
    score_views: Annotated[int, AT_LEAST_ONE] = 10
    """Training views over which Gaussians are scored at each densification."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.limit(1)

    def limit(self, n_start: int) -> int:
        """The number of Gaussians that the budget allows after a start with `n_start`."""
        return budget_limit(self.budget, n_start)

    def rounds(self) -> range:
        """The iterations that densify."""
        interval = self.densification_interval
        first = (self.densify_from_iter // interval + 1) * interval
        return range(first, self.densify_until_iter, interval)

    def target(self, step: int, n_start: int) -> int:
        """N(x), the number of Gaussians that densification at `step`, or just before, leads to."""
        rounds = self.rounds()
        x = sum(step >= due for due in rounds) / len(rounds)
        return n_start + math.floor((self.limit(n_start) - n_start) * (2 * x - x * x))

    def build(self) -> TamingDensifier:
        return TamingDensifier(self)


class TamingDensifier(DefaultDensifier):
    """Clone and split by score up to the budget; see the module's docstring."""

    runs_on_several_ranks = False
    config: TamingConfig

    def __init__(self, config: TamingConfig) -> None:
        super().__init__(config)
        self.n_start = 0

    def setup(self, gaussians: Gaussians, *, extent: float, iterations: int, seed: int) -> None:
        """Raises SplatrimError where the budget is below the number of Gaussians at the start."""
        resumed = GRADIENTS in gaussians.rows
        super().setup(gaussians, extent=extent, iterations=iterations, seed=seed)
        self.n_start = len(gaussians)
        if not resumed:
            check_budget(self.config.budget, self.n_start)

    @torch.no_grad()
    def densify(self, step: int, ctx: StepContext) -> None:
        """Clone, split and prune now, and start the statistics afresh."""
        config, gaussians = self.config, ctx.gaussians
        gradients = (gaussians.rows[GRADIENTS] / gaussians.rows[VIEWS]).nan_to_num(nan=0.0)
        scores = self.scores(step, ctx, gradients)

        moving = gradients >= config.densify_grad_threshold
        small = gaussians.get_scales().amax(-1) <= config.percent_dense * ctx.extent
        n_free = max(config.target(step, self.n_start) - len(gaussians), 0)
        candidates = (moving & small, moving & ~small)
        clones, parents = self._draw_growth(step, gaussians, candidates, scores, n_free)
        stay = torch.ones(len(gaussians), dtype=torch.bool, device=gaussians.device)
        stay[parents] = False
        noise = self._noise(step, gaussians.rows["ids"][parents])
        grown = Grown(
            gaussians,
            stay=stay.nonzero()[:, 0],
            clones=clones,
            parents=parents,
            children=split(gaussians, parents, noise),
        )

        scores, n_grown = scores[grown.sources], len(grown)  # the new have their origin's
        weak = grown.get_opacities() < config.min_opacity
        if step > config.opacity_reset_interval:
            weak |= grown.get_scales().amax(-1) > MAX_RELATIVE_SCALE * ctx.extent
        drop = draw(
            weak,
            1.0 / scores.clamp_min(MIN_SCORE),
            math.ceil(PRUNED_SHARE * int(weak.sum())),
            seed=derive_seed(self.seed, "taming prune", step),
            ids=grown.rows["ids"],
        )
        others = rows_to_prune(step, grown, ctx.strategies)
        grown.keep(~drop if others is None else ~(drop | others), ctx.optimizer)
        for name in (GRADIENTS, VIEWS):
            gaussians.rows[name].zero_()
        self._counts = {
            "n_cloned": float(len(clones)),
            "n_split": float(len(parents)),
            "n_pruned": float(n_grown - len(gaussians)),
        }

    def scores(self, step: int, ctx: StepContext, gradients: Tensor) -> Tensor:  # [N]
        """Scores of all Gaussians over views drawn for this iteration."""
        if ctx.images is None:
            raise ValueError("the score of Gaussians needs the training images")
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "taming views", step))
        views = torch.randperm(len(ctx.cameras), generator=generator)[: self.config.score_views]
        return accumulate_scores(
            ctx.gaussians,
            ctx.cameras,
            ctx.images,
            views.tolist(),
            gradients,
            white_background=ctx.white_background,
        )

    def _draw_growth(
        self,
        step: int,
        gaussians: Gaussians,
        candidates: tuple[Tensor, Tensor],  # [N] bool each: to clone, to split
        scores: Tensor,  # [N]
        n_free: int,
    ) -> tuple[Tensor, Tensor]:  # rows to clone, rows to split
        n_small, n_large = torch.stack([x.sum() for x in candidates]).tolist()
        n_new = min(n_free, n_small + n_large)
        n_clones = round(n_new * n_small / max(n_small + n_large, 1))
        ids = gaussians.rows["ids"]
        seeds = (derive_seed(self.seed, f"taming {kind}", step) for kind in ("clone", "split"))
        numbers = (n_clones, n_new - n_clones)
        clones, parents = (
            draw(those, scores, k, seed=seed, ids=ids).nonzero()[:, 0]
            for those, k, seed in zip(candidates, numbers, seeds, strict=True)
        )
        return clones, parents

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "n_start": self.n_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.n_start = int(state.get("n_start", self.n_start))


@torch.no_grad()
def accumulate_scores(
    gaussians: Gaussians,
    cameras: Sequence[Camera],
    images: Images,
    views: Sequence[int],
    gradients: Tensor,  # [N]
    *,
    white_background: bool = False,
) -> Tensor:  # [N] float32
    """Sum of the views' scores; see the module's docstring.

    Args:
        gaussians: The model.
        cameras: Training cameras.
        images: Their images, by the same index.
        views: Which of them to score over.
        gradients: Mean image-space gradient of every Gaussian. [N]
        white_background: Render over white instead of black.
    """
    background = torch.full((3,), float(white_background), device=gaussians.device)
    opacities, volumes = gaussians.get_opacities(), gaussians.get_scales().prod(-1)
    total = torch.zeros_like(opacities)
    for view in views:
        camera, image = cameras[view], images[view]
        truth, counted = to_float(image[..., :3]), counted_of(image)
        out = render(gaussians, camera, background=background, contributions=True)
        colors = as_taken(gaussians, out.colors, camera)
        target = truth if counted is None else image
        loss = photometric_loss(colors, target, LAMBDA_DSSIM)
        pixels = out.info["contrib_count"].to(opacities)
        extent = out.info["radii"][0].amax(-1).to(opacities)
        terms = {
            "gradient": gradients,
            "opacity": opacities,
            "depth": out.info["depths"][0],
            "extent": extent,
            "volume": volumes,
            "pixels": pixels,
            "weights": out.info["contrib_sum"].to(opacities),
            "saliency": sum_over_pixels(gaussians, camera, saliency(colors, truth, counted)),
            "distance": pixels * extent,
        }
        total += LOSS_WEIGHT * loss * combine(terms, (out.info["radii"][0] > 0).all(-1))
    return total


def combine(terms: Mapping[str, Tensor], visible: Tensor) -> Tensor:  # {name: [N]}, [N] bool -> [N]
    """Weighted sum of the terms, each over its positive median; 0 for what is not visible."""
    total = torch.zeros(len(visible), device=visible.device)
    for name, values in terms.items():
        values = torch.where(visible, values, 0.0).nan_to_num(nan=0.0, posinf=0.0).clamp_min(0)
        # NaN where nothing is positive: the term is 0 then
        median = values.where(values > 0, torch.nan).nanmedian()
        total += (WEIGHTS[name] * values / median).nan_to_num(nan=0.0, posinf=0.0)
    return total


def saliency(
    colors: Tensor,  # [H, W, 3]
    truth: Tensor,  # [H, W, 3]
    counted: Tensor | None = None,  # [H, W] bool
) -> Tensor:  # [H, W]
    """Error over its mean, and edges of the true image in 0..1, each times 50; 0 if not counted."""
    error, outlines = (colors - truth).abs().mean(-1), edges(truth)
    if counted is not None:
        error, outlines = error * counted, outlines * counted
    error = error / error.mean().clamp_min(1e-8)
    return ERROR_WEIGHT * error + EDGE_WEIGHT * outlines


def edges(image: Tensor) -> Tensor:  # [H, W, 3] -> [H, W]
    """8 times a pixel minus its neighbours, clipped to 0..1 by channel, and their mean."""
    channels = image.permute(2, 0, 1)
    padded = functional.pad(channels[None], (1, 1, 1, 1), mode="replicate")
    differences = 9.0 * channels - 9.0 * functional.avg_pool2d(padded, 3, 1)[0]
    return differences.clamp(0, 1).mean(0)


def sum_over_pixels(gaussians: Gaussians, camera: Camera, values: Tensor) -> Tensor:
    """Sum over pixels of blending weight times value [H,W], for every Gaussian [N].

    It is the derivative of sum(values * image) by a Gaussian's colour, whatever the colours are.
    """
    params, device = gaussians.params, gaussians.device
    with torch.enable_grad():
        colors = torch.ones(len(gaussians), 1, device=device, requires_grad=True)
        image, _, _ = rasterization(
            params["means"].detach(),
            params["quats"].detach(),
            gaussians.get_scales().detach(),
            gaussians.get_opacities().detach(),
            colors,
            camera.viewmat[None].to(device),
            camera.K[None].to(device),
            camera.width,
            camera.height,
            near_plane=camera.near,
            lenses=view_of(camera, device).lenses,
        )
        (sums,) = torch.autograd.grad((image[0, ..., 0] * values).sum(), colors)
    return sums[:, 0]


def draw(
    candidates: Tensor,  # [N] bool
    scores: Tensor,  # [N], at least 0
    k: int,
    *,
    seed: int,
    ids: Tensor,  # [N] int32
) -> Tensor:  # [N] bool
    """Draw k of the candidates without replacement, in proportion to their scores.

    An exponential race (Efraimidis and Spirakis 2006) with the counter-based uniform number of
    (seed, id): a draw depends on no order of rows. Scores of 0 come last, by id.
    """
    u = uniform(seed, ids).double().clamp(2.0**-32, 1.0 - 2.0**-32)
    keys = scores.double().clamp_min(0).log() - torch.log(-torch.log1p(-u))
    rows = candidates.nonzero()[:, 0]
    rows = rows[ids[rows].argsort()]
    order = keys[rows].sort(descending=True, stable=True).indices[:k]
    drawn = torch.zeros_like(candidates)
    drawn[rows[order]] = True
    return drawn
