"""Looking on while a model trains (`--viewer`), or at a finished one (`gs.viewer --live`).

An observer draws pictures between iterations, captured ones too (studio.py). `pace.py` keeps what
they cost in bounds; an iteration for which no picture is due costs a look at the clock.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import resolve_device
from ..data.loader import ImageLoader
from ..model.gaussians import Gaussians
from ..training.captured_steps import CudaRecorder
from ..training.observer import Observer, Run
from .pace import Pace
from .picture import Subject
from .run_model import in_block_colors, load_shown
from .studio import Costs, Studio
from .window import Window

GLANCE = 0.005  # seconds between looks at the panel
TELL_EVERY = 0.5  # seconds
NAP = 0.05  # seconds between looks while nothing is trained
SAMPLED = 20_000  # Gaussians that say how far away things are

logger = logging.getLogger("splatrim")


class LiveViewer(Observer):
    """Shows a training in the browser.

    Args:
        window: Where it is shown.
    """

    def __init__(self, window: Window) -> None:
        self.window, self.pace = window, Pace()
        self._studio: Studio | None = None
        self._next_glance = self._next_tell = 0.0
        self._told = (0, 0.0)  # iteration and time of the last line
        self._began = 0.0

    def on_step(self, run: Run, step: int) -> None:
        now = time.perf_counter()
        if now < self._next_glance:
            return
        self._next_glance = now + GLANCE
        if self._studio is None:
            self._studio, self._told, self._began = self._open(run), (step, now), now
        self._studio.subject.step = step
        if now >= self._next_tell:
            self._tell(run, step, now)
        if self.window.paused:
            self._pause(run, self._studio)
        self._serve(self._studio, trains=True)

    @property
    def costs(self) -> Costs:
        """Where the time of pictures has gone."""
        return Costs() if self._studio is None else self._studio.costs

    def close(self) -> None:
        """End the server."""
        if self._studio is not None:
            self._studio.close()
        self.window.close()

    def _open(self, run: Run) -> Studio:
        cameras = [*run.scene.train, *run.scene.test]
        white = float(run.white_background)
        on_gpu = run.gaussians.device.type == "cuda" and run.config.cuda_graphs
        # the default stream cannot be captured
        captures = on_gpu and torch.cuda.current_stream() != torch.cuda.default_stream()
        subject = Subject(
            lambda: run.gaussians,
            cameras,
            run.images,
            (white, white, white),
            strategies=run.strategies,
            exported=run.exported,
            record=CudaRecorder() if captures else None,
        )
        self.window.offer(cameras, _sample(run.scene.points))
        return Studio(subject, self.pace)

    def _pause(self, run: Run, studio: Studio) -> None:
        """Draw for who moves, and train no further, until told to go on or to stop."""
        began = time.perf_counter()
        self.window.tell(f"**Paused** at iteration {studio.subject.step:,}")
        while self.window.paused and not run.stop_requested:
            self._serve(studio, trains=False)
            self.window.changed.wait(NAP)
            self.window.changed.clear()
        pause = time.perf_counter() - began
        run.tracker.leave_out(pause)
        self._began += pause
        self._told = self._told[0], self._told[1] + pause

    def _serve(self, studio: Studio, *, trains: bool) -> None:
        serve(self.window, studio, trains=trains)

    def _tell(self, run: Run, step: int, now: float) -> None:
        self._next_tell = now + TELL_EVERY
        before, at = self._told
        self._told = step, now
        rate = (step - before) / (now - at) if now > at else 0.0
        share = 100 * self.pace.total / max(now - self._began, 1e-9)
        self.window.tell(
            f"Iteration **{step:,}** of {run.config.iterations:,} · {len(run.gaussians):,}"
            f" Gaussians · {rate:.3g} iterations/s · pictures take {share:.1f} % of the time"
        )


def serve(window: Window, studio: Studio, *, trains: bool) -> None:
    """Draw the next picture if one is due; where nothing trains, for who waits alone."""
    if studio.is_busy:
        return
    pace = studio.pace
    pace.rate = window.rate
    now = time.perf_counter()
    for guest in window.visitors():
        moving = guest.moving
        if trains and pace.due(now, moved=moving or guest.waits):
            studio.draw(guest, window.look, window.chosen)
        elif not trains and guest.waits and moving:
            studio.draw(guest, window.look, window.chosen)
        elif not trains and (guest.waits or pace.sharpest() > guest.drawn_at):
            studio.draw(guest, window.look, window.chosen, scale=pace.sharpest())
        else:
            continue
        pace.drawn(now)
        return


@contextlib.contextmanager
def watching(wanted: bool, host: str, port: int) -> Iterator[tuple[Observer, ...]]:
    """The observers that show a training, none where that is not wanted.

    Raises:
        SplatrimError: viser is not installed, or the port cannot be had.
    """
    if not wanted:
        yield ()
        return
    viewer = LiveViewer(Window(host, port, trains=True))
    logger.info(f"viewer: {viewer.window.address}")
    try:
        yield (viewer,)
    finally:
        viewer.close()


def show_run(
    model_path: Path,
    *,
    iteration: int = -1,
    source_path: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    device: str = "auto",
    by_block: bool = False,
    stopped: threading.Event | None = None,
) -> None:
    """Show a finished model in the browser until Ctrl-C, or until `stopped` is set.

    Raises:
        SplatrimError: no such run, model or scene, or as Window.
    """
    where = resolve_device(device)
    shown = load_shown(model_path, iteration, source_path)
    if by_block:
        shown = in_block_colors(shown)
    tensors = {name: x.to(where) for name, x in shown.tensors.items()}
    model = Gaussians.from_tensors(tensors, antialiased=shown.antialiased)
    white = shown.background[0] > 0.5
    images = ImageLoader(shown.cameras, white_background=white, device=where)
    window = Window(host, port, trains=False)
    studio = Studio(Subject(lambda: model, shown.cameras, images, shown.background), Pace())
    window.offer(shown.cameras, _sample(shown.tensors["means"]))
    window.tell(f"{shown.title} · {len(model):,} Gaussians")
    logger.info(f"viewer: {window.address} (Ctrl-C ends it)")
    try:
        while stopped is None or not stopped.is_set():
            serve(window, studio, trains=False)
            window.changed.wait(NAP)
            window.changed.clear()
    except KeyboardInterrupt:
        logger.info("the viewer has ended")
    finally:
        studio.close()
        window.close()
        images.close()


def _sample(points: Tensor) -> NDArray[np.float64]:
    step = max(len(points) // SAMPLED, 1)
    return points[::step].detach().double().cpu().numpy()
