"""What the trainer calls at fixed points of an iteration: densifiers, pruners, regularisers.

One iteration, 1-based, in Inria's order:

    learning rates, SH degree
    device_inputs   -> integers that differ from step to step (seeds): keywords of the rendering
    device_numbers  -> numbers that do, which hooks find on the device (weights, rates)
    before_render   -> its other keywords (masks, mask_logits, contributions, ...)
    render
    after_render    -> the colours that the loss sees (exposure)
    loss            -> a term added to the photometric loss
    image_loss      -> one added to the sum over the step's images
    backward, test, save
    after_backward  -> densify and prune; rows may change from here on (gs.model.rows edits them)
    optimizer step
    after_step

A densifier is a strategy like any other and comes first in `StepContext.strategies`; when it prunes
it also removes what `prune_rows` of the others names (see `rows_to_prune`). Strategies change
training; what only looks on is an observer (gs.training.observer).

A step of `n_images` images is one iteration whose number is that of its last image. What happens at
an image or an interval asks gs.schedule. `after_render` is called for each image; the loss that
`loss` returns counts once per image, and so must what other hooks add to gradients.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import torch
from torch import Tensor
from typing_extensions import TypeVar

from kernels import count_views

from ..model.gaussians import Gaussians
from ..model.model import Model
from .optimizer import learning_rate

if TYPE_CHECKING:
    from ..data.camera import Camera
    from ..distributed.ranks import Ranks
    from ..evaluation.views import Images
    from ..model.histograms import Histogram
    from ..model.renderer import RenderOutput
    from .run_state import Part
    from .step_inputs import StepInputs

M = TypeVar("M", bound=Model, default=Gaussians)
"""The model that is trained."""


class Population(NamedTuple):
    """The Gaussians of a scene of which a model has a part, the others being elsewhere.

    Who takes the steps of such a model gives it as `info["population"]` of the first rendering,
    before `loss` is called.
    """

    n: int
    """All of them, those of the model too."""
    kept: Tensor
    """Sum of the masks of those elsewhere, which were drawn for the same step. []"""
    observations: Tensor | None = None
    """Sum of the observations elsewhere, where regularisers are means over them. []"""
    observed: Tensor | None = None
    """Sum of the masks times the observations elsewhere. []"""


@dataclass
class StepContext(Generic[M]):
    """What an iteration shows to its strategies once it has rendered."""

    gaussians: M
    optimizer: torch.optim.Optimizer
    out: RenderOutput
    """This iteration's rendering; `out.info` has radii [C,N,2] and means2d [C,N,2], after backward
    with `.grad`. Where images differ in size, that of the first size: see `renderings`."""
    camera: Camera
    """That of the (first) image; a captured step must take `inputs.view`."""
    extent: float
    """Radius of the training cameras, scene units."""
    iterations: int
    """Length of the run; `step == iterations` is the last one."""
    white_background: bool = False
    strategies: Sequence[Strategy[M]] = field(default_factory=tuple)
    cameras: Sequence[Camera] = field(default_factory=tuple)
    """All training cameras."""
    images: Images | None = None
    """Their images, by the same index."""
    model_path: Path | None = None
    """The run's output folder."""
    step_seed: int = 0
    """Of this iteration alone; a captured step must take `device_seed`."""
    inputs: StepInputs | None = None
    """What differs from step to step: the view, the background, ..."""
    skip: Tensor | None = None
    """Not 0 where a captured step must change nothing; None in an eager one. [1] int32"""
    others: Sequence[RenderOutput] = field(default_factory=tuple)
    """Renderings of the images that are not in `out`."""
    ranks: Ranks | None = None
    """Those that the model is spread over, where it is; `gaussians` has this one's rows."""

    def total(self, *counts: int) -> list[int]:
        """Sums of counts over all ranks. Waits."""
        if self.ranks is None:
            return list(counts)
        return [sum(column) for column in zip(*self.ranks.tell(counts), strict=True)]

    @property
    def renderings(self) -> tuple[RenderOutput, ...]:
        """All renderings of this iteration."""
        return self.out, *self.others

    @cached_property
    def observations(self) -> Tensor:  # [N * parts] float32
        """How many of this iteration's images see each Gaussian."""
        first, *others = (self._seen_in(out) for out in self.renderings)
        for counts in others:
            first = first + counts
        return first

    def _seen_in(self, out: RenderOutput) -> Tensor:  # [N * parts] float32
        counts = count_views(out.info["radii"])
        return counts if out.splats is None else out.splats.scatter(counts, len(self.gaussians))

    @cached_property
    def device_seed(self) -> Tensor:  # [2] int32
        """Low and high word of `step_seed` on the device."""
        if self.inputs is not None and self.inputs.seed is not None:
            return self.inputs.seed
        words = [self.step_seed, 0]  # derive_seed gives 31 bits
        return torch.tensor(words, dtype=torch.int32, device=self.gaussians.device)

    @cached_property
    def means_lr(self) -> Tensor:  # [1] float32
        """Learning rate of positions in this iteration, on the device."""
        if self.inputs is not None and self.inputs.means_lr is not None:
            return self.inputs.means_lr
        rate = learning_rate(self.optimizer, "means")
        return torch.tensor([rate], device=self.gaussians.device)


