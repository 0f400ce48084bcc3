"""Render a trained model's views: `python -m gs.render -m OUT [--skip_train]`.

With --video out.mp4, a flight along --path becomes a video instead (`gs.evaluation.video`).

Writes {train,test}/ours_N/{renders,gt}/00000.png, 8 bits a channel, numbered per folder as in the
original code, masks/ beside them where images have masks, and render_stats.json: image names, mean
quality and rendering speed.
"""

import contextlib
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..command_line import read_settings_of
from ..config import resolve_device
from ..data.camera import Camera
from ..data.loader import ImageLoader
from ..errors import SplatrimError
from ..files import atomic_write, check_writable, write_json
from ..logs import show_log
from ..model.light import add_saved_light
from ..model.model import Model
from ..model.ply import read_offset
from ..model.renderer import RenderOutput, render
from ..neural.loading import load_model
from ..ranges import AT_LEAST_ONE, ITERATION, POSITIVE, check_ranges
from ..run_record import find_model
from ..run_settings import read_settings
from .poses_file import SAID, read_poses
from .readable import frame_rate
from .rendered import (
    MASKS,
    PER_VIEW,
    RESULTS,
    STATS,
    mark_of,
    method_name,
    read_per_view,
    read_results,
    read_stats,
)
from .run_scene import load_run_scene
from .video import Flight, write_video
from .views import ViewScore, evaluate_views, mean_scores

TIMED_VIEWS = 50  # renderings for the speed on a GPU, where one is too short to be exact
WARM_UP = 5
_OF_VIDEO = ("path", "views", "seconds", "fps", "width")

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class RenderConfig:
    """What to render; where the scene is and how it is read comes from the run's config.json."""

    model_path: Annotated[Path, tyro.conf.arg(aliases=("-m",))]
    """Output folder of a run."""
    iteration: Annotated[int, ITERATION] = -1
    """Which saved model; -1 is the latest."""
    skip_train: bool = False
    """Leave out the training views."""
    skip_test: bool = False
    """Leave out the test views."""
    quiet: bool = False
    """Show warnings only."""
    source_path: Annotated[Path | None, tyro.conf.arg(aliases=("-s",))] = None
    """The scene, if it has moved since training."""
    images: Annotated[str | None, tyro.conf.arg(aliases=("-i",))] = None
    """Sub-folder with the images, instead of the run's."""
    resolution: Annotated[int | None, tyro.conf.arg(aliases=("-r",)), ITERATION] = None
    """Resolution as in training, instead of the run's."""
    device: str = "auto"
    """auto, cpu or cuda."""
    video: Path | None = None
    """Film a flight into this file, NAME.mp4, instead of rendering views."""
    path: str = "orbit"
    """The flight: orbit, interpolate (through the views, by name), or a file of cameras: a
    cameras.json or a camera path of nerfstudio."""
    views: tuple[Literal["color", "depth", "mask"], ...] = ("color",)
    """What the video shows, side by side; mask is how much of a pixel Gaussians cover."""
    seconds: Annotated[float, POSITIVE] = 6.0
    """Length of the video, unless a camera path says it."""
    fps: Annotated[int, AT_LEAST_ONE] = 30
    """Frames per second."""
    width: Annotated[int | None, AT_LEAST_ONE] = None
    """Pixels across one view of the video; by default as many as in training."""

    def __post_init__(self) -> None:
        check_ranges(self)


