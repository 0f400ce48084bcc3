"""Training of neural Gaussians in blocks that share one decoder.

Fan et al., "Momentum-GS" (ICCV 2025). As gs.blocks.trainer, but that the blocks of a wave, or
`lockstep` of them, are on the device together and make the decoder's steps by their mean gradient
(gs.blocks.lockstep). Around a block its neighbours' anchors as they were when its turn began are
decoded by the decoder of the moment. In the last rounds the decoder stays as it is for all blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SplatrimError
from ..neural.anchors import OFF, Anchors, first_anchors
from ..neural.decoder import fresh_decoder
from ..neural.surrounded import joined_anchors, seen_from
from .decoder_file import load_decoder
from .live import first_state
from .lockstep import Lockstep, Turn, groups_of
from .manifest import FOLDER, decoder_file
from .neural_block import NeuralBlock
from .neural_outputs import NeuralOutputs, drawn_of
from .progress import Stopwatch, latest_of
from .shared_decoder import SharedDecoder
from .store import IDS
from .trainer import BlockTrainer
from .waves import plan_round
from .weights import AFTER, BlockWeights

PUBLISHED = 60_000  # iterations of a block; weights begin after a share of them


class NeuralBlockTrainer(BlockTrainer):
    """Trains a scene in blocks of anchors. Arguments are those of `BlockTrainer`."""

    outputs_type = NeuralOutputs

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loaded: dict[str, Any] | None = None
        super().__init__(*args, **options)
        neural, momentum = self.run.neural, self.run.momentum
        assert neural is not None
        self.neural, self.momentum = neural, momentum
        names = [camera.image_name for camera in self.scene.train]
        start = fresh_decoder(neural, len(names), self.run.train.seed)
        start["grid"] = torch.ones(1)
        nothing = {
            "anchors": torch.empty(0, 3),
            "features": torch.empty(0, neural.feature_dim),
            "offsets": torch.empty(0, neural.offsets, 3),
            "scales": torch.empty(0, 6),
        }
        on_device = {name: x.to(self.device) for name, x in nothing.items()}
        self.decoder = SharedDecoder(
            Anchors(on_device, neural, start, names),
            momentum,
            self.run.optim,
            extent=self.scene.extent,
            n_images=self.config.batch,
            n_slots=len(self.waves),
            ranks=self.team.ranks,
        )
        totals = {b: self.schedule.steps(b) for b in range(len(self.store))}
        self._every = {b: max(round(n * AFTER / PUBLISHED), 1) for b, n in totals.items()}
        self.weights = BlockWeights(momentum.sigma, self._every)
        self._resident: dict[int, NeuralBlock] = {}
        assert isinstance(self.outputs, NeuralOutputs)
        self.outputs.like = self.decoder.model
        if self._loaded is not None:
            self._take_over(self._loaded)

    def _plan_waves(self) -> list[list[int]]:
        waves = plan_round(self.partition.cells, self.run.blocks.waves)
        return groups_of(waves, self.run.momentum.lockstep)

    def _train_wave(self, rounds: int, wave: int) -> bool:
        """The turn of a group; whether it came to its end."""
        before = _copied({**self.decoder.state_dict(), "weights": self.weights.state_dict()})
        self.decoder.freeze(self._is_frozen(rounds))
        turns = [
            Turn(b, self.owners[b], until(b, rounds), until(b, rounds + 1), self.schedule.steps(b))
            for until in [self.schedule.until]
            for b in self.waves[wave]
            if self.store.n_gaussians(b) and until(b, rounds + 1) > until(b, rounds)
        ]
        live = {turn.block: self._live(turn, rounds) for turn in turns if turn.rank == self.rank}
        self._measure(turns, live, rounds)
        steps = Lockstep(
            self.decoder,
            self.weights,
            batch=self.config.batch,
            iterations=self.config.iterations,
            slot=wave,
        )
        with self.shared.stream.current():
            came_to_end = steps.run(turns, live, self._goes_on, self.progress.step)
        self.decoder.end_wave()
        if not came_to_end or not self._goes_on():
            self._take_over(before)
            self.store.forget()
            return False
        self._settle_device()
        watch = Stopwatch()
        for block, trained in live.items():
            self.store.put(block, trained.state())
            self.latest[block] = latest_of(trained.tracker.history)
        self.progress.swap_seconds += watch.lap()
        self.store.commit(self.shares[wave], self.team.ranks)
        for told in self._tell(self.latest):
            self.latest |= told
        self._since_saved += sum(turn.until - turn.first for turn in turns)
        if 0 < self.config.checkpoint_interval <= self._since_saved:
            self._checkpoint(self.schedule.iteration(rounds + 1))
        return True

    def _live(self, turn: Turn, rounds: int) -> NeuralBlock:
        """A block for its turn, on the device and among what its cameras see of the others."""
        watch, block = Stopwatch(), turn.block
        live = self._resident.get(block)
        if live is None:
            state = self.store.states[block].to_device(self.device)
            parts = self.plans[block], state, self.neural, self.decoder, self.images
            live = NeuralBlock(*parts, self.device, self.shared)
        if self.momentum.swap == "none":
            self._resident[block] = live
        self._settle_device()
        self.progress.swap_seconds += watch.lap()
        around = None
        if self.run.blocks.surroundings == "live":
            cameras = self.plans[block].scene.train
            others = [drawn_of(seen) for seen in self.store.others(block) if len(seen[IDS])]
            parts = [seen_from(cameras, part, self.device) for part in others]
            around = joined_anchors(self.decoder.model, parts)
        live.begin_turn(around)
        self._settle_device()
        self.progress.surroundings_seconds += watch.lap()
        self.progress.begin(rounds, block, len(live.gaussians))
        return live

    def _measure(self, turns: list[Turn], live: Mapping[int, NeuralBlock], rounds: int) -> None:
        """Measure the blocks that are due, and tell all ranks."""
        if self.momentum.sigma == 0 or self.decoder.is_frozen:
            return
        found: dict[int, tuple[float, float]] = {}
        due = [turn.block for turn in turns if self._is_due(turn, rounds)]
        for block in due:
            if block in live:
                found[block] = live[block].quality()
        for told in self._tell(found) if due else []:
            for block, (psnr, ssim) in sorted(told.items()):
                self.weights.measured(block, psnr, ssim)

    def _is_due(self, turn: Turn, rounds: int) -> bool:
        every = self._every[turn.block]
        before = self.schedule.until(turn.block, rounds - 1) if rounds else 0
        return turn.first // every > before // every

    def _is_frozen(self, rounds: int) -> bool:
        """Whether a round is in the last share of the run, in which the decoder stays."""
        n = self.schedule.n_rounds
        first = int(n * (1.0 - self.momentum.freeze_decoder) + 1e-9)
        return rounds >= first

    def _goes_on(self) -> bool:
        """Whether no rank has been asked to stop; all ranks ask together."""
        self.stop_requested = any(self._tell(self.stop_requested))
        return not self.stop_requested

    def _make_first_states(self) -> None:
        seed, device = self.run.train.seed, self.device
        whole = first_anchors(self.neural, self.scene, None, seed=seed, device=device)
        with torch.no_grad():
            self.decoder.parameters["grid"].fill_(whole.grid)
        owners = self.partition.owner(whole.params["anchors"].detach().cpu())
        for block in range(len(self.store)):
            rows = torch.arange(len(whole))
            if self.run.blocks.block_init == "points":
                rows = (owners == block).nonzero()[:, 0]
            if not len(rows):
                continue
            rows = rows.to(device)
            tensors = {name: x[rows] for name, x in whole.to_tensors().items()}
            part = Anchors(tensors, self.neural, {}, ())
            state = first_state(part, rows.int(), len(whole), self.run.method, self.scene.extent)
            state["rows"] = {**state["rows"], OFF: part.rows[OFF]}
            self._place(block, state)
        self.store.commit([], None)

    def _load(self, folder: Path) -> tuple[Any, dict[str, Any]]:
        manifest, state = super()._load(folder)
        if not manifest.decoder:
            raise SplatrimError(f"{folder / FOLDER} holds no blocks of neural Gaussians")
        self._loaded = load_decoder(folder / FOLDER / decoder_file(manifest.decoder))
        return manifest, state

    def _take_over(self, state: dict[str, Any]) -> None:
        self.decoder.load_state_dict(state)
        self.weights.load_state_dict(state["weights"])

    def _checkpoint(self, iteration: int) -> Path:
        self._since_saved = 0
        self.decoder.check_replicas()
        state = {**self.decoder.state_dict(), "weights": self.weights.state_dict()}
        saved = self.store, self.owners, iteration, self.folder.run, self.team.ranks
        return self.saved.save(*saved, decoder=_copied(state))


def _copied(value: Any) -> Any:
    """Nested containers with copies of their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
