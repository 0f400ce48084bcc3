"""report.html: what a run did, on one page that one can send: `python -m gs.report -m OUT`.

It shows what is there: of history.json, config.json, results.json, per_view.json,
render_stats.json, pruning.json, bake.json, poses.json, seams.json, views and models any may be
missing. A section is a function of the run's data that returns its heading and HTML, or None where
it has nothing to show; `SECTIONS` lists them in order.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..command_line import read_settings_of
from ..errors import SplatrimError
from ..evaluation.readable import duration, milliseconds
from ..files import write_text
from ..logs import show_log
from .baking import baking
from .blocks import blocks
from .charts import Series, compact, line_chart, moving_average
from .comparison import write_comparison
from .exports import exports
from .headline import headline, with_baseline
from .model_view import model_view
from .page import details, page, pairs_table
from .photographs import corrections, masks
from .poses import poses
from .pruning import distributions, prunings
from .ranks import ranks
from .run import Run, load_run
from .views import test_views, view_table

logger = logging.getLogger("splatrim")

Section = Callable[[Run], tuple[str, str] | None]


def training_curves(run: Run) -> tuple[str, str] | None:
    """Loss, PSNR and the number of Gaussians over the iterations, the baseline's beside them."""
    steps, base = run.column("step"), run.baseline
    if not steps:
        return None
    window = max(1, len(steps) // 40)
    charts = [
        line_chart(
            _smoothed("training views", steps, run.column("loss"), window),
            x_label="iteration",
            y_label="Loss",
            log_y=True,
        )
    ]
    series = _smoothed("training", steps, run.column("psnr"), window)
    series.append(Series("test", *run.test_psnr(), color=2, style="points"))
    if base is not None:
        name = f"{base.method_name}, test"
        series.append(Series(name, *base.test_psnr(), color=3, style="points"))
    charts.append(
        line_chart(series, x_label="iteration", y_label="PSNR, dB", y_format=lambda y: f"{y:.4g}")
    )
    total, used = run.column("n_gaussians"), run.column("n_used")
    series = [Series("all", steps, total)]
    if any(u != n for u, n in zip(used, total, strict=False)):
        series.append(Series("in use", steps, used, color=2))
    if base is not None:
        counts = base.column("n_gaussians")
        series.append(Series(base.method_name, base.column("step"), counts, color=3))
    charts.append(
        line_chart(
            series, x_label="iteration", y_label="Gaussians", y_format=compact, from_zero=True
        )
    )
    drawn = "".join(charts)
    return ("Training", f'<div class="charts">{drawn}</div>') if drawn else None


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
        rows.append(("Rendering a view", f"{milliseconds(run.stats['ms'])} (median), {device}"))
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
    model_view,
    test_views,
    view_table,
    corrections,
    masks,
    training_curves,
    blocks,
    prunings,
    distributions,
    poses,
    baking,
    exports,
    machine_and_timing,
    ranks,
    settings_table,
)


def write_report(
    model_path: str | Path,
    *,
    sections: Sequence[Section] = SECTIONS,
    baseline: str | Path | None = None,
) -> Path:
    """Write OUT/report.html, and OUT/view.html where the 3D view is too large for it.

    Args:
        model_path: The run's output folder, OUT.
        sections: What to show, in order.
        baseline: Output folder of the run to compare with; None: OUT/baseline if it is there.

    Returns:
        The file.

    Raises:
        SplatrimError: the folder is no run's output, a file of it is broken, or no place to write.
    """
    run = with_baseline(load_run(model_path), None if baseline is None else Path(baseline))
    shown = [html for section in sections if (html := section(run)) is not None]
    parts = [f"{run.iteration:,} iterations"] if run.iteration else []
    device = run.history.get("timing", {}).get("device") or run.stats.get("device")
    parts += [{"cpu": "CPU"}.get(str(device), str(device))] if device else []
    newest = max(
        (f.stat().st_mtime for f in run.path.glob("*.json")), default=run.path.stat().st_mtime
    )
    parts.append(datetime.fromtimestamp(newest).strftime("%Y-%m-%d %H:%M"))
    path = run.path / "report.html"
    write_text(path, page(run.title, " · ".join(parts), shown, f"splatrim · {run.path}"))
    return path


def _smoothed(name: str, x: Sequence[float], y: Sequence[float], window: int) -> list[Series]:
    if window < 2:
        return [Series(name, x, y)]
    return [Series(name, x, y, style="faint"), Series(name, x, moving_average(y, window))]


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
    """Which runs to report. Several are compared on one page, too."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Output folders of runs, as an alternative to -m."""
    model_paths: Annotated[tuple[Path, ...], tyro.conf.arg(name="model_path", aliases=("-m",))] = ()
    """Output folders of runs."""
    baseline: Path | None = None
    """Output folder of the run to compare with, such as 3DGS; by default OUT/baseline, if there."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """The page on several runs; by default comparison.html in the folder that holds them all."""


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m gs.report`."""
    config = read_settings_of(ReportConfig, args, __doc__, with_negations=True)
    show_log(quiet=False)
    paths = (*config.folders, *config.model_paths)
    if not paths:
        raise SplatrimError("which run is to be reported? Give its output folder")
    if config.output is not None and len(paths) == 1:
        raise SplatrimError("--output is the page on several runs, and there is one run")
    for path in paths:
        logger.info(f"report: {write_report(path, baseline=config.baseline)}")
    if len(paths) > 1:
        logger.info(f"comparison: {write_comparison(paths, config.output)}")
