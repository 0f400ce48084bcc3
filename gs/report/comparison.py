"""Several runs on one page: `python -m gs.report OUT1 OUT2 ...` writes comparison.html.

A table of their figures, quality over size, their curves over one another, and test views with a
line to drag between any two of truth and renderings.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..errors import SplatrimError
from ..evaluation.metrics import read_image
from ..evaluation.readable import duration, milliseconds
from ..files import write_text
from .charts import Series, compact, line_chart, smoothed
from .page import page, picker, run_table
from .run import Run, load_run
from .views import choose_views

FILE = "comparison.html"
MAX_RUNS = 8  # series colours
MAX_VIEWS = 4


def write_comparison(model_paths: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write one page on several runs.

    Args:
        model_paths: Their output folders, two to MAX_RUNS, in the order of the table.
        output: The page; None: comparison.html in the folder that holds them all.

    Returns:
        The page.

    Raises:
        SplatrimError: too few or too many runs, one of them is no run, or no place to write.
    """
    if not 2 <= len(model_paths) <= MAX_RUNS:
        raise SplatrimError(f"a comparison is of 2 to {MAX_RUNS} runs, not of {len(model_paths)}")
    runs = [load_run(path) for path in model_paths]
    if output is None:
        parents = [run.path.absolute().parent for run in runs]
        output = Path(os.path.commonpath(parents)) / FILE
    names = labels(runs)
    folder = Path(output).absolute().parent
    parts = [("", _table(runs, names, folder)), ("Curves", _curves(runs, names))]
    parts += [("Test views", views)] if (views := _views(runs, names)) else []
    scenes = {Path(str(run.settings.get("source_path") or run.path)).name for run in runs}
    title = f"{len(runs)} runs of {scenes.pop()}" if len(scenes) == 1 else f"{len(runs)} runs"
    note = "They are of different scenes: figures do not compare." if scenes else ""
    footer = "splatrim · " + ", ".join(str(run.path) for run in runs)
    write_text(output, page(title, note, [(h, html) for h, html in parts if html], footer))
    return Path(output)


def labels(runs: Sequence[Run]) -> list[str]:
    """Names of runs, each of its own: the method, with preset or folder where methods repeat."""
    ways = (
        lambda run: run.method_name,
        lambda run: f"{run.method_name}, {run.settings.get('preset', run.path.name)}",
        lambda run: f"{run.method_name} ({run.path.absolute().name})",
    )
    for way in ways:
        names = [way(run) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [str(run.path) for run in runs]


def _table(runs: Sequence[Run], names: Sequence[str], folder: Path) -> str:
    columns: list[tuple[str, list[float | None], str, int]] = [
        ("Gaussians", [run.n_gaussians for run in runs], "{:,}", -1),
        ("PSNR, dB", [run.psnr for run in runs], "{:.2f}", 1),
        ("SSIM", [run.results.get("SSIM") for run in runs], "{:.3f}", 1),
        ("LPIPS", [run.results.get("LPIPS") for run in runs], "{:.3f}", -1),
        ("FLIP", [run.results.get("FLIP") for run in runs], "{:.3f}", -1),
        (".ply, MB", [run.ply_bytes and run.ply_bytes / 1e6 for run in runs], "{:.2f}", -1),
    ]
    shown = [column for column in columns if any(v is not None for v in column[1])]
    heads = ["Run", *(name for name, *_ in shown), "Training", "A view", ""]
    rows = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        cells = [f'<span class="key s{i + 1}">{escape(name)}</span>']
        for _, values, text, better in shown:
            value = values[i]
            cell = "–" if value is None else text.format(value)
            known = [v * better for v in values if v is not None]
            best = value is not None and len(known) > 1 and value * better == max(known)
            cells.append(f"<b>{cell}</b>" if best else cell)
        seconds = run.history.get("timing", {}).get("train_seconds")
        cells.append("–" if seconds is None else " ".join(duration(seconds)))
        cells.append(milliseconds(run.stats["ms"]) if "ms" in run.stats else "–")
        cells.append(_links(run, folder))
        rows.append(cells)
    return run_table(heads, rows)


def _links(run: Run, folder: Path) -> str:
    path = run.path.absolute() / "report.html"
    if not path.is_file():
        return ""
    return f'<a href="{escape(Path(os.path.relpath(path, folder)).as_posix())}">report</a>'


def _curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    numbered = list(enumerate(zip(runs, names, strict=True), start=1))
    sizes = [
        Series(name, [run.n_gaussians], [run.psnr], color=i, style="points")
        for i, (run, name) in numbered
        if run.n_gaussians is not None and run.psnr is not None
    ]
    counts = [
        Series(n, r.column("step"), r.column("n_gaussians"), color=i) for i, (r, n) in numbered
    ]
    psnr, loss = (
        [Series(n, r.column("step"), smoothed(r.column(column)), color=i) for i, (r, n) in numbered]
        for column in ("psnr", "loss")
    )
    step = "iteration"
    charts = [
        line_chart(sizes, x_label="Gaussians", y_label="PSNR of test views, dB", x_from_zero=True),
        line_chart(counts, x_label=step, y_label="Gaussians", y_format=compact, from_zero=True),
        line_chart(psnr, x_label=step, y_label="PSNR of training views, dB"),
        line_chart(loss, x_label=step, y_label="Loss", log_y=True),
    ]
    drawn = "".join(charts)
    return f'<div class="charts two">{drawn}</div>' if drawn else ""


def _views(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Views that all runs have rendered, those first that the first run does worst."""
    by_run = [{view.name: view for view in run.views} for run in runs]
    common = [view for view in runs[0].views if all(view.name in found for found in by_run)]
    blocks = []
    for view in choose_views(common, MAX_VIEWS) if common else []:
        found = [views[view.name] for views in by_run]
        images = [("Ground truth", read_image(view.truth).numpy())]
        images += [
            (_caption(name, own.scores), read_image(own.rendering).numpy())
            for name, own in zip(names, found, strict=True)
        ]
        if len({pixels.shape for _, pixels in images}) == 1:
            blocks.append(
                f'<div class="view"><div class="view-head"><h3>{escape(view.name)}</h3></div>'
                f"{picker(images)}</div>"
            )
    if not blocks:
        return ""
    return (
        '<p class="note">Choose what stands on either side of the line, and drag it.</p>'
        f'<div class="columns two">{"".join(blocks)}</div>'
    )


def _caption(name: str, scores: dict[str, float]) -> str:
    psnr = scores.get("PSNR", math.nan)
    return f"{name}, {psnr:.2f} dB" if math.isfinite(psnr) else name
