"""Training of a scene in blocks: rounds of waves of intervals.

    round   every block has its turn, of as many steps as move all the same share of the schedule on
    wave    blocks that do not touch, at once on several GPUs or one after the other
    turn    state to the device -> surroundings as of the wave's beginning -> steps -> to the host

Ranks only share the blocks of a wave: a block always has its turns on the same rank, and a run's
result is the same for any number of them, bit for bit. Ranks beyond a wave's blocks wait.

A run that is asked to stop gives up the turns of the wave that is going on, and saves all blocks as
they were when it began.
"""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.loader import ImageLoader
from ..data.scene import Scene
from ..distributed.ranks import Ranks
from ..errors import SplatrimError
from ..model.model import Model
from ..model.splats import Frozen
from ..training.run_files import write_run_files
from ..training.run_folder import RunFolder
from ..training.stopping import stop_on_signal
from ..training.team import SAME_SIGNAL, Team
from .live import BlockPlan, LiveBlock, Shared
from .outputs import Outputs
from .partition import Partition
from .partition_file import save_partition
from .plan_view import save_plan
from .plans import RunSettings, first_states, make_plans
from .prefetch import Prefetcher, next_in_turn
from .progress import BlocksProgress, Stopwatch, latest_of
from .saved import SavedBlocks, load_states
from .schedule import schedule_of
from .store import BlockStore, public_part
from .surroundings import find_surroundings, reached_boxes
from .waves import plan_round, shares_of

HOST_IMAGES = 8 * 2**30  # bytes of decoded images that stay on the host

logger = logging.getLogger("splatrim")


