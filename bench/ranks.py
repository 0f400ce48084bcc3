"""Steps of a model on one rank or several, for bench.scaling_ranks, and what watches them."""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.scenes import Workload, garden
from bench.training import FROZEN, random_workload, raw_parameters, synchronize
from gs.config import TrainConfig
from gs.data.camera import Camera
from gs.data.scene import Scene
from gs.distributed.ownership import owner
from gs.distributed.ranks import Ranks
from gs.distributed.simulated import simulate
from gs.model.gaussians import Gaussians
from gs.model.renderer import render
from gs.model.view import views_of
from gs.training.optimizer import build_optimizer, learning_rates
from gs.training.sharded_step import ShardedStepper
from gs.training.step import Stepper
from gs.training.tracker import Tracker
from pruning import MaskGaussianConfig

SIZES = {"1080p": (1920, 1080), "4k": (3840, 2160), "tiny": (64, 48)}
GRID_WIDTH = 648  # of the images that the garden's focal lengths are of
PER_PLACE = 111_785  # Gaussians of one place of the grid
PHASES = ("project", "picture", "finish", "update")
SLEEP = 10_000_000  # cycles of the device, some 5 ms
WARM_UP, STEPS = 8, 5


class Case(NamedTuple):
    """What is trained."""

    workload: Workload
    cameras: list[Camera]
    device: torch.device
    graphs: bool


class Images:
    """Noise as ground truth, on the device."""

    has_masks = transparent = False

    def __init__(self, cameras: Sequence[Camera], device: torch.device) -> None:
        self.cameras, self.device, self.targets = list(cameras), device, self
        self._made: dict[int, Tensor] = {}

    def __getitem__(self, index: int) -> Tensor:
        if index not in self._made:
            camera = self.cameras[index]
            g = torch.Generator(self.device).manual_seed(index)
            shape = camera.height, camera.width, 3
            image = torch.randint(0, 256, shape, generator=g, device=self.device)
            self._made[index] = image.to(torch.uint8)
        return self._made[index]