class Strategy(Generic[M]):
    """Does nothing. Subclasses override what they need; every hook may be called on any device."""

    name: str = "strategy"
    """Key of this strategy's state in a checkpoint and of its scalars in the log."""
    runs_on_several_ranks: bool = False
    """Whether it may be given a part of the Gaussians, the others being on other ranks: rows that
    it edits, numbers and draws are then those that one rank with all of them would come to."""
    regularized: tuple[str, ...] = ()
    """Parameters that it pushes towards nothing, whatever images show."""
    needs_depth: bool = False
    """Whether the renderings of a step are to have `depths`."""
    n_images: int = 1
    """Images of the present step, which whoever takes steps sets; in `setup` those of all steps but
    perhaps the last."""

    def setup(self, gaussians: M, *, extent: float, iterations: int, seed: int) -> None:
        """Add parameters (`add_parameter`, `add_shared`) and row buffers (`gaussians.rows`), once.

        Called before the optimizer is built. On a resumed run the buffers are there already: leave
        them as they are. Parameters are added all the same, and take the checkpoint's values.
        """

    def device_inputs(self, step: int) -> dict[str, int]:
        """Keywords for `kernels.rasterization` that are integers and differ from step to step.

        The same names in every iteration. A captured step gets each from the device, as its low and
        high 32 bits ([2] int32).
        """
        return {}

    def device_numbers(self, step: int) -> dict[str, float]:
        """Numbers that differ from step to step; `ctx.inputs.numbers` has each as [1] float32.

        The same names in every iteration.
        """
        return {}

    def before_render(self, step: int, gaussians: M) -> dict[str, Any]:
        """Further keywords for `kernels.rasterization` in this iteration."""
        return {}

    def after_render(self, step: int, colors: Tensor, ctx: StepContext[M]) -> Tensor:  # [H, W, 3]
        """The colours that the loss compares with the image, differentiable: `colors` or others.

        Args:
            step: The iteration.
            colors: Of the rendering, as strategies before this one left them. [H, W, 3]
            ctx: `ctx.inputs.view.exposure` is the image's row in a table of exposures, on the
                device.
        """
        return colors

    def loss(self, step: int, gaussians: M, out: RenderOutput) -> Tensor | None:
        """A scalar added to the photometric loss, or None.

        Args:
            step: The iteration.
            gaussians: The model.
            out: Its (first) rendering. Where the model is a part of a scene, `out.info` has its
                `Population`; with --regularise seen it has `observations` [N], and a regulariser is
                to be a mean over them.
        """
        return None

    def image_loss(self, step: int, ctx: StepContext[M]) -> Tensor | None:
        """A scalar added to the sum of the images' photometric losses, or None.

        Args:
            step: The iteration.
            ctx: `ctx.renderings` are of `ctx.inputs.views`, one after the other.
        """
        return None

    def after_backward(self, step: int, ctx: StepContext[M]) -> None:
        """Gradients are there, the optimizer has not stepped: densify and prune here.

        Where the model refines poses, the matrices of `ctx.inputs.views` have gradients, too.
        """

    def after_step(self, step: int, ctx: StepContext[M]) -> None:
        """The optimizer has stepped."""

    def phase(self, step: int) -> Hashable | None:
        """What steps that launch the same kernels on the same tensors have in common.

        Consecutive steps of one phase are captured once as a CUDA graph and replayed without
        calling the hooks, but for `device_inputs` and `device_numbers`. None: this step reads or
        changes something on the host (rows, values, other tensors) and runs eagerly.
        """
        cls = type(self)
        hooks = ("device_inputs", "device_numbers", "before_render", "after_render", "loss")
        hooks += ("image_loss", "after_backward", "after_step")
        plain = all(getattr(cls, hook) is getattr(Strategy, hook) for hook in hooks)
        return "nothing" if plain else None

    def posed_cameras(
        self,
        step: int,
        model: Model,
        cameras: list[Camera],
        images: Images,
        background: Tensor,  # [3]
    ) -> list[Camera]:
        """Cameras as the model of iteration `step` is tested and saved with: these, or moved ones.

        Args:
            step: Iterations that the model has seen.
            model: As it is tested and saved.
            cameras: All, the training cameras first.
            images: Their images, by the same index.
            background: Colour behind the Gaussians. [3]
        """
        return cameras

    def on_saved(self, step: int, path: Path, cameras: list[Camera]) -> None:
        """The model of iteration `step` was saved at `path`, with cameras of `posed_cameras`."""

    def prune_rows(self, step: int, gaussians: M) -> Tensor | None:  # [N] bool
        """Rows to remove when the densifier prunes, or None for none."""
        return None

    def scalars(self, step: int) -> dict[str, float | Tensor]:
        """Values for TensorBoard, by name. Asked only when logged, so it may synchronise."""
        return {}

    def histograms(self, gaussians: M) -> dict[str, Histogram]:
        """Histograms over the Gaussians by name: entries of history.json that the report draws."""
        return {}

    def final_keep(self, gaussians: M) -> Tensor | None:  # [N] bool
        """Rows of the exported and tested model, or None for all."""
        return None

    def opacity_factors(self, gaussians: M) -> Tensor | None:  # [N * parts]
        """What opacities are multiplied by where the model stays as it is now, among others that
        go on training (gs.blocks); None for nothing."""
        return None

    def state_dict(self) -> Part:
        """All that a bit-exact resume needs beyond parameters and rows: plain values, tensors."""
        return {}

    def load_state_dict(self, state: Part) -> None:
        """Restore what `state_dict` gave."""


def rows_to_prune(
    step: int, gaussians: M, strategies: Sequence[Strategy[M]]
) -> Tensor | None:  # [N] bool
    """Union of every strategy's `prune_rows`, or None when nobody names any."""
    union: Tensor | None = None
    for strategy in strategies:
        rows = strategy.prune_rows(step, gaussians)
        if rows is not None:
            union = rows if union is None else union | rows
    return union


def final_keep(gaussians: M, strategies: Sequence[Strategy[M]]) -> Tensor | None:  # [N] bool
    """Rows that every strategy keeps in the exported model, or None for all."""
    keep: Tensor | None = None
    for strategy in strategies:
        rows = strategy.final_keep(gaussians)
        if rows is not None:
            keep = rows if keep is None else keep & rows
    return keep
