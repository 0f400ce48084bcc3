"""A flight through a model as a video: `python -m gs.render -m OUT --path orbit --video out.mp4`.

Frames are rendered one after the other and go to ffmpeg (H.264, of imageio-ffmpeg, extra `video`)
while they come. Several views stand side by side:

    color   the rendering
    depth   expected depth of each pixel, near ones bright; colours mean the same in all frames
    mask    alpha: how much of a pixel Gaussians cover, white for all of it
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..config import resolve_device
from ..data.camera import Camera
from ..errors import SplatrimError
from ..files import atomic_write, check_writable
from ..model.gaussians import Gaussians
from ..model.ply import load_ply, read_antialiased, read_offset
from ..model.renderer import render
from ..run_record import find_model
from ..run_settings import read_settings
from .camera_path import CAMERAS, interpolate, orbit, read_keys, read_path, resized
from .run_scene import load_run_scene, near_plane
from .views import quantize

PATHS = ("orbit", "interpolate")
VIEWS = ("color", "depth", "mask")
EXTRA = '`pip install "splatrim[video]"` brings it'
SAMPLED = 8  # frames that tell the ends of depth's colours
ENDS = (0.02, 0.98)  # shares of pixels beyond those ends
COVERED = 0.5  # alpha from which a pixel has a depth
CODEC = "libx264"
QUALITY = 8  # of 0 to 10

logger = logging.getLogger("splatrim")


class Flight(NamedTuple):
    """What is filmed, and how."""

    path: str = "orbit"
    """orbit, interpolate, or a file: a run's cameras.json or a camera path of nerfstudio."""
    views: tuple[str, ...] = ("color",)
    """Of color, depth and mask."""
    seconds: float = 6.0
    fps: int = 30
    width: int | None = None
    """Pixels of one view; None: those of the cameras."""


