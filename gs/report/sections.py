"""report.html: what a run did, on one page that needs no other file: `python -m gs.report -m OUT`.

It shows what is there: of history.json, config.json, results.json, per_view.json,
render_stats.json, pruning.json, rendered views and saved models any may be missing. A section is a
function of the run's data that returns its heading and HTML, or None where it has nothing to show;
`SECTIONS` lists them in order.
"""

import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from ..errors import SplatrimError
from ..evaluation.metrics import read_image
from ..files import write_text
from ..logs import show_log
from .charts import Series, compact, line_chart, moving_average
from .exports import exports
from .page import (
    details,
    error_legend,
    error_map,
    figure,
    number_table,
    page,
    pairs_table,
    tile,
    triple,
)
from .pruning import distributions, prunings
from .run import Run, View, load_run

MAX_VIEWS = 6
ERROR_TOPS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
ERROR_QUANTILE = 0.98  # of the shown errors; the scale of the colours ends at or above it

logger = logging.getLogger("splatrim")


Section = Callable[[Run], tuple[str, str] | None]


def headline(run: Run) -> tuple[str, str] | None:
    """The run in a row of numbers."""
    tiles = []
    psnr, source = run.results.get("PSNR"), "test views"
    if psnr is None and run.column("test"):
        psnr, source = run.history["test"][-1].get("psnr"), "test views, by the trainer"
    if psnr is not None:
        tiles.append(tile("PSNR", f"{psnr:.2f}", "dB", source))
    for name, detail in (("SSIM", "1 = identical"), ("LPIPS", "VGG, 0 = identical")):
        if name in run.results:
            tiles.append(tile(name, f"{run.results[name]:.3f}", "", detail))
    counts = [n for n in run.column("n_gaussians") if n]
    n = run.n_saved if run.n_saved is not None else (int(counts[-1]) if counts else None)
    if n is not None:
        detail = ""
        if counts and max(counts) > n:
            peak = int(max(counts))
            fewer = 100 * (1 - n / peak)
            detail = f"{fewer:.{0 if fewer >= 10 else 1}f} % fewer than the peak of {peak:,}"
        tiles.append(tile("Gaussians", f"{n:,}", "", detail))
    if run.ply_bytes is not None:
        tiles.append(tile("Model", f"{run.ply_bytes / 1e6:.3g}", "MB", "as .ply"))
    timing = run.history.get("timing", {})
    if "train_seconds" in timing:
        rate = timing.get("iterations_per_second")
        detail = f"{rate:.3g} iterations/s" if rate else ""
        tiles.append(tile("Training", *duration(timing["train_seconds"]), detail))
    if "fps" in run.stats:
        size = f"at {run.stats.get('width')}×{run.stats.get('height')}"
        fps = run.stats["fps"]
        rate = f"{fps:,.0f}" if fps >= 100 else f"{fps:.3g}"
        tiles.append(tile("Rendering", rate, "frames/s", size))
    return ("", f'<div class="tiles">{"".join(tiles)}</div>') if tiles else None


