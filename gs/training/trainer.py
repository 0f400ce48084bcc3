"""The training loop: one or more images per step, in the order of Inria's published loop.

    learning rates -> SH degree -> camera
    forward_backward    before_render -> render -> after_render -> loss -> backward
    observers' report   test -> save
    update              after_backward (densify, prune) -> optimizer -> after_step
    observers' on_step  log -> checkpoint

gs.training.step takes the step: in these two parts or, where nothing is to be reported and steps
are alike, at once as a captured graph.

Iterations count images from 1; that of a step of several (--batch) is its last one's, and the last
step of a run has as many as are left. Everything random is drawn from the run's seed and a counter,
or has its state in the checkpoint, so that a resumed run goes on exactly as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, cast

import torch
from torch import Tensor

from ..config import TrainConfig, resolve_device
from ..data.camera import Camera
from ..data.loader import ImageLoader
from ..data.scene import Scene
from ..distributed.ranks import Ranks
from ..evaluation.views import evaluate_views, mean_scores
from ..model.model import Model
from ..model.rates import OptimConfig
from ..run_record import checkpoint_file, model_file, shards_folder
from .batch import moments_for
from .checkpoint import save_checkpoint
from .checkpoint_schema import check_like
from .checkpoint_shards import remove_checkpoint, save_shards
from .finite import check_model, check_state, explained
from .memory import device_name, peak_memory
from .observer import Observer, default_observers
from .optimizer import build_optimizer, learning_rates, load_optimizer_state, optimizer_state
from .run_files import write_run_files
from .run_folder import RunFolder
from .run_state import RunState
from .same_run import changed_settings, check_scene, rates_changed, scene_entry
from .sampler import CameraSampler
from .seen import STEPS, Unseen, count_steps
from .sharded_step import ShardedStepper
from .start import State, add_aged_moments, first_model
from .stopping import stop_on_signal
from .strategy import M, StepContext, Strategy, final_keep
from .team import SAME_SIGNAL, Team
from .tracker import Tracker

PREFETCH = 4  # steps whose images are decoded ahead
LOGGED_TRAIN_VIEWS = range(5, 30, 5)  # evaluated beside the test views, as in Inria's log
LOGGED_IMAGES = 5  # test views that go to TensorBoard

logger = logging.getLogger("splatrim")


class Trainer(Generic[M]):
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
        model: What to train, on the device of the run and, where there is a `start`, with its
            values; None: Gaussians, of `start` or at the scene's points.
        observers: Called after those that every run has (gs.training.observer), in this order.
        ranks: Those that train the model together, each of which builds a trainer; None for one.

    Building a trainer writes nothing; `fit` does. `evaluate`, `save` and `checkpoint` may be called
    at any time after.
    """

    def __init__(
        self,
        config: TrainConfig,
        scene: Scene,
        *,
        strategies: Sequence[Strategy[M]] = (),
        optim: OptimConfig | None = None,
        method: str = "3dgs",
        white_background: bool = False,
        settings: dict[str, Any] | None = None,
        start: State | None = None,
        model: M | None = None,
        observers: Sequence[Observer] = (),
        ranks: Ranks | None = None,
    ) -> None:
        self.team = team = Team(ranks)
        self.config, self.scene, self.method = config, scene, method
        self.strategies = tuple(strategies)
        self.optim = optim or OptimConfig()
        self.white_background = white_background
        batch = {"batch": config.batch} if config.batch > 1 else {}
        self.settings = {**batch, **(settings or {}), **scene.record}
        self.device = resolve_device(config.device) if ranks is None else ranks.device
        self.cameras = [*scene.train, *scene.test]
        self.images = ImageLoader(
            self.cameras, white_background=white_background, device=self.device
        )
        self.images.check(keep_alpha=config.random_background)
        self.sampler = CameraSampler(len(scene.train), config.seed)
        quiet = config.quiet or not team.is_first
        self.tracker = Tracker(
            config.iterations,
            quiet=quiet,
            n_images=config.batch,
            begin=config.post_start or 0,
        )
        self.folder = RunFolder.of(config, start, scene.source)
        self.step = 0
        self.seed = config.seed
        self.n_rendered = 0  # rows that the last iteration began with
        self.computed: StepContext[M] | None = None  # while observers report
        pushed = dict.fromkeys(name for s in self.strategies for name in s.regularized)
        unseen = Unseen(tuple(pushed), config.batch)
        self.observers = (*default_observers(config), unseen, *observers)
        if start is not None:
            check_scene(start, scene, self.settings)
        if model is None:
            # M is Gaussians where no model is given
            model = cast(M, first_model(config, scene, start, self.device))
        self.gaussians, model.antialiased = model, config.antialiased
        for strategy in self.strategies:
            strategy.n_images = config.batch
            strategy.setup(
                self.gaussians,
                extent=scene.extent,
                iterations=config.iterations,
                seed=config.seed,
            )
        self.gaussians.check_complete()
        by_row = config.adam_rows == "seen"
        self.optimizer = build_optimizer(
            self.gaussians, self.optim, extent=scene.extent, n_images=config.batch, by_row=by_row
        )
        if by_row:
            count_steps(self.gaussians, start)
        if start is not None:
            self._restore(RunState.from_dict(start))
        team.spread(self.gaussians, self.optimizer)
        parts = config, scene, self.gaussians, self.optimizer, self.strategies, self.images
        self.stepper = team.stepper(*parts, self.tracker, white_background=white_background)
        self.stepper.seed = self.seed
        if start is not None and isinstance(self.stepper, ShardedStepper):
            self.stepper.planner.costs.load_state_dict(start.get("costs") or {})

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
        with told, self.team.told_once(), contextlib.ExitStack() as stack:
            self.team.check_settings(self.settings)
            patience = 0.0 if self.team.ranks is None else SAME_SIGNAL
            # before anything is written: whoever sees train.log may ask for the end
            stack.enter_context(stop_on_signal(self._request_stop, patience=patience))
            self.team.alone(partial(self._begin, stack))
            stack.enter_context(self.stepper.running())
            self.tracker.info(
                f"{self.method}: {len(self.scene.train)} training and {len(self.scene.test)} test"
                f" views, {self.stepper.n_gaussians} Gaussians,"
                f" on {self.team.describe(self.device)}"
            )
            while self.step < config.iterations:
                self.train_step(self.step + config.images_after(self.step))
                if self.stepper.stops and self.step < config.iterations:
                    path = self.checkpoint(self.step)
                    self.write_history()
                    return path
            self.write_history()
        return None

    def _begin(self, stack: contextlib.ExitStack) -> None:
        """Take the output folder, and write what is known before the first iteration."""
        folder = self.config.model_path
        stack.enter_context(self.folder.held())
        stack.enter_context(self.tracker)
        write_run_files(folder, self.scene, {**self.settings, "run": self.folder.run})
        self.tracker.open(folder, self.step + 1)

    @property
    def stop_requested(self) -> bool:
        """Whether the run has been asked to stop, and goes on to the end of the iteration."""
        return self.stepper.wants_stop

    def _request_stop(self) -> None:
        self.stepper.wants_stop = True

    def train_step(self, step: int) -> None:
        """The step whose last image is iteration `step`, counted from 1."""
        self.stepper.settle()
        n_images = min(self.config.images_after(self.step), step - self.step)
        for looker in (self.tracker, *self.observers):
            looker.n_images = n_images
        first = step - n_images + 1
        rates = learning_rates(self.optimizer, self.optim, extent=self.scene.extent, step=first)
        if self.config.sh_degree_grows_at(step, n_images):
            self.gaussians.one_up_sh_degree()
        indices = [self.sampler.next() for _ in range(n_images)]
        upcoming = self.sampler.upcoming(PREFETCH * n_images)
        self.images.targets.prefetch(filter(self.team.keeps_image, upcoming))
        self.n_rendered = self.stepper.n_gaussians
        due = [observer for observer in self.observers if observer.is_due(step)]
        if due or not self.stepper.replay(step, indices, rates):
            computed = self.computed = self.stepper.forward_backward(step, indices)
            for observer in due:
                observer.report(self, step)
            self.computed = None
            self.stepper.update(step, computed, rates)
            del computed
        self.step = step
        for observer in self.observers:
            observer.on_step(self, step)

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """PSNR by split ("test", "train") of the model as it would be saved now."""
        model = self.exported()
        return self.team.alone(lambda: self._evaluate(model, step)) or {}

    def _posed(self, model: Model, step: int) -> list[Camera]:
        """All cameras, from where the model is tested and saved with."""
        cameras, background = self.cameras, self._background(None)
        for strategy in self.strategies:
            cameras = strategy.posed_cameras(step, model, cameras, self.images, background)
        return cameras

    def _evaluate(self, model: Model, step: int) -> dict[str, float]:
        n_train, cameras = len(self.scene.train), self._posed(model, step)
        background, opacities = self._background(None), model.to_ply()["opacities"].sigmoid()
        self.tracker.histogram("scene/opacity_histogram", opacities, step)
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
            on_view = show if split == "test" else None
            scores = mean_scores(
                evaluate_views(
                    model, cameras, self.images, background, indices=indices, on_view=on_view
                )
            )
            if scores:
                self.tracker.test(step, split, scores["psnr"], scores["l1"])
                results[split] = scores["psnr"]
        return results

    @torch.no_grad()
    def exported(self) -> Model:
        """The model as it is saved and tested: exported parameters of rows that all keep.

        Of several ranks, all call it, and the first has the whole.
        """
        self.stepper.settle()
        keep, ids = final_keep(self.gaussians, self.strategies), self.gaussians.rows["ids"]
        if keep is not None:
            ids = ids[keep.view(-1, self.gaussians.parts).any(1)]
        return self.team.complete(self.gaussians.exported(keep), ids)

    def save(self, step: int) -> Path:
        """Write the model as point_cloud/iteration_N/point_cloud.ply."""
        path = model_file(self.config.model_path, step)
        model, n = self.exported(), self.stepper.n_gaussians

        def write() -> None:
            check_model(model, n, step, self.folder.latest())
            model.save(path, self.scene.world_offset)
            cameras = self._posed(model, step)
            for strategy in self.strategies:
                strategy.on_saved(step, path, cameras)
            self.folder.add_model(step)
            self.tracker.info(f"iteration {step}: saved {len(model)} of {n} Gaussians")

        self.team.alone(write)
        self.write_history(last=False)
        return path

    def checkpoint(self, step: int) -> Path:
        """Write all that going on after iteration `step` needs."""
        self.stepper.settle()
        gaussians, folder = self.gaussians, self.config.model_path
        state = RunState(
            run=self.folder.run,
            method=self.method,
            step=step,
            params=gaussians.to_tensors(),
            rows=gaussians.rows,
            shared=gaussians.shared.state_dict(),
            next_id=gaussians.next_id,
            active_sh_degree=gaussians.active_sh_degree,
            sh_degree=gaussians.sh_degree,
            optimizer=optimizer_state(self.optimizer),
            strategies={s.name: s.state_dict() for s in self.strategies},
            sampler=self.sampler.state_dict(),
            rng={"seed": self.seed},
            extent=self.scene.extent,
            scene=scene_entry(self.scene),
            config=self.settings,
            tracker=self.tracker.state_dict(),
        ).to_dict()
        good = self.folder.latest()
        if isinstance(self.stepper, ShardedStepper):
            costs, path = self.stepper.planner.costs.state_dict(), shards_folder(folder, step)
            save_shards(path, state, self.stepper.ranks, costs, good)
        else:
            check_state(state, step, good)
            path = checkpoint_file(folder, step)
            save_checkpoint(path, state)
        self.team.alone(lambda: self.folder.add_checkpoint(step))
        self.tracker.info(f"iteration {step}: saved the checkpoint {path}")
        return path

    def drop_checkpoint(self, step: int) -> None:
        """Remove the checkpoint of an iteration."""

        def remove() -> None:
            self.folder.drop_checkpoint(step)
            remove_checkpoint(self.config.model_path, step)

        self.team.alone(remove)

    def write_history(self, *, last: bool = True) -> None:
        """Write history.json as it stands; if not for the last time, a full disk fails nothing."""
        seconds = self.tracker.seconds
        timing = {
            "train_seconds": round(seconds, 3),
            "iterations_per_second": round(self.step / max(seconds, 1e-9), 3),
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **peak_memory(self.device),
        }
        path = self.config.model_path / "history.json"
        found = [strategy.histograms(self.gaussians) for strategy in self.strategies]
        histograms = {name: x for entry in found for name, x in entry.items()}
        more = {"settings": self.settings, "timing": timing, **self.team.summed(histograms)}
        more |= self.team.about(self.gaussians)
        self.team.alone(lambda: self.tracker.write_history(path, last=last, **more))

    def _background(self, step: int | None) -> Tensor:  # [3]
        return torch.tensor(self.stepper.background_color(step), device=self.device)

    def _restore(self, state: RunState) -> None:
        """Take over all but the model, which is there already."""
        self.step, optimizer = state.step, state.optimizer
        if self.step == self.config.post_start:
            optimizer = add_aged_moments(state, self.gaussians)
        if changes := changed_settings(state.config, self.settings):
            logger.warning(f"settings differ from the checkpoint's: {', '.join(changes)}")
        if rates_changed(state.config, self.settings):
            optimizer = {**optimizer, "lrs": {}}
        before, now = state.config.get("batch", 1), self.config.batch
        if before != now:
            optimizer = moments_for({**optimizer, "lrs": {}}, before, now)
            if STEPS in self.gaussians.rows:
                self.gaussians.rows[STEPS].mul_(before).floor_divide_(now)
        load_optimizer_state(self.optimizer, optimizer)
        self.seed = state.rng.get("seed", self.seed)
        for strategy in self.strategies:
            if strategy.name in state.strategies:
                known = state.strategies[strategy.name]
                check_like(strategy.name, known, strategy.state_dict())
                strategy.load_state_dict(known)
        if state.sampler:
            self.sampler.load_state_dict(state.sampler)
        if state.tracker:
            self.tracker.load_state_dict(state.tracker, self.device)
