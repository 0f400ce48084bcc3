"""Pruning by a fixed rule: score every Gaussian over the training views, keep by the scores.

The settings of a method say when (`prune_iterations`), what the score is (`score`) and which rows
stay (`keep`); one strategy serves all of them. Scores are of the plain model, without masks. What
goes is removed between backward and optimizer step, with its moments; nothing else changes.

Opacity, the simplest rule, is in this file: the published baselines are radsplat.py,
mini_splatting.py and light_gaussian.py.
"""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from gs import (
    AT_LEAST_ONE,
    PRUNED_SHARE,
    Camera,
    Model,
    SplatrimError,
    StepContext,
    Strategy,
    covers,
    derive_seed,
    keep_parts,
)

from .method import MethodConfig
from .score_report import write_pruning
from .scores import accumulate_scores, n_kept, save_scores, top_k

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class ScorePruningConfig(MethodConfig):
    """What the baselines with a fixed rule share."""

    prune_iterations: Annotated[tuple[int, ...], AT_LEAST_ONE] = (20_000,)
    """Iterations at which Gaussians are pruned, ascending."""
    save_scores: bool = False
    """At every pruning, write scores.npz (id and score of each Gaussian, of the latest pruning)
    and pruning.json (histogram of the scores, and PSNR of training views over the share pruned)."""

    def __post_init__(self) -> None:
        steps = (0, *self.prune_iterations)
        if any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
            given = " ".join(map(str, self.prune_iterations))
            raise SplatrimError(f"--prune_iterations must be positive and ascending, not {given}")
        super().__post_init__()

    def scaled(self, factor: float) -> Self:
        steps: list[int] = []
        for step in self.prune_iterations:
            steps.append(max(round(step * factor), steps[-1] + 1 if steps else 1))
        return replace(self, prune_iterations=tuple(steps))

    def post_training(self, start: int, iterations: int) -> Self:
        """Prune at the first iteration, and again (where the rule does) after equal spells."""
        n, length = len(self.prune_iterations), iterations - start
        if length < 2 * n:
            raise SplatrimError(
                f"pruning a finished model takes at least {2 * n} iterations of refinement:"
                f" give --iterations {start + 2 * n} or more"
            )
        steps = tuple(start + 1 + k * length // n for k in range(n))
        return replace(self, prune_iterations=steps)

    def build(self, *, densify_until: int) -> "ScorePruning":
        """The strategy; densification has no part in it."""
        return ScorePruning(self)

    def score(self, gaussians: Model, cameras: Sequence[Camera]) -> Tensor:  # [N]
        """The importance of every Gaussian."""
        raise NotImplementedError

    def keep(self, index: int, scores: Tensor, ids: Tensor, seed: int) -> Tensor:  # [N] bool
        """Which rows the pruning number `index` (from 0) leaves.

        Args:
            index: Which of `prune_iterations` it is.
            scores: What `score` gave. [N]
            ids: Names of the Gaussians in random draws. [N] int32
            seed: Of this pruning's draws.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class OpacityConfig(ScorePruningConfig):
    """Prune the share with the lowest opacity."""

    ratio: Annotated[float, PRUNED_SHARE] = 0.6
    """Share of the Gaussians that each pruning removes."""

    NAME: ClassVar[str] = "opacity"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"default": {}, "demo": {}}

    def score(self, gaussians: Model, cameras: Sequence[Camera]) -> Tensor:
        return accumulate_scores(gaussians, cameras, "opacity")

    def keep(self, index: int, scores: Tensor, ids: Tensor, seed: int) -> Tensor:
        return top_k(scores, n_kept(len(scores), self.ratio))


class ScorePruning(Strategy):
    """The strategy that the trainer calls; see the module's docstring."""

    name = "score_pruning"

    def __init__(self, config: ScorePruningConfig) -> None:
        self.config = config
        self.seed = 0

    def setup(self, gaussians: Model, *, extent: float, iterations: int, seed: int) -> None:
        self.seed = seed
        # the model is saved before the last step prunes
        first_of_last = iterations - self.n_images + 1
        late = [step for step in self.config.prune_iterations if step >= first_of_last]
        if late:
            text = f"--prune_iterations {' '.join(map(str, late))}: the run has {iterations}"
            if len(late) == len(self.config.prune_iterations):
                raise SplatrimError(f"{text}, so nothing would be pruned: try --schedule scaled")
            logger.warning(f"{text}, so that pruning is left out")

    def phase(self, step: int) -> Hashable | None:
        return "waiting" if self._due(step) is None else None

    def _due(self, step: int) -> int | None:
        """The pruning that the step has, of several the last; None without."""
        due = [x for x in self.config.prune_iterations if covers(step, x, self.n_images)]
        return due[-1] if due else None

    @torch.no_grad()
    def after_backward(self, step: int, ctx: StepContext) -> None:
        config, gaussians = self.config, ctx.gaussians
        due = self._due(step)
        if due is None:
            return
        scores = config.score(gaussians, ctx.cameras)
        keep = _keep(config, due, scores, gaussians, self.seed)
        n_left = int(keep.sum())
        logger.info(f"iteration {step}: kept {n_left} of {len(keep)} Gaussians by score")
        if config.save_scores and ctx.model_path is not None:
            try:
                save_scores(ctx.model_path / "scores.npz", gaussians, scores)
                write_pruning(
                    ctx.model_path / "pruning.json",
                    step,
                    gaussians,
                    scores,
                    n_left,
                    ctx.cameras,
                    ctx.images,
                    white_background=ctx.white_background,
                )
            except SplatrimError as error:  # a full disk; the run itself goes on
                logger.warning(str(error))
        keep_parts(gaussians, ctx.optimizer, keep)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = int(state.get("seed", self.seed))


@torch.no_grad()
def prune_once(
    gaussians: Model, cameras: Sequence[Camera], config: ScorePruningConfig, *, seed: int = 0
) -> Tensor:  # [N] bool
    """Which Gaussians the first pruning of `config` keeps; the model stays as it is.

    Raises:
        SplatrimError: A score is not finite, or nothing would be left.
    """
    scores = config.score(gaussians, cameras)
    return _keep(config, config.prune_iterations[0], scores, gaussians, seed)


def _keep(
    config: ScorePruningConfig, step: int, scores: Tensor, gaussians: Model, seed: int
) -> Tensor:
    index = config.prune_iterations.index(step)
    keep = config.keep(
        index, scores, gaussians.part_ids(), derive_seed(seed, "score pruning", step)
    )
    if not bool(keep.any()):
        raise SplatrimError(
            f"pruning at iteration {step} would leave none of {len(keep)} Gaussians:"
            f" their scores go up to {float(scores.max()):.3g}, so prune less"
        )
    return keep