def training_curves(run: Run) -> tuple[str, str] | None:
    """Loss, PSNR and the number of Gaussians over the iterations."""
    steps = run.column("step")
    if not steps:
        return None
    window = max(1, len(steps) // 40)
    charts = [
        line_chart(
            _smoothed("training views", steps, run.column("loss"), window),
            x_label="iteration",
            y_label="Loss",
            from_zero=True,
        )
    ]
    tests = [t for t in run.column("test") if isinstance(t, dict)]
    series = _smoothed("training views", steps, run.column("psnr"), window)
    xs, ys = [t.get("step", 0) for t in tests], [t.get("psnr", math.nan) for t in tests]
    series.append(Series("test views", xs, ys, color=2, style="points"))
    charts.append(
        line_chart(series, x_label="iteration", y_label="PSNR, dB", y_format=lambda y: f"{y:.4g}")
    )
    total, used = run.column("n_gaussians"), run.column("n_used")
    series = [Series("all", steps, total)]
    if any(u != n for u, n in zip(used, total, strict=False)):
        series.append(Series("in use", steps, used, color=2))
    charts.append(
        line_chart(
            series, x_label="iteration", y_label="Gaussians", y_format=compact, from_zero=True
        )
    )
    drawn = "".join(charts)
    return ("Training", f'<div class="charts">{drawn}</div>') if drawn else None


def test_views(run: Run) -> tuple[str, str] | None:
    """Ground truth, rendering and error of a few views, from the worst to the best."""
    if not run.views:
        command = f"python -m gs.render -m {run.path}"
        if not run.settings.get("eval", True):
            hint = "This run kept no test views: <code>--eval</code> keeps every eighth image."
        else:
            hint = (
                f"No test views are rendered yet: <code>{escape(command)}</code>, then this report."
            )
        return "Test views", f'<p class="note">{hint}</p>'
    chosen = choose_views(run.views)
    triples: list[tuple[View, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]] = []
    for view in chosen:
        rendering, truth = read_image(view.rendering).numpy(), read_image(view.truth).numpy()
        if rendering.shape != truth.shape:
            raise SplatrimError(f"{view.rendering} and its ground truth differ in size")
        difference = np.abs(rendering.astype(np.float32) - truth.astype(np.float32))
        triples.append((view, truth, rendering, difference.mean(axis=2) / np.float32(255)))
    errors = np.concatenate([error.ravel() for *_, error in triples])
    highest = float(np.quantile(errors, ERROR_QUANTILE))
    top = next((t for t in ERROR_TOPS if t >= highest), 1.0)
    rows = []
    for view, truth, rendering, error in triples:
        figures = [
            figure(truth, "Ground truth"),
            figure(rendering, "Rendering", flip=True),
            figure(error_map(error, top), "Error"),
        ]
        rows.append(
            f'<div class="view"><div class="view-head"><h3>{escape(view.name)}</h3>'
            f"<span>{escape(_scores_text(view.scores))}</span></div>"
            f"{triple(figures, width=truth.shape[1], height=truth.shape[0])}</div>"
        )
    which = "All" if len(chosen) == len(run.views) else f"{len(chosen)} of {len(run.views)}"
    order = " from the worst PSNR to the best" if chosen[0].scores.get("PSNR") else ""
    note = f"{which} test views{order}. Press on a rendering to see the ground truth in its place."
    return "Test views", f'<p class="note">{note}</p>{error_legend(top)}{"".join(rows)}'


def view_table(run: Run) -> tuple[str, str] | None:
    """The figures of every test view."""
    metrics = [m for m in ("PSNR", "SSIM", "LPIPS") if any(m in v.scores for v in run.views)]
    if not metrics:
        return None
    digits = {"PSNR": 2, "SSIM": 4, "LPIPS": 4}
    rows = [
        [v.name, *(f"{v.scores[m]:.{digits[m]}f}" if m in v.scores else "–" for m in metrics)]
        for v in run.views
    ]
    return "", details(
        f"Figures of all {len(rows)} test views", number_table(["View", *metrics], rows)
    )


def machine_and_timing(run: Run) -> tuple[str, str] | None:
    """What it ran on and how long it took."""
    timing: dict[str, Any] = run.history.get("timing", {})
    rows = []
    if "train_seconds" in timing:
        rows.append(("Training", " ".join(duration(timing["train_seconds"]))))
    if timing.get("iterations_per_second"):
        rows.append(("Iterations per second", f"{timing['iterations_per_second']:.4g}"))
    if "ms" in run.stats:
        device = run.stats.get("device", "")
        rows.append(("Rendering a view", f"{run.stats['ms']:.3g} ms (median), {device}"))
    known = {"device": "Device", "torch": "PyTorch", "triton": "Triton", "threads": "CPU threads"}
    known |= {"python": "Python", "platform": "Platform"}
    for key, label in known.items():
        if key in timing:
            rows.append((label, str(timing[key])))
    memory = {"peak_memory_mb": "Peak memory", "peak_reserved_mb": "Peak memory, reserved"}
    rows += [(label, f"{timing[k]:,.0f} MB") for k, label in memory.items() if k in timing]
    rest = set(timing) - {*known, *memory, "train_seconds", "iterations_per_second"}
    rows += [(_spaced(key), _value(timing[key])) for key in sorted(rest)]
    return ("Time and machine", pairs_table(rows)) if rows else None


def settings_table(run: Run) -> tuple[str, str] | None:
    """Every setting, those that most runs change first."""
    settings = run.settings or run.history.get("settings", {})
    if not settings:
        return None
    flat = {k: v for k, v in settings.items() if not isinstance(v, dict)}
    nested = {k: v for k, v in settings.items() if isinstance(v, dict)}
    first = ("method", "preset", "iterations", "source_path", "resolution", "eval", "seed")
    lead = [(k, _value(flat[k])) for k in first if k in flat]
    rest = [(k, _value(v)) for k, v in flat.items() if k not in first]
    tables = [pairs_table(rest, "Run")] if rest else []
    tables += [
        pairs_table([(k, _value(v)) for k, v in _flatten(part)], _spaced(name).capitalize())
        for name, part in nested.items()
        if part
    ]
    html = pairs_table(lead) if lead else ""
    if tables:
        html += details("All settings", f'<div class="columns">{"".join(tables)}</div>')
    return "Settings", html


SECTIONS: tuple[Section, ...] = (
    headline,
    training_curves,
    prunings,
    distributions,
    test_views,
    view_table,
    exports,
    machine_and_timing,
    settings_table,
)


def write_report(model_path: str | Path, *, sections: Sequence[Section] = SECTIONS) -> Path:
    """Write OUT/report.html.

    Args:
        model_path: The run's output folder, OUT.
        sections: What to show, in order.

    Returns:
        The file.

    Raises:
        SplatrimError: the folder is no run's output, a file of it is broken, or no place to write.
    """
    run = load_run(model_path)
    shown = [html for section in sections if (html := section(run)) is not None]
    settings = run.settings or run.history.get("settings", {})
    scene = Path(str(settings.get("source_path") or run.path)).name or str(run.path)
    title = f"{scene}: {settings['method']}" if settings.get("method") else scene
    if settings.get("preset"):
        title += f", {settings['preset']}"
    parts = [f"{run.iteration:,} iterations"] if run.iteration else []
    device = run.history.get("timing", {}).get("device") or run.stats.get("device")
    parts += [{"cpu": "CPU"}.get(str(device), str(device))] if device else []
    newest = max(
        (f.stat().st_mtime for f in run.path.glob("*.json")), default=run.path.stat().st_mtime
    )
    parts.append(datetime.fromtimestamp(newest).strftime("%Y-%m-%d %H:%M"))
    path = run.path / "report.html"
    write_text(path, page(title, " · ".join(parts), shown, f"splatrim · {run.path}"))
    return path


def choose_views(views: Sequence[View], count: int = MAX_VIEWS) -> list[View]:
    """Up to `count` views, worst PSNR first, evenly spread; in file order where not measured."""
    ordered = list(views)
    if all("PSNR" in v.scores for v in views):
        ordered.sort(key=lambda v: v.scores["PSNR"])
    if len(ordered) <= count:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]