class Watch:
    """Seconds by rank, step and phase, and the memory that a rank has taken at most in each.

    A replayed graph takes no memory: what counts are the steps before, and its capture.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds: list[dict[str, list[float]]] = [defaultdict(list) for _ in range(size)]
        self.held = [0] * size
        self.peaks: list[dict[str, int]] = [defaultdict(int) for _ in range(size)]
        self.is_on = False
        self._began: Any = None
        self._before = 0

    def begins(self, rank: int) -> None:
        if not self.on_gpu:
            self._began = time.perf_counter()
            return
        torch.cuda.synchronize()
        self._before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        if self.is_on:
            torch.cuda._sleep(SLEEP)
        self._began = torch.cuda.Event(enable_timing=True)
        self._began.record()

    def ends(self, rank: int, phase: str) -> None:
        if self._began is None:
            return
        if self.on_gpu:
            end = torch.cuda.Event(enable_timing=True)
            end.record()
            torch.cuda.synchronize()
            seconds = self._began.elapsed_time(end) / 1e3
            most = torch.cuda.max_memory_allocated() - self._before
            self.peaks[rank][phase] = max(self.peaks[rank][phase], self.held[rank] + most)
            self.held[rank] += torch.cuda.memory_allocated() - self._before
        else:
            seconds = time.perf_counter() - self._began
        self._began = None
        if self.is_on and phase in PHASES:
            self.seconds[rank][phase].append(seconds)

    def peak(self, rank: int) -> int:
        """Bytes that a rank has taken at most."""
        return max(self.peaks[rank].values(), default=0)

    def per_step(self, n_steps: int) -> list[dict[str, float]]:
        """Seconds of a step by rank and phase."""
        return [{p: sum(found[p]) / n_steps for p in PHASES} for found in self.seconds]


def make_case(
    millions: float, size: str, batch: int, device: torch.device, *, graphs: bool = True
) -> Case:
    """Gaussians, and `batch` cameras in a circle."""
    width, height = SIZES[size]
    if size == "tiny":
        w = random_workload(round(millions * 1e6), width, height)
    else:
        n = round(millions * 1e6)
        repeats = math.ceil(math.sqrt(n / PER_PLACE) - 0.05)
        focal = width / GRID_WIDTH
        w = garden(f"garden-{millions}M", repeats, width, height, focal, device)
        if len(w.means) > n:
            g = torch.Generator(device).manual_seed(1)
            keep = torch.randperm(len(w.means), generator=g, device=device)[:n].sort().values
            w = w._replace(
                means=w.means[keep],
                quats=w.quats[keep],
                scales=w.scales[keep],
                opacities=w.opacities[keep],
                sh=w.sh[keep],
            )
    cameras = []
    for k in range(batch):
        angle = torch.tensor(2.0 * math.pi * k / batch)
        turn = torch.eye(4)
        axes = (0, 1) if size != "tiny" else (0, 2)
        turn[axes[0], axes[0]] = turn[axes[1], axes[1]] = angle.cos()
        turn[axes[0], axes[1]], turn[axes[1], axes[0]] = -angle.sin(), angle.sin()
        if size == "tiny":
            turn = torch.eye(4)
            turn[0, 3] = 0.1 * k
        path = Path(f"{k}.png")
        view = w.viewmats[0] @ turn
        cameras.append(Camera(path.name, None, width, height, view, w.Ks[0], width, height))
    return Case(w, cameras, device, graphs)


def build_stepper(case: Case, ranks: Ranks | None, folder: Path) -> Stepper:
    """Who takes a rank's part of steps, or all of them."""
    w, device = case.workload, case.device
    ids = torch.arange(len(w.means), dtype=torch.int32, device=w.means.device)
    tensors = raw_parameters(w)
    if ranks is not None:
        rows = (owner(ids, ranks.size) == ranks.rank).nonzero()[:, 0]
        ids, tensors = ids[rows], {name: x[rows] for name, x in tensors.items()}
    model = Gaussians.from_tensors({name: x.to(device) for name, x in tensors.items()})
    model.rows["ids"], model.next_id = ids.to(device), len(w.means)
    model.is_shard = ranks is not None
    strategy = MaskGaussianConfig(lambda_mask=1e-3, mask_lr=0.0).build(densify_until=0)
    strategy.setup(model, extent=4.0, iterations=1 << 30, seed=0)
    logits = (ids.double() * 0.618034).sin()
    model.params["mask_logits"].data[:, 0] = (2.0 + 2.0 * logits).to(device)
    batch = len(case.cameras)
    settings = {"batch": batch, "cuda_graphs": case.graphs, "quiet": True}
    config = TrainConfig(folder, iterations=1 << 30, **settings)
    optimizer = build_optimizer(model, FROZEN, extent=4.0, n_images=batch)
    points = torch.rand(4, 3)
    scene = Scene(case.cameras, [], points, points, 4.0, folder, "colmap")
    images: Any = Images(case.cameras, device)
    parts = config, scene, model, optimizer, [strategy], images
    tracker = Tracker(config.iterations, quiet=True)
    if ranks is None:
        return Stepper(*parts, tracker, white_background=False)
    return ShardedStepper(ranks, *parts, tracker, white_background=False)


def account(stepper: ShardedStepper) -> dict[str, int]:
    """Bytes of what a rank holds in a step, by what they are for."""
    model, planner, phases = stepper.gaussians, stepper.planner, stepper.phases
    plan = planner.plan(list(range(stepper.config.batch)))
    rooms, n = phases.rooms(plan, len(model)), len(model)
    parameters = sum(p.nbytes for p in model.params.values())
    states = stepper.optimizer.state.values()
    moments = sum(x.nbytes for state in states for x in state.values())
    buffers = 48 * (plan.bases[-1] + sum(plan.received(stepper.ranks.rank)))
    received = sum(plan.received(stepper.ranks.rank))
    return {
        "parameters": parameters,
        "moments": moments,
        "gradients": sum(p.nbytes for p in model.params.values() if p.requires_grad),
        "exchanged": buffers,
        # radii, image positions and rows; records, their names, keys, counts of tiles
        "projected": sum(len(size.images) * n * 20 for size in plan.sizes) + 84 * sum(rooms.rows),
        "records' gradients": 64 * sum(rooms.rows) + sum(8 * n * len(s.images) for s in plan.sizes),
        "received, and gradients": 132 * received,
        "entries": 8 * sum(rooms.entries),
    }