class BlockTrainer:
    """Trains a scene in blocks.

    Args:
        run: All settings.
        scene: Cameras and starting points.
        partition: Its blocks.
        device: Where blocks are trained.
        start: Output folder of a run in blocks that this one goes on from; None to begin.
        ranks: Who shares the work, each of which makes a trainer; None for one.

    Building a trainer writes nothing; `fit` does.
    """

    outputs_type: type[Outputs] = Outputs

    def __init__(
        self,
        run: RunSettings,
        scene: Scene,
        partition: Partition,
        device: torch.device,
        *,
        start: Path | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.run, self.scene, self.partition, self.device = run, scene, partition, device
        self.config = run.train
        self.team = Team(ranks)
        self.schedule = schedule_of(run.train, run.blocks, partition)
        self.plans = make_plans(run, scene, partition, self.schedule)
        self.waves = self._plan_waves()
        costs = [len(cameras) for cameras in partition.cameras]
        ranks_in_all = 1 if self.team.ranks is None else self.team.ranks.size
        self.shares = [shares_of(wave, costs, ranks_in_all) for wave in self.waves]
        self.owners = [
            next(r for shares in self.shares for r, blocks in enumerate(shares) if b in blocks)
            for b in range(partition.n_blocks)
        ]
        self.cameras = [*scene.train, *scene.test]
        self.images = ImageLoader(
            self.cameras,
            white_background=run.white_background,
            device=device,
            max_bytes=HOST_IMAGES,
            max_device_bytes=0,
        )
        self.images.check()
        self.store = BlockStore(partition.n_blocks)
        quiet = run.train.quiet or not self.team.is_first
        self.progress = BlocksProgress(self.schedule, quiet=quiet)
        self.tracker = self.progress.tracker
        self.shared, self.prefetcher = Shared(device), Prefetcher(device)
        self._turns = [b for shares in self.shares for b in shares[self.rank]]
        self.stop_requested = False
        self.start = start
        self._since_saved = 0
        self.latest: dict[int, dict[str, float]] = {}  # of each block, what it logged last
        self._begun = [0] * partition.n_blocks  # steps of each block before this run
        known, state = (None, None) if start is None else self._load(start)
        self.saved = SavedBlocks(run.train.model_path, partition, known)
        self.folder = RunFolder.of(run.train, state, scene.source)
        self.folder.check()
        self.outputs = self.outputs_type(
            run,
            scene,
            partition,
            self.store,
            self.plans,
            self.images,
            self.progress,
            self.folder,
            device,
        )

    @property
    def rank(self) -> int:
        return 0 if self.team.ranks is None else self.team.ranks.rank

    @property
    def gaussians(self) -> Model:
        """The whole as it is saved and tested, on the device."""
        return self.outputs.whole()

    def fit(self) -> Path | None:
        """Train to the end.

        Returns:
            None; or, where the run was asked to stop, the folder of the blocks that were saved.

        Raises:
            SplatrimError: Something could not be written, or a block failed.
        """
        with self.team.told_once(), contextlib.ExitStack() as stack:
            self.team.check_settings(self.run.described)
            patience = 0.0 if self.team.ranks is None else SAME_SIGNAL
            stack.enter_context(stop_on_signal(self._request_stop, patience=patience))
            self.team.alone(partial(self._begin, stack))
            if self.start is None:
                self._make_first_states()
            self.progress.open(sum(self._begun))
            stack.callback(self.progress.close)
            self._introduce()
            first_round, first_wave = self.schedule.position(self._begun, self.waves)
            for rounds in range(first_round, self.schedule.n_rounds):
                waves = range(first_wave if rounds == first_round else 0, len(self.waves))
                for wave in waves:
                    if not self._train_wave(rounds, wave):
                        return self._stop(rounds)
                self._after_round(rounds + 1)
            self._conclude()
        return None

    def _plan_waves(self) -> list[list[int]]:
        return plan_round(self.partition.cells, self.run.blocks.waves)

    def _train_wave(self, rounds: int, wave: int) -> bool:
        """The turns of a wave; whether it came to its end."""
        shares = self.shares[wave]
        for block in shares[self.rank]:
            self._train_block(block, rounds)
            if self.stop_requested:
                break
        if any(self._tell(self.stop_requested)):
            self.stop_requested = True
            self.store.forget()
            return False
        self.store.commit(shares, self.team.ranks)
        for told in self._tell(self.latest):
            self.latest |= told
        done = self.schedule.until
        self._since_saved += sum(done(b, rounds + 1) - done(b, rounds) for b in self.waves[wave])
        if 0 < self.config.checkpoint_interval <= self._since_saved:
            self._checkpoint(self.schedule.iteration(rounds + 1))
        return True

    def _train_block(self, block: int, rounds: int) -> None:
        until = self.schedule.until(block, rounds + 1)
        state = self.store.states.get(block)
        if state is None or state.plain["step"] >= until:  # no Gaussian, or no step that is due
            return
        plan, watch, progress = self.plans[block], Stopwatch(), self.progress
        on_device = self.prefetcher.take(state)
        live = LiveBlock(plan, on_device, self.images, self.device, self.shared)
        del on_device
        self._settle_device()
        progress.swap_seconds += watch.lap()
        self._surround(live, block, until)
        self._settle_device()
        progress.surroundings_seconds += watch.lap()
        progress.begin(rounds, block, len(live.gaussians))
        following = next_in_turn(self._turns, block)

        def on_step(n_images: int) -> bool:
            if following in self.store.states:
                self.prefetcher.begin(self.store.states[following])
            return self._on_step(n_images)

        if live.run(until, on_step):
            self._settle_device()
            watch.lap()
            self.store.put(block, live.state())
            progress.swap_seconds += watch.lap()
            self.latest[block] = latest_of(live.tracker.history)
        live.close()

    def _surround(self, live: LiveBlock, block: int, until: int) -> None:
        """Give a block what it sees of the others."""
        if self.run.blocks.surroundings == "none" or len(self.store) == 1:
            return
        plan = self.plans[block]
        cameras = plan.scene.train
        boxes = reached_boxes(live.gaussians, cameras)
        live.gaussians.frozen = self._frozen(plan, boxes, until)
        others = [other for other in range(len(self.store)) if other != block]
        n, kept = sum(map(self.store.n_gaussians, others)), sum(map(self.store.kept, others))
        live.stepper.elsewhere = n, torch.tensor(kept, device=self.device)

    def _frozen(self, plan: BlockPlan, boxes: Tensor, until: int) -> Frozen | None:
        config = plan.config
        every = config.sh_degree_interval
        grown = sum(k > config.sh_degree_from_iter for k in range(every, until + 1, every))
        return find_surroundings(
            self.store.others(plan.block),
            plan.scene.train,
            boxes,
            self.device,
            sh_degree=min(grown, config.sh_degree),
        )

    def _on_step(self, n_images: int) -> bool:
        self.progress.step(n_images)
        return not self.stop_requested

    def _after_round(self, rounds: int) -> None:
        """Log, evaluate where it is due, and write the history."""
        now, before = self.schedule.iteration(rounds), self.schedule.iteration(rounds - 1)
        self.progress.row(now, self.latest, self.outputs.n_gaussians)
        is_last = rounds == self.schedule.n_rounds
        if is_last or any(before < k <= now for k in self.config.test_iterations):
            self.team.alone(lambda: self.outputs.evaluate(now))
        if any(before < k <= now for k in self.config.save_iterations) and not is_last:
            self.team.alone(lambda: self.outputs.save(now))
        self.write_history(last=is_last)

    def _conclude(self) -> None:
        self._checkpoint(self.config.iterations)
        self.team.alone(lambda: self.outputs.save(self.config.iterations))
        self.write_history()

    def write_history(self, *, last: bool = True) -> None:
        """Write history.json as it stands."""
        mine = {b: self.outputs.about(b, self.rank) for b in self.store.states}
        blocks: dict[int, Any] = {}
        for told in self._tell(mine):
            blocks |= told
        self.team.alone(lambda: self.outputs.write_history(blocks, last=last))

    def _begin(self, stack: contextlib.ExitStack) -> None:
        """Take the output folder, and write what is known before the first step."""
        out = self.config.model_path
        stack.enter_context(self.folder.held())
        stack.enter_context(self.tracker)
        write_run_files(out, self.scene, {**self.run.described, "run": self.folder.run})
        save_partition(out, self.partition)
        save_plan(out, self.scene, self.partition)
        self.tracker.open(out, 1)

    def _introduce(self) -> None:
        schedule, waves = self.schedule, len(self.waves)
        kappa = sum(schedule.n_cameras) / schedule.n_train
        self.progress.say(
            f"{self.run.method}: {len(self.store)} blocks of {len(self.scene.train)} training views"
            f" ({kappa:.2f} blocks per view), {schedule.n_rounds} rounds of {waves} waves,"
            f" {schedule.total} steps in all, on {self.team.describe(self.device)}"
        )

    def _make_first_states(self) -> None:
        every = range(len(self.store))
        states = first_states(self.run, self.scene, self.partition, list(every), self.device)
        for block, bare in states.items():
            # with what strategies add: others see masks before a block's first turn
            live = LiveBlock(self.plans[block], bare, self.images, self.device, self.shared)
            state = live.state()
            live.close()
            self._place(block, state)
        self.store.commit([], None)

    def _place(self, block: int, state: dict[str, Any]) -> None:
        """Keep a block's first state, or of one of another rank what others see."""
        if self.owners[block] == self.rank:
            self.store.put(block, state)
        else:
            self.store.seen[block] = {k: x.cpu() for k, x in public_part(state).items()}

    def _load(self, folder: Path) -> tuple[Any, dict[str, Any]]:
        """Take over the blocks of a folder; its manifest, and what names its run."""
        manifest, states = load_states(folder, self.partition)
        for block, state in states.items():
            if self.owners[block] == self.rank:
                self.store.put(block, state)
            else:
                self.store.seen[block] = public_part(state)
            self._begun[block] = state["step"]
            self.latest[block] = latest_of((state.get("tracker") or {}).get("history") or {})
        self.store.commit([], None)
        if not states:
            raise SplatrimError(f"{folder}: no block holds a Gaussian")
        run = next(iter(states.values())).get("run")
        return manifest, {"run": run, "step": manifest.iteration}

    def _checkpoint(self, iteration: int) -> Path:
        self._since_saved = 0
        return self.saved.save(self.store, self.owners, iteration, self.folder.run, self.team.ranks)

    def _stop(self, rounds: int) -> Path:
        path = self._checkpoint(self.schedule.iteration(rounds))
        self.write_history()
        self.progress.say(f"stopped in round {rounds + 1}: saved the blocks in {path}")
        return path

    def _request_stop(self) -> None:
        self.stop_requested = True

    def _tell(self, value: Any) -> list[Any]:
        return [value] if self.team.ranks is None else self.team.ranks.tell(value)

    def _settle_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
