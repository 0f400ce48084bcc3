"""A block of anchors while it is trained; its decoder is that of all blocks.

As gs.blocks.live, but that a step leaves the decoder's gradient to who takes the steps of several
blocks together (gs.blocks.lockstep), and that images are numbered as in the whole scene: their
numbers name what is learnt for each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data.loader import ImageLoader
from ..evaluation.views import evaluate_views, mean_scores
from ..neural.anchors import Anchors
from ..neural.config import NeuralConfig
from ..neural.surrounded import SurroundedAnchors
from ..training.observer import Progress
from ..training.optimizer import build_optimizer, learning_rates
from ..training.run_state import RunState
from ..training.step import Stepper
from .consistency import Consistency
from .live import PREFETCH, BlockPlan, Shared, restore, set_up, state_of
from .shared_decoder import SharedDecoder
from .weights import EACH


class NeuralBlock:
    """A block's anchors on the training device.

    Args:
        plan: What it is trained with.
        state: Where it stands, on the device; its tensors are copied.
        neural: Shape and learning rates.
        decoder: Of all blocks.
        images: Of all cameras, training cameras first.
        device: Where it is trained.
        shared: What blocks of a rank have in common on the device.
    """

    def __init__(
        self,
        plan: BlockPlan,
        state: dict[str, Any],
        neural: NeuralConfig,
        decoder: SharedDecoder,
        images: ImageLoader,
        device: torch.device,
        shared: Shared,
    ) -> None:
        self.plan, self.config, self.decoder = plan, plan.config, decoder
        self.images, self.device = images, device
        known = RunState.from_dict(state)
        self.step = known.step
        own = {**state, "shared": {name: p.detach() for name, p in decoder.parameters.items()}}
        names = decoder.model.names
        self.gaussians = SurroundedAnchors.from_state(own, neural, names=names, device=device)
        self.gaussians.share(decoder.parameters)
        self.strategies = plan.strategies()
        set_up(self.strategies, self.gaussians, plan)
        self._consistency = Consistency(decoder.teacher, 0.0)
        steppers = [*self.strategies, self._consistency]
        self.optimizer = build_optimizer(
            self.gaussians,
            plan.optim,
            extent=plan.scene.extent,
            n_images=self.config.batch * plan.worth,
            which="rows",
        )
        self.sampler, self.tracker = restore(known, plan, self.optimizer, self.strategies, device)
        self.n_rendered = 0
        self._progress = Progress()
        self.stepper: Stepper[Any] = Stepper(
            self.config,
            plan.scene,
            self.gaussians,
            self.optimizer,
            steppers,
            images,
            self.tracker,
            white_background=plan.white_background,
        )
        self.stepper.stream, self.stepper.graphs = shared.stream, None

    def begin_turn(self, around: Anchors | None) -> None:
        """Train among others from now on, and near the teacher while the decoder learns."""
        self.gaussians.surround(around)
        config = self.decoder.config
        is_taught = config.teacher != "none" and not self.decoder.is_frozen
        self._consistency.weight = config.lambda_consistency if is_taught else 0.0

    def take(self, n_images: int, weight: float) -> Tensor:  # [P]
        """Take a step of so many images; the decoder's gradient, times the block's weight."""
        step, first = self.step + n_images, self.step + 1
        rates = learning_rates(
            self.optimizer, self.plan.optim, extent=self.plan.scene.extent, step=first
        )
        indices = [self.plan.cameras[self.sampler.next()] for _ in range(n_images)]
        upcoming = self.sampler.upcoming(PREFETCH * self.config.batch)
        self.images.prefetch([self.plan.cameras[i] for i in upcoming])
        self.n_rendered = len(self.gaussians)
        computed = self.stepper.forward_backward(step, indices)
        if self.decoder.config.weighted == "loss" and weight != 1.0:
            learnt = [p.grad for p in self.gaussians.params.values()]
            seen = [out.info["means2d"].grad for out in computed.renderings]
            for gradient in (*learnt, *seen):
                if gradient is not None:
                    gradient.mul_(weight)
        gradient = self.decoder.take_gradient(weight)
        self.stepper.update(step, computed, rates)
        self.step = step
        self._progress.on_step(self, step)  # pyright: ignore[reportArgumentType]
        return gradient

    def quality(self) -> tuple[float, float]:
        """PSNR and SSIM of every tenth of its views."""
        background = torch.full((3,), float(self.plan.white_background), device=self.device)
        views = self.gaussians, self.images.cameras, self.images, background
        scores = mean_scores(evaluate_views(*views, indices=self.plan.cameras[::EACH]))
        return scores["psnr"], scores["ssim"]

    @torch.no_grad()
    def state(self) -> dict[str, Any]:
        """Where it stands, without the decoder; tensors share memory with what is trained."""
        found = state_of(
            self.plan,
            self.step,
            self.gaussians,
            self.optimizer,
            self.strategies,
            self.sampler,
            self.tracker,
        )
        return {**found, "shared": {}}