def take(stepper: Stepper, step: int) -> None:
    """The step whose last image is `step`."""
    stepper.settle()
    rates = learning_rates(stepper.optimizer, FROZEN, extent=4.0, step=step)
    indices = list(range(stepper.config.batch))
    if not stepper.replay(step, indices, rates):
        stepper.update(step, stepper.forward_backward(step, indices), rates)


def time_one(case: Case, folder: Path) -> tuple[float, float]:
    """Seconds of a step that one rank takes alone, and gigabytes."""
    gpu, before = case.device.type == "cuda", 0
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    stepper, batch = build_stepper(case, None, folder), len(case.cameras)
    with stepper.running():
        for k in range(WARM_UP):
            take(stepper, batch * (k + 1))
        spans = []
        for _ in range(3):
            synchronize(case.device)
            began = time.perf_counter()
            for k in range(STEPS):
                take(stepper, batch * (WARM_UP + 1 + k))
            synchronize(case.device)
            spans.append((time.perf_counter() - began) / STEPS)
    most = torch.cuda.max_memory_allocated() - before if gpu else 0
    return statistics.median(spans), most / 1e9


def kernels_of(case: Case, size: int, folder: Path) -> list[tuple[float, float, str]]:
    """Milliseconds and launches of a rank's step by kernel, the dearest first."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities):
        synchronize(case.device)  # the main thread must be the first to profile
    profiler, batch = torch.profiler.profile(activities=activities), len(case.cameras)

    def act(ranks: Ranks) -> None:
        stepper = build_stepper(case, ranks, folder)
        with stepper.running():
            for k in range(WARM_UP + STEPS):
                if k == WARM_UP:
                    stepper.settle()
                    ranks.first_only(profiler.start)
                take(stepper, batch * (k + 1))
            stepper.settle()
            synchronize(case.device)
            ranks.first_only(profiler.stop)

    simulate(size, act, device=case.device)
    per, rows = size * STEPS, profiler.key_averages()
    found = [(x.self_device_time_total / 1e3 / per, x.count / per, x.key) for x in rows]
    return sorted((row for row in found if row[0] > 0), reverse=True)


class Pictures:
    """Images and masks of one step, as ranks make them."""

    def __init__(self, case: Case) -> None:
        self.images = [torch.zeros(c.height, c.width, 3) for c in case.cameras]
        self.masks = torch.full((len(case.workload.means),), -1.0)

    def keep(self, plan: Any, k: int, window: Tensor) -> None:
        task, height = plan.tasks[k], plan.height(k)
        (first, last), (top, _) = task.rows(height), task.window(height)
        self.images[plan.camera(k)][first:last] = window[first - top : last - top].cpu()

    @torch.no_grad()
    def differences(self, case: Case, folder: Path, step: int) -> tuple[float, bool]:
        """From one rank's: the largest of images, and whether the masks are the same bits."""
        stepper = build_stepper(case, None, folder)
        model, strategy = stepper.gaussians, stepper.strategies[0]
        keywords: dict[str, Any] = dict(strategy.device_inputs(step))
        keywords |= strategy.before_render(step, model)
        view = views_of(case.cameras, case.device, range(len(case.cameras)))
        background = torch.zeros(3, device=case.device)
        out = render(model, view, background=background, **keywords)
        pairs = zip(out.colors, self.images, strict=True)
        worst = max(float((found.cpu() - got).abs().max()) for found, got in pairs)
        masks = out.info["masks"]
        return worst, torch.equal(masks.cpu(), self.masks)