def render_views(
    model_path: str | Path,
    *,
    iteration: int = -1,
    skip_train: bool = False,
    skip_test: bool = False,
    quiet: bool = False,
    source_path: str | Path | None = None,
    images: str | None = None,
    resolution: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Render the views of a run to PNGs; arguments as in RenderConfig.

    Returns:
        What render_stats.json says of this model.

    Raises:
        SplatrimError: no such run or model, a broken .ply or scene, an unwritable folder.
    """
    model_path = Path(model_path)
    settings = read_settings(model_path)
    iteration, ply = find_model(model_path, iteration)
    check_writable(model_path)
    where = resolve_device(device)
    gaussians = load_model(ply, where)
    add_saved_light(gaussians, ply.parent)
    scene = load_run_scene(
        settings,
        model_path,
        read_offset(ply),
        source_path=source_path,
        images=images,
        resolution=resolution,
        model=ply,
    )
    white = bool(settings.get("white_background", False))
    background = torch.full((3,), float(white), device=where)
    stats: dict[str, Any] = {
        "model": mark_of(model_path, iteration),
        "n_gaussians": len(gaussians),
        "ply_bytes": ply.stat().st_size,
        "device": _device_name(where),
    }
    refined = read_poses(ply)
    if refined is not None and scene.test and not skip_test:
        stats["test_poses"] = refined["test_poses"]
        logger.info(SAID[refined["test_poses"]])
    timer = _Timer(where)
    for split, cameras, skip in (
        ("test", scene.test, skip_test),
        ("train", scene.train, skip_train),
    ):
        if skip or not cameras:
            continue
        folder = model_path / split / method_name(iteration)
        loader = ImageLoader(cameras, white_background=white, device=where)
        try:
            loader.check()
            scores = _render_split(gaussians, cameras, loader, background, folder, timer, quiet)
        finally:
            loader.close()
        stats[split] = {**mean_scores(scores), "views": [score.name for score in scores]}
        means = ", ".join(f"{k.upper()} {v:.4f}" for k, v in mean_scores(scores).items())
        logger.info(f"{folder}: {len(scores)} views, {means}")
    cameras = scene.test or scene.train
    if where.type == "cuda" and cameras:
        timer.measure(gaussians, cameras, background)
    stats |= timer.summary()
    if "fps" in stats:
        logger.info(
            f"rendering: {' '.join(frame_rate(stats['fps']))} "
            f"at {stats['width']}x{stats['height']}, "
            f"{len(gaussians)} Gaussians, {stats['device']}"
        )
    if not {"test", "train"} & stats.keys():
        raise SplatrimError("there is nothing to render: the scene has no such views")
    _write_stats(model_path, method_name(iteration), stats)
    return stats


def _render_split(
    gaussians: Model,
    cameras: list[Camera],
    loader: ImageLoader,
    background: Tensor,
    folder: Path,
    timer: "_Timer",
    quiet: bool,
) -> list[ViewScore]:
    with tqdm(total=len(cameras), desc=folder.parent.name, disable=quiet, unit="view") as bar:

        def save(position: int, camera: Camera, rendering: Tensor, truth: Tensor) -> None:
            _save_png(folder / "renders" / f"{position:05d}.png", rendering)
            _save_png(folder / "gt" / f"{position:05d}.png", truth[..., :3])
            if truth.shape[2] == 4:
                _save_png(folder / MASKS / f"{position:05d}.png", truth[..., 3])
            bar.update()

        scores = evaluate_views(
            gaussians, cameras, loader, background, on_view=save, render_view=timer.render
        )
    for kind in ("renders", "gt", MASKS):
        n = len(cameras) if kind != MASKS or loader.has_masks else 0
        # of an earlier rendering with more views
        for path in (folder / kind).glob("[0-9]" * 5 + ".png"):
            if int(path.stem) >= n:
                path.unlink()
    return scores


def _save_png(path: Path, image: Tensor) -> None:  # [H, W, 3] or [H, W] uint8
    with atomic_write(path) as file:
        Image.fromarray(image.cpu().numpy()).save(file, "PNG", compress_level=4)


class _Timer:
    """Median time of a rendering, from camera to finished image."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.size = (0, 0)

    def render(self, gaussians: Model, camera: Camera, **kwargs: Any) -> RenderOutput:
        self._synchronize()
        started = time.perf_counter()
        out = render(gaussians, camera, **kwargs)
        self._synchronize()
        self.seconds.append(time.perf_counter() - started)
        self.size = (camera.width, camera.height)
        return out

    @torch.no_grad()
    def measure(self, gaussians: Model, cameras: list[Camera], background: Tensor) -> None:
        """Time renderings one after the other, with nothing written between them."""
        self.seconds.clear()
        for i in range(WARM_UP + TIMED_VIEWS):
            self.render(gaussians, cameras[i % len(cameras)], background=background)
        del self.seconds[:WARM_UP]

    def summary(self) -> dict[str, Any]:
        if not self.seconds:
            return {}
        # the first also pays for compilation and caches
        median = statistics.median(self.seconds[1:] or self.seconds)
        width, height = self.size
        return {"fps": 1.0 / median, "ms": 1e3 * median, "width": width, "height": height}

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _write_stats(folder: Path, method: str, stats: dict[str, Any]) -> None:
    """Add a model's renderings to render_stats.json; figures of an earlier one of its name go."""
    try:
        known = read_stats(folder)
    except SplatrimError:
        logger.warning(f"{folder / STATS} was broken and is written anew")
        known = {}
    former = known.get(method, {})
    if former.get("model", "") != stats["model"]:
        former = {}
        for name, read in ((RESULTS, read_results), (PER_VIEW, read_per_view)):
            with contextlib.suppress(SplatrimError):  # broken, and told of by who needs it
                entries = dict(read(folder))
                if entries.pop(method, None) is not None:
                    write_json(folder / name, entries)
    write_json(folder / STATS, {**known, method: {**former, **stats}})


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m gs.render`."""
    config = read_settings_of(RenderConfig, args, __doc__)
    show_log(quiet=config.quiet)
    if config.video is not None:
        write_video(
            config.video,
            config.model_path,
            Flight(config.path, config.views, config.seconds, config.fps, config.width),
            iteration=config.iteration,
            source_path=config.source_path,
            device=config.device,
            quiet=config.quiet,
        )
        return
    given = [name for name in _OF_VIDEO if getattr(config, name) != getattr(RenderConfig, name)]
    if given:
        raise SplatrimError(f"--{given[0]} is for a video: give --video NAME.mp4 too")
    of_views = {name: x for name, x in vars(config).items() if name not in (*_OF_VIDEO, "video")}
    render_views(**of_views)
