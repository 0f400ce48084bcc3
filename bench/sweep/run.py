"""One run of a sweep: train in a process of its own, render, measure, write its result.

A run's folder is OUT/SCENE/METHOD/seedK, and in it, beside what training writes:

    sweep_run.json      the settings given to train.py, and whether training has ended
    sweep_train.log     what training said on the terminal
    sweep_result.json   the measured figures, written last: a run that has it is finished

Quality is that of the saved .ply, rendered to 8 bits by gs.render and measured by gs.metrics; its
figures are therefore the ones of those commands. Frames per second are gs.render's too: the median
over test views, synchronised, warm.
"""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.sweep.energy import joules
from bench.sweep.plots import curve_of
from gs.config import resolve_device
from gs.errors import SplatrimError
from gs.evaluation.metrics import compute_metrics
from gs.evaluation.render import render_views
from gs.files import read_json, write_json
from gs.run_record import find_model, saved_checkpoints

ROOT = Path(__file__).resolve().parents[2]
BASELINE = "3dgs"
RESULT, RECORD, LOG = "sweep_result.json", "sweep_run.json", "sweep_train.log"


@dataclass(frozen=True)
class Method:
    """What to train with: "name", "name:preset", or either after "post:"."""

    label: str
    name: str
    preset: str | None = None
    is_post: bool = False
    """Starts from the model that 3dgs trained on the same scene with the same seed."""
    flags: tuple[str, ...] = ()
    """Further words for train.py."""
    module: str = "train"
    """What to run in its place."""


@dataclass(frozen=True)
class Job:
    """One training."""

    scene: Path
    method: Method
    seed: int
    folder: Path
    args: tuple[str, ...]
    """Of train.py, without paths and device: what makes two runs the same."""
    start_from: Path | None = None
    """Folder of the run whose model this one starts from."""

    @property
    def title(self) -> str:
        return f"{self.scene.name} {self.method.label} seed {self.seed}"


