r"""LP-3DGS: learn for a few hundred iterations which Gaussians matter, then prune once.

Zhang et al., "LP-3DGS: Learning to Prune 3D Gaussian Splatting" (NeurIPS 2024,
https://arxiv.org/abs/2405.18784). Every Gaussian i has a logit m_i, at first 1, and an importance
score S_i over the training views. Its opacity o_i becomes, with fresh logistic noise g_i in each
iteration t (pruning/relaxations.py),

    o_i' = o_i * sigmoid((m_i S_i + g_i) / tau)
    loss += lambda_mask * mean(sigmoid(m))

With the published defaults (from, until, interval = 19500, 20000, 20):

    from < t < until        the mask loss; AdamW moves m beside the other parameters
    t = from + k interval   before rendering, scores are renewed; the first time switches o' on
    t = until               o' once more; then Gaussians are pruned, and opacities are o again

Where paper and published code differ this is the code: m itself is the logit (not log m), the loss
has sigmoid(m) (not |m|), and scores play no part in the last decision, m_i >= 0. The mask loss
alone takes m from 1 to 0 in the 20 iterations before the first scores, so those stay whose
renderings pull m up again. The code decides by one more draw, m_i + g_i >= 0, which drops each
Gaussian with probability sigmoid(-m_i): `decision="sample"`.

Mini-Splatting's score is a sum over pixels and goes up to many thousands. There the sigmoid is
saturated: m has no gradient and its sign decides, so that of the tenth of the Gaussians that
contribute most only 37 % stayed on bonsai, and 29.97 dB of 31.13 (H200; 293,009 of 1,110,467).
Divided by its mean (`score_scale`) it works: 84 % of them stay, and 31.13 dB (391,316). Scores of
masked renderings, which the published code takes, do no better (29.6 dB).

The presets "published-radsplat" and "published-mini-splatting" follow the code to the last step:
scores of masked renderings, one more draw as the decision and, with Mini-Splatting's score, colours
of SH degree 0 until iteration 15000. All other presets score the plain model and keep m_i >= 0.
"""

import logging
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from gs import (
    AT_LEAST_ONE,
    COUNT,
    INNER_SHARE,
    NOT_NEGATIVE,
    POSITIVE,
    PUBLISHED_ITERATIONS,
    Camera,
    Gaussians,
    Model,
    ParameterSpec,
    Population,
    RenderOutput,
    SplatrimError,
    StepContext,
    Strategy,
    covers,
    derive_seed,
    keep_parts,
    multiple_in,
)
from kernels import logistic_noise

from .method import MethodConfig
from .relaxations import gumbel_sigmoid, straight_through
from .scores import accumulate_scores