def write_video(
    file: str | Path,
    model_path: str | Path,
    flight: Flight,
    *,
    iteration: int = -1,
    source_path: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> int:
    """Film a run's model.

    Args:
        file: The video, NAME.mp4; missing folders are made.
        model_path: Output folder of the run.
        flight: Where the camera goes and what is shown.
        iteration: Which saved model; -1 is the latest.
        source_path: The scene, if it has moved. Where it is gone, the run's cameras.json will do.
        device: "auto", "cpu" or "cuda".
        quiet: Without a progress bar.

    Returns:
        Number of frames.

    Raises:
        SplatrimError: no such run, model, path or view, ffmpeg is missing or fails, or the video
            cannot be written.
    """
    file, model_path = Path(file), Path(model_path)
    wrong = [view for view in flight.views if view not in VIEWS]
    if wrong or not flight.views:
        raise SplatrimError(f"--views {' '.join(wrong)}: choose of {', '.join(VIEWS)}")
    if file.suffix.lower() != ".mp4":
        raise SplatrimError(f"--video {file}: give a name that ends in .mp4")
    n = round(flight.seconds * flight.fps)
    if n < 1:
        raise SplatrimError(f"{flight.seconds} seconds at {flight.fps} frames each are no frame")
    ffmpeg = _ffmpeg()
    settings = read_settings(model_path)
    _, ply = find_model(model_path, iteration)
    check_writable(file.parent)
    where = resolve_device(device)
    cameras = _cameras(flight.path, n, settings, model_path, source_path, ply)
    cameras = resized(cameras, flight.width)
    tensors = {name: x.to(where) for name, x in load_ply(ply).items()}
    model = Gaussians.from_tensors(tensors, antialiased=read_antialiased(ply))
    white = float(bool(settings.get("white_background", False)))
    frames = film(model, cameras, flight.views, torch.full((3,), white, device=where))
    bar = tqdm(frames, total=len(cameras), desc="video", unit="frame", disable=quiet)
    size = (cameras[0].width * len(flight.views), cameras[0].height)
    with tempfile.TemporaryDirectory(prefix="splatrim.") as folder:
        made = Path(folder) / "video.mp4"
        _encode(ffmpeg, bar, made, size, flight.fps)
        with atomic_write(file) as out, open(made, "rb") as data:
            while block := data.read(1 << 20):
                out.write(block)
    logger.info(f"{file}: {len(cameras)} frames of {size[0]}x{size[1]}")
    return len(cameras)


@torch.no_grad()
def film(
    model: Gaussians, cameras: Sequence[Camera], views: Sequence[str], background: Tensor
) -> Iterator[NDArray[np.uint8]]:  # each [H, len(views) W, 3]
    """The frames of a video, views side by side; background is [3]."""
    near, far = _depth_ends(model, cameras) if "depth" in views else (0.0, 1.0)
    for camera in cameras:
        shown = {}
        if "color" in views or "mask" in views:
            out = render(model, camera, background=background)
            shown["color"] = quantize(out.colors)
            shown["mask"] = quantize(out.alphas.expand(-1, -1, 3))
        if "depth" in views:
            shown["depth"] = _depth_colors(*_depth(model, camera), near, far)
        yield torch.cat([shown[view] for view in views], dim=1).cpu().numpy()


def _depth(model: Gaussians, camera: Camera) -> tuple[Tensor, Tensor]:  # [H, W, 1] twice
    """Expected depth and alpha."""
    out = render(model, camera, render_mode="ED")
    return out.colors, out.alphas


def _depth_ends(model: Gaussians, cameras: Sequence[Camera]) -> tuple[float, float]:
    """The inverse depths of the darkest and the brightest colour, of a few frames."""
    step = max(len(cameras) // SAMPLED, 1)
    inverse = []
    for camera in cameras[::step]:
        depth, alpha = _depth(model, camera)
        inverse.append(1 / depth[alpha > COVERED].clamp_min(1e-6))
    values = torch.cat(inverse).cpu().numpy()
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, ENDS)
    return float(low), float(max(high, low + 1e-9))


def _depth_colors(depth: Tensor, alpha: Tensor, low: float, high: float) -> Tensor:  # [H, W, 3]
    """Inverse depth by matplotlib's map inferno, fading to black where nothing is."""
    from matplotlib import colormaps  # takes half a second, and depth is seldom asked for

    share = ((1 / depth.clamp_min(1e-6) - low) / (high - low)).clamp(0, 1)
    table = torch.from_numpy(colormaps["inferno"](np.arange(256))[:, :3]).float().to(depth.device)
    colors = table[(share[..., 0] * 255).round().long()]
    return quantize(colors * alpha)


def _cameras(
    path: str,
    n: int,
    settings: dict[str, Any],
    model_path: Path,
    source_path: str | Path | None,
    ply: Path,
) -> list[Camera]:
    near = near_plane(settings)
    if path not in PATHS:
        return read_path(Path(path), n, near)
    try:
        scene = load_run_scene(
            settings, model_path, read_offset(ply), source_path=source_path, model=ply
        )
        views = [*scene.train, *scene.test]
    except SplatrimError as error:
        known = model_path / CAMERAS
        if source_path is not None or not known.is_file():
            raise
        logger.warning(f"cameras are those of {known}: {error}")
        if path == "interpolate":
            return read_path(known, n, near)
        views = read_keys(known, near)
    views.sort(key=lambda view: view.image_name)
    return orbit(views, n) if path == "orbit" else interpolate(views, n)


def _ffmpeg() -> Any:
    """The package that brings ffmpeg."""
    try:
        ffmpeg = importlib.import_module("imageio_ffmpeg")
        ffmpeg.get_ffmpeg_exe()
    except ImportError as error:
        raise SplatrimError(f"a video needs the package imageio-ffmpeg: {EXTRA}") from error
    except RuntimeError as error:
        raise SplatrimError(f"ffmpeg cannot be used: {error}") from error
    return ffmpeg


def _encode(
    ffmpeg: Any, frames: Iterable[NDArray[np.uint8]], file: Path, size: tuple[int, int], fps: int
) -> None:
    writer = ffmpeg.write_frames(
        str(file),
        size,
        fps=fps,
        quality=QUALITY,
        codec=CODEC,
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-movflags", "+faststart"],
    )
    try:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    except OSError as error:
        raise SplatrimError(f"ffmpeg has failed: {error}") from error
    finally:
        writer.close()
    if not file.is_file() or not file.stat().st_size:
        raise SplatrimError("ffmpeg has written nothing")
