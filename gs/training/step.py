"""One training iteration: render, loss, backward, strategies, optimizer; launch by launch or as a
CUDA graph (gs.training.captured_steps)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kernels import photometric_gradient

from ..config import TrainConfig
from ..data.camera import Camera
from ..data.loader import ImageLoader
from ..losses import total
from ..model.gaussians import Gaussians
from ..model.renderer import render
from ..seeds import derive_seed
from .captured_steps import Frame, StepGraphs
from .optimizer import learning_rate
from .strategy import StepContext, Strategy
from .tracker import Tracker

if TYPE_CHECKING:
    from kernels import Capacity


class Stepper:
    """Takes the steps of one run.

    Args:
        config: Length, loss weights, seed, and when the model is evaluated and saved.
        gaussians: The model, changed in place.
        optimizer: Its optimizer.
        strategies: Densifier and pruners.
        images: Ground truth, of the training cameras first.
        tracker: Gets every step's losses.
        context: What strategies are shown besides the step itself.
        report: Called within a step that is evaluated or saved, before anything is pruned.
        white_background: Train over white instead of black.
    """

    def __init__(
        self,
        config: TrainConfig,
        gaussians: Gaussians,
        optimizer: torch.optim.Optimizer,
        strategies: Sequence[Strategy],
        images: ImageLoader,
        tracker: Tracker,
        *,
        context: dict[str, Any],
        report: Callable[[int], None],
        white_background: bool = False,
    ) -> None:
        self.config, self.gaussians, self.optimizer = config, gaussians, optimizer
        self.strategies, self.images, self.tracker = strategies, images, tracker
        self.context, self.report, self.white_background = context, report, white_background
        self.seed = config.seed
        self.graphs = StepGraphs()
        self._graphs_work = False
        self._stream: torch.cuda.Stream | None = None
        self._frame: Frame | None = None
        self._targets: dict[tuple[int, ...], Tensor] = {}  # a captured step's image, by shape
        self._views = [np.append(c.viewmat.numpy(), c.K.numpy()) for c in images.cameras]
        self._replayed: tuple[int, int, Hashable] | None = None  # step, index, key; not settled
        self._stepped: list[Tensor] = []  # parameters that the last `_compute` had gradients of
        self._counts: dict[Hashable, list[Tensor]] = {}  # the same by graph: its steps to count

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Where steps may be graphs: on a stream of its own, with autograd in the caller's thread.

        Waking the thread that autograd keeps for a GPU takes 0.2 to 0.4 ms per step.
        """
        device = self.gaussians.device
        if device.type != "cuda":
            yield
            return
        with torch.cuda.device(device), torch.autograd.set_multithreading_enabled(False):
            # always the same one: the allocator keeps memory by stream
            stream = self._stream = self._stream or torch.cuda.Stream()
            caller = torch.cuda.current_stream()
            stream.wait_stream(caller)
            with torch.cuda.stream(stream):
                self._graphs_work = self.config.cuda_graphs
                try:
                    yield
                    self.settle()
                finally:
                    self._graphs_work = False
            caller.wait_stream(stream)

    def take(self, step: int, index: int) -> None:
        """Iteration `step` on image `index`. Call `settle` before it, and to look at the model."""
        key = self._graph_key(step, self.images.cameras[index])
        plan = "run" if key is None else self.graphs.plan(key, self.gaussians)
        if plan in ("capture", "replay"):
            self._run_graph(step, index, key, capture=plan == "capture")
        else:
            n = len(self.gaussians)
            info = self._run(step, index)
            if plan == "warm up":
                n_rows = int((info["radii"] > 0).all(-1).sum())
                self.graphs.warmed_up(key, n, n_rows, int(info["n_isects"]))

    def settle(self) -> None:
        """Make sure that the last step counts: repeat it if a graph's buffers were too small.

        The learning rates must still be those of that step.
        """
        if self._replayed is None:
            return
        (step, index, key), self._replayed = self._replayed, None
        assert self._frame is not None
        if not self.graphs.fits(key, len(self.gaussians), *self._frame.wait()):
            self._count_steps(key, -1)
            self._run(step, index)

    def background_color(self, step: int | None) -> tuple[float, ...]:
        """Black, white, or random in training; never random for `step` None."""
        if self.config.random_background and step is not None:
            seed = derive_seed(self.seed, "background", step)
            return tuple(torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist())
        return (float(self.white_background),) * 3

    def _graph_key(self, step: int, camera: Camera) -> Hashable | None:
        """What distinguishes graphs, or None where `step` must run eagerly."""
        config = self.config
        last = step == config.iterations
        due = step in config.test_iterations or step in config.save_iterations
        if last or due or not self._graphs_work:
            return None
        phases = tuple(strategy.phase(step) for strategy in self.strategies)
        if None in phases:
            return None
        return camera.width, camera.height, self.gaussians.active_sh_degree, phases

    def _run(self, step: int, index: int) -> dict[str, Any]:
        """A step launch by launch; the rendering's info."""
        camera = self.images.cameras[index]
        background = torch.tensor(self.background_color(step), device=self.gaussians.device)
        return self._compute(step, camera, self.images[index], background)

    def _run_graph(self, step: int, index: int, key: Hashable, *, capture: bool) -> None:
        """A step as a graph; whether its buffers sufficed is seen in `settle`."""
        from kernels import Capacity

        device, integers = self.gaussians.device, self._device_inputs(step)
        integers["step_seed"] = derive_seed(self.seed, "step", step)
        if self._frame is None:
            self._frame = Frame(device, len(self.optimizer.param_groups), integers)
        frame, image = self._frame, self.images[index]
        if image.shape not in self._targets:
            self._targets[image.shape] = torch.empty_like(image)
        target = self._targets[image.shape]
        if capture:
            room = Capacity(*self.graphs.room(len(self.gaussians)))
            limits = torch.tensor(room, dtype=torch.int32, device=device)
            compute = partial(
                self._compute, step, self.images.cameras[index], target, frame.background,
                frame=frame, room=room, limits=limits,
            )  # fmt: skip
            self.graphs.capture(key, room, compute)
            self._counts[key] = [self.optimizer.state[p]["step"] for p in self._stepped]
        rates = self.optimizer.rates_for()  # pyright: ignore[reportAttributeAccessIssue]
        means_lr = learning_rate(self.optimizer, "means")
        background = self.background_color(step)
        frame.upload(self._views[index], background, rates, integers, means_lr)
        target.copy_(image)
        self.graphs.replay(key)
        self._count_steps(key, 1)
        self._replayed = step, index, key

    def _inputs(self, step: int) -> dict[str, Any]:
        """Keywords of the rendering that the strategies ask for."""
        inputs: dict[str, Any] = {}
        for strategy in self.strategies:
            inputs |= strategy.before_render(step, self.gaussians)
        return inputs

    def _device_inputs(self, step: int) -> dict[str, int]:
        """Those of them that are integers and differ from step to step."""
        integers: dict[str, int] = {}
        for strategy in self.strategies:
            integers |= strategy.device_inputs(step)
        return integers

    def _compute(
        self,
        step: int,
        camera: Camera,
        target: Tensor,  # [H, W, 3] uint8
        background: Tensor,  # [3]
        *,
        frame: Frame | None = None,
        room: Capacity | None = None,
        limits: Tensor | None = None,  # [2] int32, the room
    ) -> dict[str, Any]:
        """All of a step's work on the device; the rendering's info.

        Under capture, what changes from step to step is read from `frame`, and nothing is changed
        where the rendering did not fit into `room`.
        """
        gaussians, config = self.gaussians, self.config
        inputs, integers = self._inputs(step), self._device_inputs(step)
        if config.deterministic:
            inputs["deterministic"] = True
        if frame is not None:
            inputs |= {"capacity": room, "camera_tensors": (frame.viewmats, frame.Ks)}
            inputs |= {name: frame.integers[name] for name in integers}
        else:
            inputs |= integers
        out = render(gaussians, camera, background=background, **inputs)
        skip = None
        if frame is not None:
            frame.capture_report(out.info["counts"])
            skip = (out.info["counts"] > limits).any().view(1).int()
        out.info["skip"] = skip

        values, v_colors = photometric_gradient(out.colors, target, config.lambda_dssim)
        terms = [strategy.loss(step, gaussians, out) for strategy in self.strategies]
        terms = [term for term in terms if term is not None]
        loss = total(values[0], v_colors, out.colors, *terms)
        loss.backward()
        self.tracker.record(torch.cat([loss.detach().view(1), values[3:]]), skip)
        if frame is None:
            self.report(step)

        context = StepContext(
            gaussians=gaussians, optimizer=self.optimizer, out=out, camera=camera, frame=frame,
            step_seed=derive_seed(self.seed, "step", step), **self.context,
        )  # fmt: skip
        for strategy in self.strategies:
            strategy.after_backward(step, context)
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._stepped = [p for p in params if p.grad is not None]
        if frame is not None:
            self.optimizer.apply(frame.rates, skip=skip)  # pyright: ignore
        elif step < config.iterations:  # the published loop leaves the last step out
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for strategy in self.strategies:
            strategy.after_step(step, context)
        return out.info

    def _count_steps(self, key: Hashable, n: int) -> None:
        """Tell the optimizer of steps that it took within a graph."""
        for count in self._counts[key]:
            count += n
