"""What a run in blocks tells: a bar over all blocks, and history.json of the whole and of each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from ..training.tracker import HISTORY_COLUMNS, Tracker
from .schedule import Schedule


class BlocksProgress:
    """Progress of all blocks.

    Args:
        schedule: Of the run.
        quiet: Whether to show no bar.
    """

    def __init__(self, schedule: Schedule, *, quiet: bool) -> None:
        self.schedule, self.quiet = schedule, quiet
        self.tracker = Tracker(schedule.iterations, quiet=True)
        self.swap_seconds = 0.0
        self.surroundings_seconds = 0.0
        self._bar: tqdm | None = None
        self._shown = ""

    def open(self, done: int) -> None:
        """Show the bar; so many steps were taken before."""
        self._bar = tqdm(
            total=self.schedule.total,
            initial=done,
            disable=self.quiet,
            unit="it",
            dynamic_ncols=True,
            smoothing=0.1,
            desc="blocks",
        )

    def begin(self, rounds: int, block: int, n_gaussians: int) -> None:
        """A block's turn begins."""
        self._shown = f"round {rounds + 1} of {self.schedule.n_rounds}, block {block}"
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._shown}, n={n_gaussians}", refresh=False)

    def step(self, n_images: int) -> None:
        if self._bar is not None:
            self._bar.update(n_images)

    def say(self, text: str) -> None:
        """One line for the log and the terminal, above the bar."""
        if self._bar is not None:
            self._bar.clear()
        self.tracker.info(text)
        if self._bar is not None:
            self._bar.refresh()

    def row(self, iteration: int, latest: Mapping[int, Mapping[str, float]], n: int) -> None:
        """A row of the whole's history: means over blocks of what each logged last."""
        told = [entry for entry in latest.values() if entry]
        if not told:
            return
        mean = {name: sum(entry[name] for entry in told) / len(told) for name in ("loss", "psnr")}
        used = round(sum(entry["n_used"] for entry in told))
        seconds = round(self.tracker.seconds, 3)
        row = (iteration, mean["loss"], mean["psnr"], n, used, seconds)
        for name, value in zip(HISTORY_COLUMNS, row, strict=True):
            self.tracker.history[name].append(value)
        self.tracker.scalar("train_loss_patches/total_loss", mean["loss"], iteration)
        self.tracker.scalar("total_points", n, iteration)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Stopwatch:
    """Seconds between two looks."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return passed


def latest_of(history: Mapping[str, Any]) -> dict[str, float]:
    """What a block logged last; {} before that."""
    names = ("loss", "psnr", "n_used")
    return {name: float(history[name][-1]) for name in names} if history["loss"] else {}
