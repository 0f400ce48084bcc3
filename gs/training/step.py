"""One training iteration in two parts, or as a CUDA graph.

    forward_backward    render, loss, gradients             changes no parameter
    update              strategies, optimizer, strategies   as far as gradients and rates say
    replay              both at once, as a graph (gs.training.captured_steps), where steps are alike

The trainer calls the parts one after the other and may look at the model in between. A replayed
step counts for certain once `settle` has returned: whoever reads the model calls it first.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from kernels import Counts

from ..config import TrainConfig
from ..data.loader import CameraImages
from ..data.scene import Scene
from ..losses import compared, total
from ..model.renderer import RenderOutput, render, split_depth
from ..seeds import derive_seed
from .batch import grouped
from .captured_steps import Bounds, CudaRecorder, OwnStream, StepGraphs, counts_of
from .optimizer import set_learning_rates
from .pictures import Pictures
from .seen import RowAdam, mark_rows
from .step_inputs import InputBuffer, StepInputs, as_numbers, as_words
from .strategy import M, StepContext, Strategy
from .tracker import Tracker

if TYPE_CHECKING:
    from kernels import FusedAdam


Rates = Mapping[str, float]
"""Learning rates by parameter."""


class _Replayed(NamedTuple):
    """A step that a graph took, and that is not settled."""

    step: int
    images: Sequence[int]
    key: Hashable
    rates: Rates


class Stepper(Generic[M]):
    """Takes the steps of one run.

    Args:
        config: Length, loss weights, seed.
        scene: Cameras and extent, which strategies are shown.
        gaussians: The model, changed in place.
        optimizer: Its optimizer.
        strategies: Densifier and pruners.
        images: Ground truth, of the training cameras first.
        tracker: Gets every step's losses.
        white_background: Train over white instead of black.

    `graphs` keeps captured steps; where it is None, as on a CPU, every step is taken in parts.
    `term_weight` multiplies what strategies add to the loss.
    """

    def __init__(
        self,
        config: TrainConfig,
        scene: Scene,
        gaussians: M,
        optimizer: torch.optim.Optimizer,
        strategies: Sequence[Strategy[M]],
        images: CameraImages,
        tracker: Tracker,
        *,
        white_background: bool,
    ) -> None:
        self.config, self.scene, self.white_background = config, scene, white_background
        self.gaussians, self.optimizer, self.strategies = gaussians, optimizer, strategies
        self.images, self.tracker, self.seed = images, tracker, config.seed
        graphed = config.cuda_graphs and gaussians.device.type == "cuda"
        self.graphs = StepGraphs(CudaRecorder()) if graphed else None
        self.wants_stop = False  # somebody has asked this process to stop
        self._running = False
        self.stream, self.term_weight = OwnStream(gaussians.device), 1.0
        self._buffers: dict[int, InputBuffer] = {}  # by images of a step
        self._targets: dict[tuple[int, ...], list[Tensor]] = {}  # of captured steps, by shape
        self.pictures = Pictures(images)
        self._replayed: _Replayed | None = None
        self._warming_up: Hashable | None = None  # key of the eager step that goes on
        self._stepped: list[Tensor] = []  # parameters that the last update had gradients of
        self._counts: dict[Hashable, list[Tensor]] = {}  # the same by graph: its steps to count

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Where steps may be graphs; on a GPU on a stream of its own, with autograd in the caller's
        thread: waking the thread that autograd keeps for a GPU takes 0.2 to 0.4 ms per step.
        """
        with self.stream.current():
            self._running = True
            try:
                yield
                self.settle()
            finally:
                self._running = False

    def forward_backward(self, step: int, indices: Sequence[int]) -> StepContext[M]:
        """Render images and find the sum of their gradients, which parameters then have.

        Args:
            step: Number of the last image.
            indices: Which images, by camera.
        """
        self._announce(len(indices))
        self._set_stage(step, len(indices))
        device, together = self.gaussians.device, self.gaussians.same_in_all_views
        indices, views = grouped(self.pictures.cameras, indices, device, together=together)
        integers: Mapping[str, int | Tensor] = self._device_inputs(step)
        if self.graphs is not None:  # the kernels of captured steps: no others to compile
            integers = as_words(integers, device)
        inputs = StepInputs(
            views[0],
            torch.tensor(self.background_color(step), device=device),
            integers,
            others=tuple(views[1:]),
            numbers=as_numbers(self._device_numbers(step), device),
        )
        return self._forward_backward(step, indices, [self.pictures[i] for i in indices], inputs)

    def update(self, step: int, computed: StepContext[M], rates: Rates) -> None:
        """Densify, prune and step, by the gradients that `forward_backward` has left."""
        n = len(self.gaussians)
        set_learning_rates(self.optimizer, rates)
        self._update(step, computed)
        key, self._warming_up = self._warming_up, None
        if key is not None and self.graphs is not None:
            self.graphs.warmed_up(key, n, counts_of(computed.out.info))

    def replay(self, step: int, indices: Sequence[int], rates: Rates) -> bool:
        """Take a step as a graph; False where it has to be taken in parts.

        Call `settle` before it.
        """
        self._announce(len(indices))
        self._set_stage(step, len(indices))
        key = None if self.graphs is None else self._key(step, indices)
        if key is None or self.graphs is None:
            return False
        plan = self.graphs.plan(key, self.gaussians)
        if plan == "warm up":
            self._warming_up = key
        if plan not in ("capture", "replay"):
            return False
        set_learning_rates(self.optimizer, rates)
        buffer, targets = self._upload_inputs(step, indices, rates), self._upload_images(indices)
        if plan == "capture":
            self._capture(self.graphs, key, step, indices, buffer, targets)
        self.graphs.replay(key)
        self._count_steps(key, 1)
        self._replayed = _Replayed(step, indices, key, rates)
        return True

    def settle(self) -> None:
        """Make sure that the last step counts: repeat it if a graph's buffers were too small."""
        if self._replayed is None:
            return
        (step, images, key, rates), self._replayed = self._replayed, None
        assert self.graphs is not None
        rows, entries, missing = self._buffers[len(images)].wait()
        if not self.graphs.fits(key, len(self.gaussians), Counts(rows, entries), missing):
            self._count_steps(key, -1)
            with torch.enable_grad():  # whoever looks at the model may have turned it off
                self.update(step, self.forward_backward(step, images), rates)

    @property
    def stops(self) -> bool:
        """Whether no further step is to be taken."""
        return self.wants_stop

    @property
    def n_gaussians(self) -> int:
        """Rows of the model, on all ranks."""
        return len(self.gaussians)

    def background_color(self, step: int | None) -> tuple[float, ...]:
        """Black, white, or random in training; never random for `step` None."""
        if self.config.random_background and step is not None:
            seed = derive_seed(self.seed, "background", step)
            return tuple(torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist())
        return (float(self.white_background),) * 3

    def _forward_backward(
        self,
        step: int,
        indices: Sequence[int],
        targets: Sequence[Tensor],  # [H, W, 3 or 4] uint8
        inputs: StepInputs,
        bounds: Bounds | None = None,
    ) -> StepContext[M]:
        """Images are in the order of the views of `inputs`.

        Under capture there are `bounds`, and `skip` says whether the rendering kept them.
        """
        gaussians, config = self.gaussians, self.config
        keywords: dict[str, Any] = dict(inputs.integers)
        for strategy in self.strategies:
            keywords |= strategy.before_render(step, gaussians)
        if config.deterministic:
            keywords["deterministic"] = True
        if any(strategy.needs_depth for strategy in self.strategies):
            keywords["render_mode"] = "RGB+D"
        if bounds is not None:
            keywords["capacity"] = bounds.capacity
        view, *others = (gaussians.posed(view) for view in inputs.views)
        inputs = dataclasses.replace(inputs, view=view, others=tuple(others))
        draw = gaussians.splats if bounds is None else gaussians.splats_within
        drawn = [draw(view) for view in inputs.views]
        out, *others = (
            split_depth(render(splats, view, background=inputs.background, **keywords))
            for splats, view in zip(drawn, inputs.views, strict=True)
        )
        skip = None
        if bounds is not None:
            skip = bounds.check(out.info["counts"], drawn[0].missing)
        context = self._context(step, indices[0], out, inputs=inputs, skip=skip, others=others)
        if config.regularise == "seen":
            out.info["observations"] = context.observations
        n_images = len(indices)
        images = self._shown(step, indices, inputs, context)
        values, v_images = self._compare(images, targets, context)
        terms = [strategy.loss(step, gaussians, out) for strategy in self.strategies]
        gain = n_images * self.term_weight
        terms = [x if gain == 1 else gain * x for x in terms if x is not None]
        own = [strategy.image_loss(step, context) for strategy in self.strategies]
        terms += [x for x in own if x is not None]
        loss = total(values[0], v_images, images, *terms)
        loss.backward()
        self.tracker.record(loss.detach().view(1), values[3:], skip, n_images)
        return context

    def _compare(
        self, images: Sequence[Tensor], targets: Sequence[Tensor], context: StepContext[M]
    ) -> tuple[Tensor, list[Tensor]]:
        """Values of the photometric losses, summed, and each image's gradient."""
        assert context.inputs is not None
        behind = context.inputs.background if self.images.targets.transparent else None
        return compared(images, targets, self.config.lambda_dssim, behind)

    def _context(self, step: int, image: int, out: RenderOutput, **own: Any) -> StepContext[M]:
        """What a step shows to its strategies; `own` are the fields that it alone knows."""
        return StepContext(
            self.gaussians,
            self.optimizer,
            out,
            self.pictures.cameras[image],
            extent=self.scene.extent,
            iterations=self.config.iterations,
            white_background=self.white_background,
            strategies=self.strategies,
            cameras=self.scene.train,
            images=self.images,
            model_path=self.config.model_path,
            step_seed=derive_seed(self.seed, "step", step),
            **own,
        )

    def _shown(
        self, step: int, indices: Sequence[int], inputs: StepInputs, context: StepContext[M]
    ) -> list[Tensor]:  # [H, W, 3] each
        """The images' colours as the loss sees them."""
        images: list[Tensor] = []
        for view, out in zip(inputs.views, context.renderings, strict=True):
            # unbind: its backward copies each image once
            parts = (out.colors,) if view.n_cameras == 1 else out.colors.unbind(0)
            for k, colors in enumerate(parts):
                shown = context
                if len(indices) > 1:
                    shown = dataclasses.replace(
                        context,
                        camera=self.pictures.cameras[indices[len(images)]],
                        inputs=dataclasses.replace(inputs, view=view.one(k), others=()),
                    )
                for strategy in self.strategies:
                    colors = strategy.after_render(step, colors, shown)
                images.append(colors)
        return images

    def _update(self, step: int, context: StepContext[M]) -> None:
        for strategy in self.strategies:
            strategy.after_backward(step, context)
        self._rows_may_have_changed()
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._stepped = [p for p in params if p.grad is not None]
        if self.config.adam_rows == "seen":
            mark_rows(self.gaussians, cast("RowAdam", self.optimizer), context)
        if context.inputs is not None and context.inputs.rates is not None:
            self._fused_adam.apply(context.inputs.rates, skip=context.skip)
        elif step < self.config.iterations:  # the published loop leaves the last step out
            if context.skip is None:
                self.optimizer.step()
            else:
                self._fused_adam.step(skip=context.skip)
        self.optimizer.zero_grad(set_to_none=True)
        for strategy in self.strategies:
            strategy.after_step(step, context)

    def _rows_may_have_changed(self) -> None:
        """Strategies have seen the gradients, the optimizer has not stepped."""

    def _upload_images(self, indices: Sequence[int]) -> list[Tensor]:
        """Queue a captured step's images; where they go."""
        images = [self.pictures[i] for i in indices]
        targets = self._targets.setdefault(images[0].shape, [])
        targets += [torch.empty_like(images[0]) for _ in images[len(targets) :]]
        for target, image in zip(targets, images, strict=False):  # larger steps had more targets
            target.copy_(image)
        return targets[: len(indices)]

    def _upload_inputs(self, step: int, indices: Sequence[int], rates: Rates) -> InputBuffer:
        """Queue a captured step's inputs but the images."""
        integers, numbers = self._device_inputs(step), self._device_numbers(step)
        n_images = len(indices)
        if n_images not in self._buffers:
            n_params, device = len(self.optimizer.param_groups), self.gaussians.device
            self._buffers[n_images] = InputBuffer(device, n_params, integers, n_images, numbers)
        buffer = self._buffers[n_images]
        views = [self.pictures.views[i] for i in indices]
        buffer.upload(
            views[0] if len(views) == 1 else np.concatenate(views),
            self.background_color(step),
            derive_seed(self.seed, "step", step),
            integers,
            rates.get("means", 0.0),
            self._fused_adam.rates_for(),
            numbers,
        )
        return buffer

    def _capture(
        self,
        graphs: StepGraphs,
        key: Hashable,
        step: int,
        indices: Sequence[int],
        buffer: InputBuffer,
        targets: Sequence[Tensor],  # [H, W, 3 or 4] uint8
    ) -> None:
        camera = self.pictures.cameras[indices[0]]
        capacity = graphs.capacity(len(self.gaussians))
        limits = torch.tensor(capacity, dtype=torch.int32, device=self.gaussians.device)
        inputs = buffer.inputs(camera.width, camera.height, camera.near, camera.lens)
        bounds = Bounds(capacity, limits, buffer)
        compute = partial(self._forward_backward, step, indices, targets, inputs, bounds)
        graphs.capture(key, capacity, lambda: self._update(step, compute()))
        self._counts[key] = [self.optimizer.state[p]["step"] for p in self._stepped]

    def _key(self, step: int, indices: Sequence[int]) -> Hashable | None:
        """What distinguishes graphs, or None where `step` must be taken in parts."""
        if not self._running or step == self.config.iterations:
            return None
        cameras = [self.pictures.cameras[i] for i in indices]
        size, *others = ((x.width, x.height, x.near, x.lens) for x in cameras)
        if any(other != size for other in others):
            return None
        if others and not self.gaussians.same_in_all_views:
            return None
        phases = tuple(strategy.phase(step) for strategy in self.strategies)
        key = len(indices), *size, self.gaussians.active_sh_degree, phases
        return None if None in phases else key

    def _set_stage(self, step: int, n_images: int) -> None:
        self.pictures.reduce(self.config.reduction_after(step - n_images))

    def _announce(self, n_images: int) -> None:
        """Tell strategies how many images the step has that is about to be taken."""
        for strategy in self.strategies:
            strategy.n_images = n_images

    def _device_inputs(self, step: int) -> dict[str, int]:
        return {k: x for s in self.strategies for k, x in s.device_inputs(step).items()}

    def _device_numbers(self, step: int) -> dict[str, float]:
        return {k: x for s in self.strategies for k, x in s.device_numbers(step).items()}

    def _count_steps(self, key: Hashable, n: int) -> None:
        """Tell the optimizer of steps that it took within a graph."""
        for count in self._counts[key]:
            count += n

    @property
    def _fused_adam(self) -> FusedAdam:
        return cast("FusedAdam", self.optimizer)  # of all models that steps are captured of