def duration(seconds: float) -> tuple[str, str]:
    """Number and unit: 12.3 s, 4:05 min, 1:02 h."""
    if seconds < 59.95:
        return f"{seconds:.1f}", "s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}", "min"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d}", "h"


def _smoothed(name: str, x: Sequence[float], y: Sequence[float], window: int) -> list[Series]:
    if window < 2:
        return [Series(name, x, y)]
    return [Series(name, x, y, style="faint"), Series(name, x, moving_average(y, window))]


def _scores_text(scores: dict[str, float]) -> str:
    units = {"PSNR": ("{:.2f} dB", ""), "SSIM": ("{:.3f}", "SSIM "), "LPIPS": ("{:.3f}", "LPIPS ")}
    return " · ".join(
        label + text.format(scores[m]) for m, (text, label) in units.items() if m in scores
    )


def _flatten(part: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in part.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, value))
    return rows


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(v) for v in value) or "–"
    return str(value)


@dataclass(frozen=True)
class ReportConfig:
    """Which runs to report."""

    model_paths: Annotated[tuple[Path, ...], tyro.conf.arg(name="model_path", aliases=("-m",))]
    """Output folders of runs."""


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m gs.report`."""
    config: ReportConfig = tyro.cli(
        ReportConfig,
        args=sys.argv[1:] if args is None else args,
        description=__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
        use_underscores=True,
    )
    show_log(quiet=False)
    for path in config.model_paths:
        logger.info(f"report: {write_report(path)}")
