"""Write a model as a file to send: `python -m gs.export OUT --format spz`.

OUT is a run's folder, or a file of any format that is read, `--format ply` included: that is the
way back. Of a run, the file goes to OUT/export, views of the scene are rendered from the model and
from what was read back, and both PSNRs with the sizes go to OUT/exports.json, which the report
shows. Formats are those of `gs.formats.model_file`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from ..command_line import read_settings_of
from ..config import resolve_device
from ..data.loader import ImageLoader
from ..data.scene import Scene
from ..errors import SplatrimError
from ..files import check_writable
from ..formats.model_file import FORMATS, is_antialiased, load_model, load_offset, save_model
from ..logs import show_log
from ..model.gaussians import Gaussians
from ..ranges import COUNT, ITERATION, check_ranges
from ..run_record import find_model
from ..run_settings import read_settings
from .exported import note_export
from .run_scene import load_run_scene
from .views import evaluate_views, mean_scores

SPARED = {"spz", "sog", "compressed.ply", "splat"}
"""Formats that cannot say by how much a scene was shifted."""

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class ExportConfig:
    """Which model becomes which file."""

    source: Annotated[Path, tyro.conf.Positional]
    """Output folder of a run, or a file of Gaussians."""
    format: Annotated[
        Literal["spz", "sog", "compressed.ply", "splat", "glb", "ply"],
        tyro.conf.arg(aliases=("-f",)),
    ] = "spz"
    """spz: small and good. sog: small, for the web, slow to write. compressed.ply: SuperSplat.
    splat: oldest web viewers, no view-dependent colour. glb: glTF, lossless. ply: the way back."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """The file; by default OUT/export/iteration_N.FORMAT, or beside the file that is read."""
    sh_degree: int | None = None
    """Highest SH degree to keep, 0 to 3: fewer make a smaller file. By default all."""
    iteration: Annotated[int, ITERATION] = -1
    """Which saved model; -1 is the latest."""
    views: Annotated[int, COUNT] = 20
    """So many test views at most are rendered to measure the change; 0 measures nothing."""
    source_path: Annotated[Path | None, tyro.conf.arg(aliases=("-s",))] = None
    """The scene, if it has moved since training."""
    device: str = "auto"
    """auto, cpu or cuda: where views are rendered."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.sh_degree is not None and not 0 <= self.sh_degree <= 3:
            raise SplatrimError(f"--sh_degree {self.sh_degree}: choose 0, 1, 2 or 3")


def export(config: ExportConfig) -> dict[str, Any]:
    """Write a model in another format; of a run, measure it and note it in exports.json.

    Returns:
        The entry as `gs.evaluation.exported.read_exports` gives it; of a single file without psnr.

    Raises:
        SplatrimError: no such run, model or file, a package is missing, nothing can be written.
    """
    is_run = config.source.is_dir()
    iteration, path = -1, config.source
    if is_run:
        iteration, path = find_model(config.source, config.iteration)
    output = config.output or _default_output(config, iteration)
    check_writable(output.parent)
    if output.resolve() == path.resolve():
        raise SplatrimError(f"{output} is the model itself: give another --output")
    tensors, offset = load_model(path), load_offset(path)
    if not len(tensors["means"]):
        raise SplatrimError(f"{path} holds no Gaussians")
    antialiased = is_antialiased(path)
    if antialiased and config.format not in ("ply", "spz"):
        logger.warning(f"{config.format} cannot say that the model is to be drawn antialiased")
    if any(offset) and config.format in SPARED:
        logger.warning(
            f"{config.format} cannot say that the scene is shifted by {offset}: "
            "the file's coordinates are the model's"
        )
    try:
        size = save_model(
            output,
            tensors,
            config.format,
            sh_degree=config.sh_degree,
            world_offset=offset,
            antialiased=antialiased,
        )
    except ValueError as error:
        raise SplatrimError(f"{path} cannot be written as {config.format}: it {error}") from error
    written = load_model(output)
    entry: dict[str, Any] = {
        "file": str(output),
        "format": config.format,
        "sh_degree": Gaussians.from_tensors(written).sh_degree,
        "bytes": size,
        "n_gaussians": len(written["means"]),
        "psnr": None,
        "ply_bytes": path.stat().st_size,
        "ply_psnr": None,
        "views": 0,
    }
    if is_run and config.views:
        entry |= _measured(config, tensors, written, offset, antialiased)
    if is_run and output.resolve().is_relative_to(config.source.resolve()):
        relative = output.resolve().relative_to(config.source.resolve())
        note_export(config.source, iteration, entry | {"file": relative.as_posix()})
    logger.info(_sentence(entry))
    return entry


def _default_output(config: ExportConfig, iteration: int) -> Path:
    if config.source.is_dir():
        return config.source / "export" / f"iteration_{iteration}.{config.format}"
    name = config.source.name
    known = next((k for k in (*FORMATS[::-1], "ksplat") if name.lower().endswith(f".{k}")), "")
    stem = name[: -len(known) - 1] if known else name
    return config.source.with_name(f"{stem}.{config.format}")


def _measured(
    config: ExportConfig,
    tensors: dict[str, Tensor],
    written: dict[str, Tensor],
    offset: tuple[float, float, float],
    antialiased: bool,
) -> dict[str, Any]:
    """PSNR of both models on the same views; nothing where the scene is not at hand."""
    settings = read_settings(config.source)
    try:
        model = find_model(config.source, config.iteration)[1]
        scene = load_run_scene(
            settings, config.source, offset, source_path=config.source_path, model=model
        )
        return _compared(config, scene, settings, tensors, written, antialiased)
    except SplatrimError as error:
        if config.source_path is not None:
            raise
        logger.warning(f"the change in quality is not measured: {error}")
        return {}


@torch.no_grad()
def _compared(
    config: ExportConfig,
    scene: Scene,
    settings: dict[str, Any],
    tensors: dict[str, Tensor],
    written: dict[str, Tensor],
    antialiased: bool,
) -> dict[str, Any]:
    cameras = scene.test or scene.train
    n = min(config.views, len(cameras))
    if not n:
        raise SplatrimError("the scene has no views")
    where = resolve_device(config.device)
    white = bool(settings.get("white_background", False))
    background = torch.full((3,), float(white), device=where)
    chosen = [cameras[i * len(cameras) // n] for i in range(n)]
    loader = ImageLoader(chosen, white_background=white, device=where)
    found: dict[str, Any] = {"views": n, "split": "test" if scene.test else "train"}
    try:
        for name, model in (("ply_psnr", tensors), ("psnr", written)):
            on_device = {k: x.to(where) for k, x in model.items()}
            gaussians = Gaussians.from_tensors(on_device, antialiased=antialiased)
            scores = evaluate_views(gaussians, chosen, loader, background)
            found[name] = mean_scores(scores)["psnr"]
    finally:
        loader.close()
    return found


def _sentence(entry: dict[str, Any]) -> str:
    """What was written, in a line."""
    size, ply = entry["bytes"], entry["ply_bytes"]
    text = f"{entry['file']}: {size / 1e6:.2f} MB, {size / max(ply, 1):.0%} of {ply / 1e6:.2f} MB"
    if entry["psnr"] is not None:
        change = round(entry["psnr"] - entry["ply_psnr"], 2) + 0.0  # no -0.00
        views = f"{entry['views']} {entry['split']} views"
        text += f"; PSNR {entry['psnr']:.2f}, {change:+.2f} dB on {views}"
    return text


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m gs.export`."""
    config = read_settings_of(ExportConfig, args, __doc__, with_negations=True)
    show_log(quiet=False)
    export(config)
