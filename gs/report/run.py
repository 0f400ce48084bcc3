"""What a run left in its folder, as gs.report shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SplatrimError
from ..evaluation.rendered import is_current, method_name, read_per_view, read_results, read_stats
from ..model.histograms import Histogram, unit_histogram
from ..model.ply import load_opacities
from ..run_record import read_record, saved_models
from ..run_settings import CONFIG, read_settings
from ..schema import read_checked
from . import checks


@dataclass(frozen=True)
class View:
    """A rendered test view."""

    file: str
    """File name within the folders, "00000.png"."""
    name: str
    """The camera's image name where it is known, else `file`."""
    rendering: Path
    truth: Path
    scores: dict[str, float]
    """"PSNR", "SSIM", "LPIPS", as far as measured."""


@dataclass(frozen=True)
class Run:
    """All that a report draws on; what a run lacks is empty."""

    path: Path
    settings: dict[str, Any]
    """config.json."""
    history: dict[str, Any]
    """history.json."""
    iteration: int | None
    """Of the model that is reported: the latest that was measured, rendered or saved."""
    results: dict[str, float]
    """Its entry of results.json."""
    stats: dict[str, Any]
    """Its entry of render_stats.json."""
    n_saved: int | None
    """Gaussians in its .ply."""
    ply_bytes: int | None
    views: tuple[View, ...]
    opacities: Histogram | None = None
    """Of the Gaussians in its .ply."""
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    """Those of the strategies by name, as of the last save."""
    prunings: tuple[dict[str, Any], ...] = ()
    """pruning.json, as gs.report.pruning describes it."""
    baseline: Run | None = None
    """The run that this one is compared with (gs.report.headline)."""

    def test_psnr(self) -> tuple[list[float], list[float]]:
        """Iterations of the trainer's evaluations, and the PSNR of the test views in dB."""
        tests = [t for t in self.history.get("test") or () if isinstance(t, dict)]
        return [t.get("step", 0) for t in tests], [t.get("psnr", math.nan) for t in tests]

    @property
    def psnr(self) -> float | None:
        """Of the test views in dB: measured, else the trainer's last."""
        if "PSNR" in self.results:
            return self.results["PSNR"]
        values = self.test_psnr()[1]
        return values[-1] if values and math.isfinite(values[-1]) else None

    @property
    def n_gaussians(self) -> int | None:
        """Gaussians of the model, else those at the end of training."""
        counts = [n for n in self.column("n_gaussians") if n]
        return int(counts[-1]) if self.n_saved is None and counts else self.n_saved

    @property
    def method_name(self) -> str:
        """The method as people call it; the folder's name where it is not known."""
        method = self.settings.get("method")
        return "3DGS" if method == "3dgs" else str(method or self.path.name)

    @property
    def title(self) -> str:
        """Scene, method and preset."""
        settings = self.settings or self.history.get("settings", {})
        scene = Path(str(settings.get("source_path") or self.path)).name or str(self.path)
        title = f"{scene}: {settings['method']}" if settings.get("method") else scene
        return f"{title}, {settings['preset']}" if settings.get("preset") else title

    def column(self, name: str) -> list[float]:
        """A column of the history; [] where it is missing."""
        values = self.history.get(name)
        return values if isinstance(values, list) else []


def load_run(model_path: str | Path) -> Run:
    """Collect what a run left behind.

    Raises:
        SplatrimError: the folder is no run's output, or one of its files is broken.
    """
    path = Path(model_path)
    if not path.is_dir():
        raise SplatrimError(f"no such folder: {path}")
    settings = read_settings(path) if (path / CONFIG).is_file() else {}
    history = {}
    if (path / "history.json").is_file():
        history = read_checked(path / "history.json", checks.history)
    results, per_view, stats = read_results(path), read_per_view(path), read_stats(path)
    saved = saved_models(path)
    if read_record(path) is not None:
        known = sorted(saved)
    else:
        rendered = {_number(f.name) for f in path.glob("test/ours_*")}
        measured = {_number(name) for name in (*results, *stats)}
        known = sorted(i for i in {*saved, *rendered, *measured} if i is not None)
    if not (settings or history or known):
        raise SplatrimError(f"{path} is not the output of a run: nothing in it can be reported")
    iteration = known[-1] if known else None
    method = method_name(iteration) if iteration is not None else ""
    if not is_current(path, method, stats):
        method = "outdated"  # nothing is called so: what was rendered and measured is not shown
    scores = per_view.get(method, {})
    names = stats.get(method, {}).get("test", {}).get("views", [])
    views = []
    for rendering in sorted((path / "test" / method / "renders").glob("*.png")):
        truth = rendering.parent.parent / "gt" / rendering.name
        if not truth.is_file():
            continue
        number = int(rendering.stem) if rendering.stem.isdigit() else -1
        name = names[number] if 0 <= number < len(names) else rendering.name
        own = {m: v[rendering.name] for m, v in scores.items() if rendering.name in v}
        views.append(View(rendering.name, str(name), rendering, truth, own))
    ply = saved.get(iteration) if iteration is not None else None
    is_neural = settings.get("representation") == "neural"  # whose file has no opacities
    return Run(
        path,
        settings,
        history,
        iteration,
        results.get(method, {}),
        stats.get(method, {}),
        _count_vertices(ply) if ply else stats.get(method, {}).get("n_gaussians"),
        ply.stat().st_size if ply else None,
        tuple(views),
        unit_histogram(load_opacities(ply)) if ply and not is_neural else None,
        {name: entry for name, entry in history.items() if checks.is_histogram(entry)},
        _read_prunings(path / "pruning.json"),
    )


def _read_prunings(path: Path) -> tuple[dict[str, Any], ...]:
    return tuple(read_checked(path, checks.PRUNINGS)) if path.is_file() else ()


def _number(name: str) -> int | None:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else None


def _count_vertices(ply: Path) -> int | None:
    """The count in a .ply's header, without reading the file."""
    with open(ply, "rb") as file:
        for line in file.read(4096).split(b"\n"):
            if line.startswith(b"element vertex ") and line.split()[-1].isdigit():
                return int(line.split()[-1])
    return None