class Runner:
    """Runs jobs, from several threads if wanted, and can stop them all.

    Args:
        devices: What trains and measures: auto, cpu, cuda, cuda:1, ...
        n_parallel: How many run at once on each; more than one makes times incomparable.
        keep_images: Keep the rendered test views.
        lpips_weights: File of VGG-16's weights; None is that of torch's cache.
    """

    def __init__(
        self,
        *,
        devices: Sequence[str],
        n_parallel: int,
        keep_images: bool,
        lpips_weights: Path | None = None,
    ) -> None:
        self.n_parallel, self.keep_images = n_parallel, keep_images
        self.lpips_weights = lpips_weights
        self._free: queue.SimpleQueue[str] = queue.SimpleQueue()  # devices, once per run they take
        for _ in range(n_parallel):
            for device in devices:
                self._free.put(device)
        # one model is measured at a time, so that evaluations do not slow each other
        self._measuring = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(self, job: Job) -> dict[str, Any]:
        """Train and measure, as far as that is not done yet.

        Returns:
            The figures; or scene, method, seed and "error", one line.
        """
        done = load_result(job)
        if done is not None:
            return done
        device = self._free.get()
        try:
            self._train(job, device)
            if self.stopped:
                raise SplatrimError("interrupted")
            with self._measuring, _current(device):
                result = self._measure(job, device)
            write_json(job.folder / RESULT, result)
        # whatever goes wrong in one run (out of memory, a full disk) is told, and the next goes on
        except Exception as error:
            return _about(job) | {"error": _one_line(error)}
        finally:
            self._free.put(device)
        return result

    def stop(self) -> None:
        """Ask every training to save a checkpoint and end, and start no more."""
        with self._lock:
            self.stopped = True
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)

    def _train(self, job: Job, device: str) -> None:
        if job.start_from is not None and not (job.start_from / RESULT).is_file():
            raise SplatrimError(f"the {BASELINE} run that it starts from has not finished")
        record_path, where = job.folder / RECORD, resolve_device(device)
        record = read_json(record_path) if record_path.is_file() else {}
        same = record.get("args") == list(job.args)
        if same and record.get("trained"):
            return
        saved = list(saved_checkpoints(job.folder).values()) if same else []
        checkpoint = saved[-1] if saved else None
        if checkpoint is None and job.folder.exists():
            if not record_path.is_file():
                raise SplatrimError(f"{job.folder} is in the way: no sweep has made it")
            shutil.rmtree(job.folder)  # what is left of a run that starts again
        write_json(record_path, {"args": list(job.args), "trained": False})
        command = [sys.executable, "-m", job.method.module, "-s", str(job.scene.absolute())]
        command += ["-m", str(job.folder.absolute()), "--eval", "--quiet", "--device", device]
        if checkpoint is not None:
            command += ["--start_checkpoint", str(checkpoint.absolute())]
        elif job.start_from is not None:
            command += ["--start_ply", str(find_model(job.start_from)[1].absolute())]
        command += job.args
        with open(job.folder / LOG, "ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            begin, before = log.tell(), joules(where)
            code = self._wait(command, log)
            after = joules(where)
        if code:
            raise SplatrimError(error_line(job.folder / LOG, begin, code))
        # of a training of its own, begun and ended here
        alone = checkpoint is None and self.n_parallel == 1
        energy = after - before if alone and before is not None and after is not None else None
        record = {"args": list(job.args), "trained": True, "energy_joules": energy}
        write_json(record_path, record)

    def _wait(self, command: list[str], log: Any) -> int:
        with self._lock:
            if self.stopped:
                raise SplatrimError("interrupted")
            # a session of its own: Ctrl-C reaches it once, through `stop`
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True
            )
            self._processes.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._processes.discard(process)

    def _measure(self, job: Job, device: str) -> dict[str, Any]:
        iteration, ply = find_model(job.folder)
        stats = render_views(job.folder, skip_train=True, quiet=True, device=device)
        weights = self.lpips_weights
        measured = compute_metrics([job.folder], device=device, lpips_weights=weights)
        scores = measured[str(job.folder)]
        history = read_json(job.folder / "history.json")
        timing = history.get("timing", {})
        if not self.keep_images:
            shutil.rmtree(job.folder / "test")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the next training may need it
        figures = {name.lower(): value for name, value in scores[f"ours_{iteration}"].items()}
        others = {
            "n_gaussians": stats["n_gaussians"],
            "ply_bytes": ply.stat().st_size,
            "train_seconds": timing.get("train_seconds"),
            "peak_memory_mb": timing.get("peak_memory_mb"),
            "peak_reserved_mb": timing.get("peak_reserved_mb"),
            "energy_joules": read_json(job.folder / RECORD).get("energy_joules"),
            "curve": curve_of(history),
            "fps": stats.get("fps"),
            "width": stats.get("width"),
            "height": stats.get("height"),
            "n_test_views": len(stats["test"]["views"]),
            "device": stats["device"],
            "torch": torch.__version__,
            "times_comparable": self.n_parallel == 1,
            "args": list(job.args),
        }
        return _about(job) | figures | others


def _current(device: str) -> contextlib.AbstractContextManager[Any]:
    """Makes a GPU this thread's current one."""
    on_gpu = resolve_device(device).type == "cuda"
    return torch.cuda.device(resolve_device(device)) if on_gpu else contextlib.nullcontext()


def load_result(job: Job) -> dict[str, Any] | None:
    """A finished run's figures; None where it is not finished.

    Raises:
        SplatrimError: the file is broken, or tells of a run with other arguments.
    """
    path = job.folder / RESULT
    if not path.is_file():
        return None
    result = read_json(path)
    if not isinstance(result, dict) or "psnr" not in result:
        raise SplatrimError(f"{path} does not hold a run's figures: remove it to run it again")
    if result.get("args") != list(job.args):
        raise SplatrimError(
            f"{job.folder} was trained with other arguments: give another --out, or remove it"
        )
    return result


def error_line(log: Path, begin: int, code: int) -> str:
    """The line that says why a training failed: its last one, in what it wrote after `begin`."""
    with open(log, "rb") as file:
        file.seek(begin, os.SEEK_SET)
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    told = [line for line in lines if line.startswith("error: ")] or [x for x in lines if x]
    if code < 0:
        return f"ended by signal {-code}" + (f": {told[-1]}" if told else "")
    return told[-1].removeprefix("error: ") if told else f"exit status {code}"


def _about(job: Job) -> dict[str, Any]:
    return {"scene": job.scene.name, "method": job.method.label, "seed": job.seed}


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no message"
    return text if isinstance(error, SplatrimError) else f"{type(error).__name__}: {text}"
