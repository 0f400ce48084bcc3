"""The training loop: one image per iteration, in the order of Inria's published loop.

    learning rates -> SH degree -> camera -> before_render -> render -> loss -> backward
    -> log, test -> save -> after_backward (densify, prune) -> optimizer -> after_step -> checkpoint

Iterations count from 1. Everything random is drawn from the run's seed and a counter, or has its
state in the checkpoint, so that a resumed run goes on exactly as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig, resolve_device
from ..data.camera import Camera
from ..data.loader import ImageLoader
from ..data.scene import Scene
from ..evaluation.views import evaluate_views, mean_scores
from ..model.gaussians import Gaussians
from ..model.histograms import Histogram
from ..model.ply import save_ply
from ..model.rates import OptimConfig
from ..run_record import checkpoint_file, model_file
from ..streams import heeded_signals
from .checkpoint import save_checkpoint
from .checkpoint_schema import check_like
from .finite import check_model, check_state, explained
from .memory import peak_memory
from .optimizer import build_optimizer, load_optimizer_state, optimizer_state, update_learning_rates
from .run_files import write_run_files
from .run_folder import RunFolder
from .same_run import changed_settings, check_scene, rates_changed, scene_entry
from .sampler import CameraSampler
from .start import add_aged_moments
from .step import Stepper
from .strategy import Strategy, final_keep
from .tracker import Tracker

PREFETCH = 4  # images decoded ahead
EVALUATION_AHEAD = 1000  # iterations before an evaluation, its images begin to be decoded
LOGGED_TRAIN_VIEWS = range(5, 30, 5)  # evaluated beside the test views, as in Inria's log
LOGGED_IMAGES = 5  # test views that go to TensorBoard

logger = logging.getLogger("splatrim")


class Trainer:
    """Trains one model on one scene.

    Args:
        config: Length, outputs, seed, device.
        scene: Cameras and starting points. Nothing of it is changed.
        strategies: Called in this order; the densifier first.
        optim: Learning rates.
        method: Name of the pruning method, kept in checkpoints.
        white_background: Train over white instead of black.
        settings: What config.json shall say.
        start: A checkpoint's state (gs.training.checkpoint) to go on from, or a finished model
            (gs.training.start).

    Building a trainer writes nothing; `fit` does.
    """

    def __init__(
        self,
        config: TrainConfig,
        scene: Scene,
        *,
        strategies: Sequence[Strategy] = (),
        optim: OptimConfig | None = None,
        method: str = "3dgs",
        white_background: bool = False,
        settings: dict[str, Any] | None = None,
        start: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.scene, self.method = config, scene, method
        self.strategies = tuple(strategies)
        self.optim = optim or OptimConfig()
        self.white_background = white_background
        self.settings = settings or {}
        self.device = resolve_device(config.device)
        self.cameras = [*scene.train, *scene.test]
        self.images = ImageLoader(
            self.cameras, white_background=white_background, device=self.device
        )
        self.images.check()
        self.sampler = CameraSampler(len(scene.train), config.seed)
        self.tracker = Tracker(config.iterations, quiet=config.quiet)
        self.folder = RunFolder.of(config, start, scene.source)
        self.step = 0
        self.seed = config.seed
        self.stop_requested = False
        if start is None:
            self.gaussians = Gaussians.from_points(
                scene.points, scene.colors, sh_degree=config.sh_degree, device=self.device
            )
        else:
            check_scene(start, scene, self.settings)
            self.gaussians = Gaussians.from_state(start, self.device)
        for strategy in self.strategies:
            strategy.setup(
                self.gaussians,
                extent=scene.extent,
                iterations=config.iterations,
                seed=config.seed,
            )
        self.gaussians.check_complete()
        self.optimizer = build_optimizer(self.gaussians, self.optim, extent=scene.extent)
        context = {
            "extent": scene.extent,
            "iterations": config.iterations,
            "white_background": white_background,
            "strategies": self.strategies,
            "cameras": scene.train,
            "images": self.images,
            "model_path": config.model_path,
        }
        self.stepper = Stepper(
            config, self.gaussians, self.optimizer, self.strategies, self.images, self.tracker,
            context=context, report=self._report, white_background=white_background,
        )  # fmt: skip
        if start is not None:
            self._restore(start)

    def fit(self) -> Path | None:
        """Train to the end.

        Returns:
            None; or, after Ctrl-C or SIGTERM, the checkpoint that was saved.

        Raises:
            SplatrimError: Something could not be written, or the loss is not finite.
        """
        config = self.config
        told = explained(
            self.gaussians, self.strategies, step=lambda: self.step, good=self.folder.latest
        )
        with told, self.folder.held(), self._stop_on_signal(), self.tracker, self.stepper.running():
            settings = {**self.settings, "run": self.folder.run}
            write_run_files(config.model_path, self.scene, settings)
            self.tracker.open(config.model_path, self.step + 1)
            self.tracker.info(
                f"{self.method}: {len(self.scene.train)} training and {len(self.scene.test)} test"
                f" views, {len(self.gaussians)} Gaussians, on {self.device}"
            )
            for step in range(self.step + 1, config.iterations + 1):
                self.train_step(step)
                if self.stop_requested and step < config.iterations:
                    path = self.checkpoint(step)
                    self.write_history()
                    return path
            self.write_history()
        return None

    def train_step(self, step: int) -> None:
        """Iteration `step`, counted from 1."""
        self.stepper.settle()
        update_learning_rates(self.optimizer, self.optim, extent=self.scene.extent, step=step)
        if self.config.sh_degree_grows_at(step):
            self.gaussians.one_up_sh_degree()
        index = self.sampler.next()
        self.images.prefetch(self.sampler.upcoming(PREFETCH))
        if self._evaluates(step + EVALUATION_AHEAD):
            self.images.prefetch(range(len(self.scene.train), len(self.cameras)))
        n_rendered = len(self.gaussians)
        self.stepper.take(step, index)
        self.step = step
        if self.tracker.is_due(step):
            scalars: dict[str, float | Tensor] = {}
            for strategy in self.strategies:
                scalars |= strategy.scalars(step)
            self.tracker.log(step, n_rendered, scalars)
        if step in self.config.checkpoint_iterations:
            self.checkpoint(step)

    def _evaluates(self, step: int) -> bool:
        return step == self.config.iterations or step in self.config.test_iterations

    @torch.no_grad()
    def _report(self, step: int) -> None:
        """Evaluate and save what is due, before anything is pruned."""
        last = step == self.config.iterations
        if self._evaluates(step):
            self.evaluate(step)
        if last or step in self.config.save_iterations:
            self.save(step)

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """PSNR by split ("test", "train") of the model as it would be saved now."""
        model, n_train = self.exported(), len(self.scene.train)
        self.tracker.histogram("scene/opacity_histogram", model.get_opacities(), step)
        splits = {
            "test": range(n_train, len(self.cameras)),
            "train": [i for i in LOGGED_TRAIN_VIEWS if i < n_train],
        }

        def show(position: int, camera: Camera, rendering: Tensor, truth: Tensor) -> None:
            if position < LOGGED_IMAGES:
                self.tracker.image(f"test_view_{camera.image_name}/render", rendering, step)
                if not self.tracker.history["test"]:
                    self.tracker.image(f"test_view_{camera.image_name}/ground_truth", truth, step)

        results: dict[str, float] = {}
        for split, indices in splits.items():
            scores = mean_scores(
                evaluate_views(
                    model,
                    self.cameras,
                    self.images,
                    self._background(None),
                    indices=indices,
                    on_view=show if split == "test" else None,
                )
            )
            if scores:
                self.tracker.test(step, split, scores["psnr"], scores["l1"])
                results[split] = scores["psnr"]
        return results

    @torch.no_grad()
    def exported(self) -> Gaussians:
        """The model as it is saved and tested: exported parameters of rows that all keep."""
        return self.gaussians.exported(final_keep(self.gaussians, self.strategies))

    def save(self, step: int) -> Path:
        """Write the model as point_cloud/iteration_N/point_cloud.ply."""
        path = model_file(self.config.model_path, step)
        model = self.exported()
        check_model(model, len(self.gaussians), step, self.folder.latest())
        save_ply(path, model.to_tensors())
        self.folder.add_model(step)
        self.tracker.info(
            f"iteration {step}: saved {len(model)} of {len(self.gaussians)} Gaussians"
        )
        self.write_history(last=False)
        return path

    def checkpoint(self, step: int) -> Path:
        """Write all that going on after iteration `step` needs."""
        self.stepper.settle()
        gaussians = self.gaussians
        path = checkpoint_file(self.config.model_path, step)
        state = {
            "run": self.folder.run,
            "method": self.method,
            "step": step,
            "params": gaussians.to_tensors(),
            "rows": gaussians.rows,
            "shared": gaussians.shared.state_dict(),
            "next_id": gaussians.next_id,
            "active_sh_degree": gaussians.active_sh_degree,
            "sh_degree": gaussians.sh_degree,
            "optimizer": optimizer_state(self.optimizer),
            "strategies": {s.name: s.state_dict() for s in self.strategies},
            "sampler": self.sampler.state_dict(),
            "rng": {"seed": self.seed},
            "extent": self.scene.extent,
            "scene": scene_entry(self.scene),
            "config": self.settings,
            "tracker": self.tracker.state_dict(),
        }
        check_state(state, step, self.folder.latest())
        save_checkpoint(path, state)
        self.folder.add_checkpoint(step)
        self.tracker.info(f"iteration {step}: saved the checkpoint {path}")
        return path

    def write_history(self, *, last: bool = True) -> None:
        """Write history.json as it stands; if not for the last time, a full disk fails nothing."""
        seconds = self.tracker.seconds
        timing = {
            "train_seconds": round(seconds, 3),
            "iterations_per_second": round(self.step / max(seconds, 1e-9), 3),
            "device": _device_name(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **peak_memory(self.device),
        }
        path = self.config.model_path / "history.json"
        histograms: dict[str, Histogram] = {}
        for strategy in self.strategies:
            histograms |= strategy.histograms(self.gaussians)
        more = {"settings": self.settings, "timing": timing, **histograms}
        self.tracker.write_history(path, last=last, **more)

    def _background(self, step: int | None) -> Tensor:  # [3]
        return torch.tensor(self.stepper.background_color(step), device=self.device)

    def _restore(self, state: dict[str, Any]) -> None:
        """Take over all but the model, which is there already."""
        self.step = int(state["step"])
        optimizer = state["optimizer"]
        if self.step == self.config.post_start:
            optimizer = add_aged_moments(state, self.gaussians)
        before = state.get("config") or {}
        changes = changed_settings(before, self.settings)
        if changes:
            logger.warning(f"settings differ from the checkpoint's: {', '.join(changes)}")
        if rates_changed(before, self.settings):
            optimizer = {**optimizer, "lrs": {}}
        load_optimizer_state(self.optimizer, optimizer)
        self.seed = self.stepper.seed = state.get("rng", {}).get("seed", self.seed)
        known = state["strategies"]
        for strategy in self.strategies:
            if strategy.name in known:
                check_like(strategy.name, known[strategy.name], strategy.state_dict())
                strategy.load_state_dict(known[strategy.name])
        if state.get("sampler"):
            self.sampler.load_state_dict(state["sampler"])
        if state.get("tracker"):
            self.tracker.load_state_dict(state["tracker"], self.device)

    @contextlib.contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """The first Ctrl-C, SIGTERM or SIGHUP ends the iteration, the second stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request_stop(number: int, frame: Any) -> None:
            self.stop_requested = True
            for handled in previous:
                signal.signal(handled, signal.default_int_handler)

        heeded = (signal.SIGINT, *heeded_signals())
        previous = {number: signal.getsignal(number) for number in heeded}
        try:
            for number in previous:
                signal.signal(number, request_stop)
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
