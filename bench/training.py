"""Real training iterations on a benchmark's workload: what bench.train_step and scaling time.

A `gs.training.trainer.Trainer` gets the workload's Gaussians as if they came from a checkpoint, and
one camera whose image is a rendering of them with noise on it. All learning rates are zero: every
iteration does its full arithmetic, and does the same work as the one before. The iterations are
those after 20,000, so all SH degrees are in use and densification has ended, unless `densifying`
asks for those after 5,000, which gather its statistics and densify at every 100th.
"""

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.scenes import Workload, load
from gs.config import TrainConfig
from gs.data.camera import Camera
from gs.data.scene import Scene
from gs.densification.adaptive import DensifyConfig
from gs.evaluation.views import quantize
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig
from gs.model.renderer import render
from gs.training.exposure import Exposure
from gs.training.run_state import RunState
from gs.training.strategy import Strategy
from gs.training.trainer import Trainer
from pruning import METHODS

FIRST_STEP, DENSIFYING_STEP = 20_001, 5_001
NOISE = 16  # levels of 255
MIN_OPACITY = 0.02  # below the densifier's threshold a Gaussian would be pruned

FROZEN = OptimConfig(
    position_lr_init=1e-30,  # their logarithm is taken
    position_lr_final=1e-30,
    feature_lr=0.0,
    opacity_lr=0.0,
    scaling_lr=0.0,
    rotation_lr=0.0,
)


def workload(name: str) -> Workload:
    """A workload of bench.scenes by name, or "random-N": N Gaussians before a camera of 64x48.

    It is on the CPU.

    Raises:
        FileNotFoundError: its data is absent.
    """
    if name.startswith("random-"):
        return random_workload(int(name.removeprefix("random-")), 64, 48)
    return load(name, "cpu")


def random_workload(n: int, width: int, height: int) -> Workload:
    """N Gaussians in a box before the camera, which need no data."""
    g = torch.Generator().manual_seed(n)
    means = torch.rand(n, 3, generator=g) * 4 - 2
    means[:, 2] += 4
    scales = 0.02 + 0.1 * torch.rand(n, 3, generator=g)
    quats = torch.nn.functional.normalize(torch.randn(n, 4, generator=g), dim=-1)
    opacities, sh = torch.rand(n, generator=g), 0.3 * torch.randn(n, 16, 3, generator=g)
    K = torch.tensor([[width, 0.0, width / 2], [0.0, width, height / 2], [0.0, 0.0, 1.0]])
    view = torch.eye(4)[None]
    return Workload(
        f"random-{n}", means, quats, scales, opacities, sh, view, K[None], width, height
    )


def raw_parameters(w: Workload) -> dict[str, Tensor]:
    """The workload's Gaussians as `gs.model.gaussians` holds them: log-scales, logits."""
    return {
        "means": w.means,
        "quats": w.quats,
        "scales": w.scales.clamp_min(1e-6).log(),
        "opacities": w.opacities.clamp(MIN_OPACITY, 0.99).logit(),
        "sh0": w.sh[:, :1].contiguous(),
        "shN": w.sh[:, 1:].contiguous(),
    }


def camera_of(w: Workload, image: Path | None) -> Camera:
    """The workload's camera, with the path of its image."""
    view, K = w.viewmats[0].cpu(), w.Ks[0].cpu()
    return Camera("view.png", image, w.width, w.height, view, K, w.width, w.height)


