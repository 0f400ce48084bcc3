"""Plots of a sweep, a panel per scene: PSNR over Gaussians, and over seconds of training.

Variants of a method that differ in the values of their flags alone ("+budget=200000",
"+budget=400000") are one curve, and have one colour. Over seconds, a run's own evaluations are a
thin line to its end: `-- --test_iterations 1000 3000 7000 15000 30000` makes some.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gs.files import atomic_write
from gs.report.charts import compact

Row = Mapping[str, Any]

MARKERS = "osD^vPX"
COLORS = 10  # of matplotlib's cycle


def family(method: str) -> str:
    """What methods have in common that differ in values of flags."""
    return re.sub(r"=[^+]*", "=...", method)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw PSNR over the number of Gaussians. Raises SplatrimError as gs.files does."""
    _plot(rows, path, "n_gaussians", "Gaussians", compact)


def plot_seconds(rows: Sequence[Row], path: Path) -> None:
    """Draw PSNR over seconds of training. Raises SplatrimError as gs.files does."""
    _plot(rows, path, "train_seconds", "seconds of training", lambda x: f"{x:g}", curves=True)


def curve_of(history: Mapping[str, Any]) -> list[list[float]]:
    """Seconds and PSNR of a run's evaluations: history.json has the seconds of its log's steps."""
    steps, seconds = history.get("step") or [], history.get("seconds") or []
    points: list[list[float]] = []
    for test in history.get("test") or []:
        after = [k for k, step in enumerate(steps) if step >= test["step"]]
        if not steps:
            continue
        k = after[0] if after else len(steps) - 1
        k0 = max(k - 1, 0)
        span = steps[k] - steps[k0]
        share = min(max((test["step"] - steps[k0]) / span, 0.0), 1.0) if span else 1.0
        points.append([seconds[k0] + share * (seconds[k] - seconds[k0]), test["psnr"]])
    return points


def _plot(
    rows: Sequence[Row],
    path: Path,
    x: str,
    label: str,
    form: Callable[[float], str],
    *,
    curves: bool = False,
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    done = [row for row in rows if row["n_seeds"] and row[x] is not None]
    scenes = list(dict.fromkeys(row["scene"] for row in done))
    methods = list(dict.fromkeys(row["method"] for row in done))
    families = list(dict.fromkeys(map(family, methods)))
    across = min(3, max(1, len(scenes)))
    down = max(1, math.ceil(len(scenes) / across))
    figure = Figure(figsize=(max(4.4 * across, 6.0), 3.6 * down + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    keys: dict[str, Any] = {}
    for place, scene in enumerate(scenes):
        axes = figure.add_subplot(down, across, place + 1)
        there = [row for row in done if row["scene"] == scene]
        for name in families:
            i = families.index(name)
            members = sorted((r for r in there if family(r["method"]) == name), key=lambda r: r[x])
            if not members:
                continue
            keys[name if len(members) > 1 else members[0]["method"]] = axes.errorbar(
                [row[x] for row in members],
                [row["psnr"] for row in members],
                yerr=[row["psnr_std"] or 0.0 for row in members],
                color=f"C{i % COLORS}",
                marker=MARKERS[i // COLORS % len(MARKERS)],
                markersize=7,
                linestyle="-" if len(members) > 1 else "none",
                capsize=3,
            )
            for curve in (c for row in members if curves for c in row.get("curves") or [] if c):
                axes.plot(*zip(*curve, strict=True), color=f"C{i % COLORS}", linewidth=0.8)
        axes.set_title(scene, fontsize=11)
        axes.set_xlabel(label)
        axes.set_ylabel("PSNR, dB")
        axes.set_xlim(left=0)
        axes.margins(x=0.12, y=0.15)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    if keys:
        figure.legend(
            keys.values(),
            keys.keys(),
            loc="outside lower center",
            ncols=min(2 * across, len(keys)),
            frameon=False,
            fontsize=9,
        )
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
