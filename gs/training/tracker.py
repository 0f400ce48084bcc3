"""What a run tells: progress bar, TensorBoard, train.log, and history.json for the report.

Losses are summed on their device. At every update of the bar their means start on their way to the
host, where they are read at the next update: a GPU is never waited for.
"""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kernels import add_losses

from ..errors import SplatrimError
from ..files import write_json
from ..logs import LogFile
from ..schedule import multiple_in
from .event_log import EventLog
from .finite import LossNotFinite
from .run_state import Part

LOG_INTERVAL = 10  # iterations between updates; what is logged is the mean over them
HISTORY_COLUMNS = ("step", "loss", "psnr", "n_gaussians", "n_used", "seconds")

logger = logging.getLogger("splatrim")


class Tracker:
    """Records one run. `open` starts writing; until then nothing is touched on the disk.

    Args:
        iterations: The last iteration.
        quiet: Whether to show no bar.
        n_images: Images of a step.
        begin: Iteration from which the bar counts: that of a finished model that is post-trained.
    """

    def __init__(self, iterations: int, *, quiet: bool, n_images: int = 1, begin: int = 0) -> None:
        self.iterations, self.begin = iterations, begin
        self.quiet = quiet
        self.n_images = n_images
        self.history: dict[str, list[Any]] = {name: [] for name in (*HISTORY_COLUMNS, "test")}
        self.seconds_before = 0.0  # of the runs that this one resumes
        self._sums: Tensor | None = None  # [4] loss, L1, mean squared error, number of images
        self._sent: tuple[Any, ...] | None = None  # an update on its way
        self._started = time.perf_counter()
        self._last_log = self._started
        self._bar: tqdm | None = None
        self._events: EventLog | None = None
        self._log_file: logging.Handler | None = None

    def open(self, folder: Path, first_step: int) -> None:
        """Start the log, the TensorBoard events and the bar, at iteration `first_step`."""
        try:
            self._log_file = LogFile(folder / "train.log")
            logger.addHandler(self._log_file)
        except OSError as error:
            logger.warning(f"there is no {folder / 'train.log'}: {error.strerror or error}")
        self._events = EventLog(folder, first_step)
        logger.setLevel(logging.INFO)  # train.log has everything; the terminal has its own level
        self._bar = tqdm(
            total=self.iterations - self.begin,
            initial=first_step - 1 - self.begin,
            disable=self.quiet,
            unit="it",
            dynamic_ncols=True,
            smoothing=0.1,
            desc="train",
        )
        self._started = self._last_log = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training time so far, earlier parts of a resumed run included."""
        return self.seconds_before + time.perf_counter() - self._started

    def leave_out(self, seconds: float) -> None:
        """Not count so much time, which has just passed without training."""
        self._started += seconds
        self._last_log += seconds

    def record(
        self, loss: Tensor, others: Tensor, skip: Tensor | None = None, n_images: int = 1
    ) -> None:
        """Add a step's loss, L1 and mean squared error. A CUDA graph can capture it.

        Args:
            loss: Sum over its images, float32, on the training device. [1]
            others: Sums of the two others. [2]
            skip: The step does not count where this is not 0. [1] int32
            n_images: How many images it had.
        """
        if self._sums is None:
            self._sums = loss.new_zeros(4)
        add_losses(self._sums, loss, others, n_images, skip=skip)

    def is_due(self, step: int) -> bool:
        due = multiple_in(step, LOG_INTERVAL, self.n_images) is not None
        return due or step == self.iterations

    def log(self, step: int, n_gaussians: int, scalars: Mapping[str, float | Tensor]) -> None:
        """Send the means since the last call to the host, and show those of the last call.

        Raises:
            LossNotFinite: The loss is not finite.
        """
        self.flush()
        sums = self._sums
        assert sums is not None
        names = list(scalars)
        extra = [torch.as_tensor(scalars[n], dtype=sums.dtype).to(sums.device) for n in names]
        values = torch.cat([sums, torch.stack(extra)] if extra else [sums])
        self._sums = sums.zero_()  # in place: captured graphs add to it
        arrived = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        else:
            values = values.clone()
        self._sent = step, n_gaussians, names, values, arrived, time.perf_counter(), self.seconds
        if arrived is None or step == self.iterations:
            self.flush()

    def flush(self) -> None:
        """Show and keep the means that the last `log` sent."""
        if self._sent is None:
            return
        (step, n_gaussians, names, values, arrived, now, seconds), self._sent = self._sent, None
        if arrived is not None:
            arrived.synchronize()
        loss, l1, mse, count, *rest = values.tolist()
        count = max(count, 1.0)  # a rehearsal adds nothing up
        loss, l1, mse = loss / count, l1 / count, mse / count
        shown = dict(zip(names, rest, strict=True))
        psnr = -10.0 * math.log10(max(mse, 1e-12)) if math.isfinite(mse) else math.nan
        interval, self._last_log = (now - self._last_log) / count, now

        used = int(round(shown.get("num_used_gs", n_gaussians)))
        row = (step, loss, psnr, n_gaussians, used, round(seconds, 3))
        for name, value in zip(HISTORY_COLUMNS, row, strict=True):
            self.history[name].append(value)
        self.scalar("train_loss_patches/l1_loss", l1, step)
        self.scalar("train_loss_patches/total_loss", loss, step)
        self.scalar("train_psnr", psnr, step)
        self.scalar("iter_time", 1000.0 * interval, step)
        self.scalar("total_points", n_gaussians, step)
        for name, value in shown.items():
            self.scalar(name, value, step)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self.scalar("GPU_mem", torch.cuda.memory_reserved() / 2**30, step)
        if self._bar is not None:
            self._bar.set_postfix(
                loss=f"{loss:.4f}", psnr=f"{psnr:.2f}", n=str(n_gaussians), refresh=False
            )
            self._bar.update(step - self.begin - self._bar.n)
        if not math.isfinite(loss):
            raise LossNotFinite(f"the loss is not finite at iteration {step}")

    def test(self, step: int, split: str, psnr: float, l1: float) -> None:
        """Keep one evaluation of the `test` or `train` views."""
        if split == "test":
            self.history["test"].append({"step": step, "psnr": psnr, "l1": l1})
        self.scalar(f"{split}/loss_viewpoint - l1_loss", l1, step)
        self.scalar(f"{split}/loss_viewpoint - psnr", psnr, step)
        self.info(f"iteration {step}: {split} views PSNR {psnr:.2f} dB, L1 {l1:.4f}")

    def unseen(self, step: int, seen: float, moved: Mapping[str, float]) -> None:
        """Keep which share of the Gaussians a step saw, and by parameter moved without seeing."""
        row = {"step": step, "seen": seen, "moved": dict(moved)}
        self.history.setdefault("unseen", []).append(row)
        self.scalar("unseen/seen", seen, step)
        for name, share in moved.items():
            self.scalar(f"unseen/moved_{name}", share, step)

    def image(self, name: str, image: Tensor, step: int) -> None:  # [H, W, 3] uint8
        if self._events is not None:
            self._events.image(name, image, step)

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        if self._events is not None:
            self._events.histogram(name, values, step)

    def scalar(self, name: str, value: float, step: int) -> None:
        if self._events is not None:
            self._events.scalar(name, value, step)

    def info(self, text: str) -> None:
        """One line for train.log and the terminal, above the bar."""
        if self._bar is not None:
            self._bar.clear()
        logger.info(text)
        if self._bar is not None:
            self._bar.refresh()

    def write_history(self, path: Path, *, last: bool = True, **more: Any) -> None:
        """Write history.json, with `more` as further entries.

        Raises:
            SplatrimError: It cannot be written, and there is no later time to do so (`last`).
        """
        self.flush()
        try:
            write_json(path, {**self.history, **more})
        except SplatrimError as error:
            if last:
                raise
            logger.warning(str(error))

    def state_dict(self) -> Part:
        self.flush()
        return {
            "history": {name: list(values) for name, values in self.history.items()},
            "sums": None if self._sums is None else self._sums.tolist(),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Part, device: torch.device) -> None:
        self.history = {name: list(values) for name, values in state["history"].items()}
        sums = state.get("sums")
        self._sums = None if sums is None else torch.tensor(sums, device=device)
        self.seconds_before = float(state["seconds"])

    def close(self) -> None:
        """Finish the bar and the files. Safe to call twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._log_file is not None:
            logger.removeHandler(self._log_file)
            self._log_file.close()
            self._log_file = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