def build_trainer(
    w: Workload,
    folder: Path,
    device: torch.device,
    *,
    method: str = "3dgs",
    graphs: bool = True,
    densifying: bool = False,
    batch: int = 1,
    masked: bool = False,
    change: Callable[[Scene], Scene] | None = None,
    more: Callable[[Scene], Sequence[Strategy[Any]]] | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer that stands before an iteration on the workload.

    Args:
        w: Gaussians and camera, on the CPU, so that they take nothing of the GPU's memory.
        folder: Where the camera's image is written.
        device: Where to train.
        method: Pruning method, with its default preset.
        graphs: Whether iterations may be captured as CUDA graphs.
        densifying: Iterations that gather statistics and densify, instead of later ones.
        batch: Images per step, all of the same camera.
        masked: Whether a mask hides a part of the image.
        change: Makes of the scene the one to train on.
        more: Further strategies for it.
        **settings: Of TrainConfig.
    """
    tensors, camera = raw_parameters(w), camera_of(w, folder / "view.png")
    _write_truth(Gaussians.from_tensors(tensors).to(device), camera)
    if masked:
        camera = dataclasses.replace(camera, mask_path=_write_mask(camera, folder / "mask.png"))
    # the model comes from `start`; the scene's own points are not used
    points = torch.rand(4, 3)
    scene = Scene([camera], [], points, points, extent=4.0, source=folder, kind="colmap")
    scene = scene if change is None else change(scene)
    config = TrainConfig(
        folder / "out",
        device=str(device),
        test_iterations=(),
        save_iterations=(),
        quiet=True,
        cuda_graphs=graphs,
        batch=batch,
        **settings,
    )
    densify = DensifyConfig()
    pruner = METHODS[method].preset(next(iter(METHODS[method].PRESETS)))
    rates = [field.name for field in dataclasses.fields(pruner) if field.name.endswith("_lr")]
    pruner = dataclasses.replace(pruner, **dict.fromkeys(rates, 0.0))
    start = RunState(
        method="3dgs",
        step=(DENSIFYING_STEP if densifying else FIRST_STEP) - 1,
        params=tensors,
        rows={"ids": torch.arange(len(w.means), dtype=torch.int32)},
        next_id=len(w.means),
        active_sh_degree=math.isqrt(w.sh.shape[1]) - 1,
    )
    strategies: list[Strategy[Any]] = [] if more is None else [*more(scene)]
    if config.exposure != "none":
        strategies.append(Exposure(config.exposure, scene.train))
    until = densify.densify_until_iter
    return Trainer(
        config,
        scene,
        strategies=[densify.build(), pruner.build(densify_until=until), *strategies],
        optim=FROZEN,
        method=method,
        start=start.to_dict(),
    )


def run_steps(trainer: Trainer, count: int) -> None:
    """`count` steps; the device may still be at work afterwards."""
    with trainer.stepper.running():
        for _ in range(count):
            trainer.train_step(trainer.step + trainer.config.batch)


def seconds_per_step(trainer: Trainer, *, spans: int, steps: int) -> float:
    """Median over `spans` of the time of `steps` steps, divided by their number.

    The device is waited for at the ends of a span only, as little as in training.
    """
    times = []
    for _ in range(spans):
        synchronize(trainer.device)
        started = time.perf_counter()
        run_steps(trainer, steps)
        synchronize(trainer.device)
        times.append((time.perf_counter() - started) / steps)
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Give freed memory back, and start to look for the peak anew."""
    gc.collect()  # trainers that are done refer to themselves
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@torch.no_grad()
def counts(w: Workload, device: torch.device) -> dict[str, int]:
    """What the work of an iteration depends on: N, visible Gaussians, intersections, pixels."""
    gaussians = Gaussians.from_tensors(raw_parameters(w)).to(device)
    info = render(gaussians, camera_of(w, None)).info
    return {
        "n_gaussians": len(w.means),
        "n_visible": int((info["radii"] > 0).all(-1).sum()),
        "n_isects": int(info["n_isects"]),
        "n_pixels": w.width * w.height,
        "tile_pixels": int(info["tile_size"]) ** 2,
    }


def _write_mask(camera: Camera, path: Path) -> Path:
    """A mask that hides the middle ninth of an image."""
    mask = np.full((camera.height, camera.width), 255, np.uint8)
    third = [slice(n // 3, 2 * n // 3) for n in mask.shape]
    mask[third[0], third[1]] = 0
    Image.fromarray(mask).save(path)
    return path


@torch.no_grad()
def _write_truth(gaussians: Gaussians, camera: Camera) -> None:
    image: Tensor = quantize(render(gaussians, camera).colors).cpu()
    noise = np.random.default_rng(0).integers(-NOISE, NOISE + 1, image.shape)
    pixels = np.clip(image.numpy().astype(np.int64) + noise, 0, 255).astype(np.uint8)
    assert camera.image_path is not None
    Image.fromarray(pixels).save(camera.image_path)