INITIAL_LOGIT = 1.0
LOGITS_ORDER = 35  # of the optimizer's groups: between opacities and scales
SCORES = "mask_scores"  # rows: S, there while opacities are masked
SHORTEST_WINDOW = 100  # iterations at the published rate; logits need 20 to fall to 0
SHORTEST_POST_TRAINING = 30  # iterations

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class LP3DGSConfig(MethodConfig):
    """Settings of LP-3DGS; the defaults are the published ones with RadSplat's score."""

    score: Literal["radsplat", "mini-splatting"] = "radsplat"
    """Importance of a Gaussian: its largest weight in any pixel (radsplat), or the sum of its
    weights over all pixels (mini-splatting)."""
    score_scale: Literal["none", "mean"] = "none"
    """Scores as they are, or divided by their mean over all Gaussians."""
    score_source: Literal["unmasked", "masked"] = "unmasked"
    """Scores are of renderings with plain opacities, or with masked ones and their noise as
    published."""
    score_interval: Annotated[int, AT_LEAST_ONE] = 20
    """Scores are renewed every so many iterations of the mask's training."""
    mask_from_iter: Annotated[int, COUNT] = 19_500
    """The mask is trained after this iteration."""
    mask_until_iter: Annotated[int, COUNT] = 20_000
    """Gaussians are pruned in this iteration, the last with a mask."""
    lambda_mask: Annotated[float, NOT_NEGATIVE] = 0.0005
    """Weight of mean(sigmoid(m)) in the loss."""
    relaxation: Literal["gumbel-sigmoid", "straight-through"] = "gumbel-sigmoid"
    """The mask: noisy and soft, or hard with a straight-through gradient."""
    gumbel_temp: Annotated[float, POSITIVE] = 0.5
    """Temperature of the Gumbel-Sigmoid."""
    mask_threshold: Annotated[float, INNER_SHARE] = 0.01
    """A straight-through mask is 1 where its sigmoid is above this."""
    decision: Literal["threshold", "sample"] = "threshold"
    """Who stays: those with m >= 0 (straight-through: with sigmoid(m) above mask_threshold), or one
    random draw as published."""
    logit_lr: Annotated[float, NOT_NEGATIVE] = 0.05
    """Learning rate of mask logits."""
    logit_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    """Decoupled weight decay of mask logits (AdamW)."""

    NAME: ClassVar[str] = "lp-3dgs"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "radsplat": {},
        "mini-splatting": {"score": "mini-splatting", "score_scale": "mean"},
        "mini-splatting-unscaled": {"score": "mini-splatting"},
        "straight-through": {"relaxation": "straight-through"},
        # as published to the last step
        "published-radsplat": {"score_source": "masked", "decision": "sample"},
        "published-mini-splatting": {
            "score": "mini-splatting",
            "score_source": "masked",
            "decision": "sample",
        },
        "demo": {},
    }
    RUN_SETTINGS: ClassVar[dict[str, dict[str, Any]]] = {
        "published-mini-splatting": {"sh_degree_from_iter": 15_000},  # the end of densification
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        length = self.mask_until_iter - self.mask_from_iter
        if length < 1:
            raise SplatrimError(
                f"--mask_until_iter {self.mask_until_iter} must come after"
                f" --mask_from_iter {self.mask_from_iter}"
            )
        if not 1 <= self.score_interval <= length:
            raise SplatrimError(
                f"--score_interval must be 1 to {length}, the length of the mask's training,"
                f" not {self.score_interval}"
            )

    def scaled(self, factor: float) -> "LP3DGSConfig":
        """The same schedule over `factor` times as many iterations, as far as it bears it.

        The window keeps 100 iterations or, in shorter runs, half of those that are left.
        """
        length = self.mask_until_iter - self.mask_from_iter
        left = (PUBLISHED_ITERATIONS - self.mask_from_iter) * factor
        return self._moved(
            math.floor(self.mask_from_iter * factor + 1e-6),
            max(round(length * factor), min(length, SHORTEST_WINDOW, int(left / 2)), 1),
        )

    def post_training(self, start: int, iterations: int) -> "LP3DGSConfig":
        """For a finished model: the window comes first, in at most a third of the iterations."""
        if iterations - start < SHORTEST_POST_TRAINING:
            raise SplatrimError(
                f"LP-3DGS takes at least {SHORTEST_POST_TRAINING} iterations to prune a finished"
                f" model: give --iterations {start + SHORTEST_POST_TRAINING} or more"
            )
        length = self.mask_until_iter - self.mask_from_iter
        return self._moved(start, min(length, (iterations - start) // 3))

    def _moved(self, start: int, length: int) -> "LP3DGSConfig":
        """The window at another place and of another length.

        Scores are renewed as often within it, but no interval is shorter than now as long as four
        fit. Below 100 iterations logits take larger steps, as they have the same way to go.
        """
        now = self.mask_until_iter - self.mask_from_iter
        interval = round(self.score_interval * max(length / now, 1.0))
        return replace(
            self,
            mask_from_iter=start,
            mask_until_iter=start + length,
            score_interval=min(interval, max(length // 4, 1)),
            logit_lr=self.logit_lr * max(min(now, SHORTEST_WINDOW) / length, 1.0),
        )

    def build(self, *, densify_until: int) -> "LP3DGS":
        """The strategy, whatever `densify_until` is."""
        return LP3DGS(self)


class LP3DGS(Strategy):
    """The strategy that the trainer calls; see the module's docstring."""

    name = "lp_3dgs"

    def __init__(self, config: LP3DGSConfig) -> None:
        self.config = config
        self.seed = 0
        self._is_new = False
        self._step = 0
        self._logits: Tensor | None = None

    def setup(self, gaussians: Model, *, extent: float, iterations: int, seed: int) -> None:
        last = self.config.mask_until_iter
        if iterations < last:
            raise SplatrimError(
                f"LP-3DGS prunes at iteration {last} and the run ends at {iterations}: give more"
                " --iterations, a lower --mask_until_iter, or --schedule scaled"
            )
        self.seed = seed
        tail = () if gaussians.parts == 1 else (gaussians.parts,)
        spec = ParameterSpec("mask_logits", tail, self.config.logit_lr, order=LOGITS_ORDER)
        logits = torch.full((len(gaussians), *tail), INITIAL_LOGIT)
        self._is_new = gaussians.add_parameter(spec, logits)

    def before_render(self, step: int, gaussians: Model) -> dict[str, Any]:
        if self._is_new and step - self.n_images >= self.config.mask_until_iter:
            raise SplatrimError(
                f"LP-3DGS prunes at iteration {self.config.mask_until_iter} and the run begins at"
                f" {step}: give a later --mask_from_iter and --mask_until_iter"
            )
        self._step, self._is_new = step, False
        if SCORES not in gaussians.rows:
            return {}
        seed = derive_seed(self.seed, "gumbel", step)
        masks = self.masks(gaussians, seed)
        if isinstance(gaussians, Gaussians):
            return {"opacities": gaussians.get_opacities() * masks}
        return {"opacity_factors": masks}

    def masks(self, gaussians: Model, seed: int) -> Tensor:  # [N * parts] in 0..1
        """Factors on opacities, differentiable in the logits; `seed` for the noise."""
        config = self.config
        x = (gaussians.params["mask_logits"] * gaussians.rows[SCORES]).flatten()
        if config.relaxation == "straight-through":
            return straight_through(x, config.mask_threshold)
        return gumbel_sigmoid(x, config.gumbel_temp, seed, gaussians.part_ids())

    def loss(self, step: int, gaussians: Model, out: RenderOutput) -> Tensor | None:
        trains = self._trains_at(step)
        logits = gaussians.params["mask_logits"]
        self._logits = logits.detach() if trains else None
        if not trains:
            return None
        population: Population | None = out.info.get("population")
        part = 1.0 if population is None else logits.numel() / population.n
        return part * self.config.lambda_mask * torch.sigmoid(logits).mean()

    def phase(self, step: int) -> Hashable | None:
        config = self.config
        first = step - self.n_images + 1
        inside = config.mask_from_iter <= step and first <= config.mask_until_iter
        return None if inside else "waiting"

    def after_backward(self, step: int, ctx: StepContext) -> None:
        if self._trains_at(step):
            self._prepare_adamw(step, ctx)
        elif covers(step, self.config.mask_until_iter, self.n_images):
            self._prune(step, ctx)

    def after_step(self, step: int, ctx: StepContext) -> None:
        # What the next step will render: nothing that scores depend on changes in between.
        then = step + self.n_images
        if self.refreshes_at(then):
            scores = self._scores(then, ctx.gaussians, ctx.cameras)
            ctx.gaussians.rows[SCORES] = scores.view_as(ctx.gaussians.params["mask_logits"])

    def refreshes_at(self, step: int) -> bool:
        """Whether iteration `step` renders with new scores: 19520, 19540, ..., 19980 by default."""
        since = step - self.config.mask_from_iter
        due = multiple_in(since, self.config.score_interval, self.n_images)
        return self._trains_at(step) and due is not None and due > 0

    def _trains_at(self, step: int) -> bool:
        return self.config.mask_from_iter < step < self.config.mask_until_iter

    @torch.no_grad()
    def _prepare_adamw(self, step: int, ctx: StepContext) -> None:
        """Set the rate and decay the logits: with Adam's step after it, this is AdamW's."""
        config, logits = self.config, ctx.gaussians.params["mask_logits"]
        # post-training begins with moments of an age
        if covers(step, config.mask_from_iter + 1, self.n_images):
            ctx.optimizer.state.pop(logits, None)
        for group in ctx.optimizer.param_groups:
            if group["name"] == "mask_logits":
                group["lr"] = group["gain"] * config.logit_lr
        if logits.grad is not None:  # there is none if the densifier has just changed rows
            logits.mul_((1.0 - config.logit_lr * config.logit_decay) ** self.n_images)

    def _prune(self, step: int, ctx: StepContext) -> None:
        keep = self.decide(ctx.gaussians)
        keep_parts(ctx.gaussians, ctx.optimizer, keep)
        logger.info(f"iteration {step}: kept {int(keep.sum())} of {len(keep)} Gaussians")
        ctx.gaussians.rows.pop(SCORES, None)

    @torch.no_grad()
    def decide(self, gaussians: Model) -> Tensor:  # [N * parts] bool
        """Which Gaussians stay, by their logits as they are; scores play no part.

        Raises:
            SplatrimError: None would.
        """
        config, logits = self.config, gaussians.params["mask_logits"].flatten()
        if config.decision == "sample" and config.relaxation == "gumbel-sigmoid":
            logits = logits + logistic_noise(derive_seed(self.seed, "prune"), gaussians.part_ids())
        keep = logits >= self.lowest_logit
        if not bool(keep.any()):
            raise SplatrimError(
                "LP-3DGS would prune every Gaussian: train the mask for longer"
                " (--mask_until_iter), with a lower --logit_lr or --lambda_mask"
            )
        return keep

    @property
    def lowest_logit(self) -> float:
        """The decision's threshold on m."""
        if self.config.relaxation == "gumbel-sigmoid":
            return 0.0
        return math.log(self.config.mask_threshold / (1.0 - self.config.mask_threshold))

    @torch.no_grad()
    def _scores(self, step: int, gaussians: Model, cameras: Sequence[Camera]) -> Tensor:
        scores = self._unscaled(step, gaussians, cameras)
        if self.config.score_scale == "none":
            return scores
        return scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)

    def _unscaled(
        self, step: int, gaussians: Model, cameras: Sequence[Camera]
    ) -> Tensor:  # [N * parts]
        kind = self.config.score
        if self.config.score_source == "unmasked" or SCORES not in gaussians.rows:
            return accumulate_scores(gaussians, cameras, kind)
        total = torch.zeros(len(gaussians) * gaussians.parts, device=gaussians.device)
        for view, camera in enumerate(cameras):  # each with noise of its own, as published
            seed = derive_seed(self.seed, "score", step, view)
            masks = self.masks(gaussians, seed)
            if isinstance(gaussians, Gaussians):
                opacities = torch.logit(gaussians.get_opacities() * masks, eps=1e-6)
                scores = accumulate_scores(gaussians.exported(opacities=opacities), [camera], kind)
            else:
                scores = accumulate_scores(gaussians, [camera], kind, opacity_factors=masks)
            total = torch.maximum(total, scores) if kind == "radsplat" else total + scores
        return total

    @torch.no_grad()
    def opacity_factors(self, gaussians: Model) -> Tensor | None:  # [N * parts]
        if SCORES not in gaussians.rows:
            return None
        return self.masks(gaussians, derive_seed(self.seed, "elsewhere", self._step))

    def final_keep(self, gaussians: Model) -> Tensor | None:  # [N * parts] bool
        # Models are saved before iteration `mask_until_iter` prunes.
        is_last = covers(self._step, self.config.mask_until_iter, self.n_images)
        return self.decide(gaussians) if is_last else None

    def scalars(self, step: int) -> dict[str, float | Tensor]:
        if self._logits is None:
            return {}
        return {
            "num_used_gs": (self._logits >= self.lowest_logit).sum(),
            "mask_mean": self._logits.sigmoid().mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = int(state.get("seed", self.seed))
