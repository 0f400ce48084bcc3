"""A run in blocks in the report: the plan from above, curves per block, and seams."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from PIL import Image

from ..schema import fields, listed, maybe, number, read_checked, text
from .charts import Series, compact, line_chart, moving_average
from .page import details, figure, number_table, pairs_table
from .run import Run

MOST_CURVES = 8  # colours of the page
_RATIO = number(0, 1e9)
_SEAMS = fields(
    {
        "views": listed(
            fields(
                {
                    "name": text,
                    "border_share": number(0, 1),
                    "ratio": _RATIO,
                    "excess": maybe(_RATIO),
                },
                needs=("name", "border_share", "ratio", "excess"),
            )
        )
    },
    needs=("views",),
)


def blocks(run: Run) -> tuple[str, str] | None:
    """What each block has done, and whether borders show; None for one piece."""
    entries: list[dict[str, Any]] = [e for e in run.column("blocks") if isinstance(e, dict)]
    if not entries:
        return None
    parts = [_plan(run), _curves(entries), _table(entries), _seams(run)]
    note = (
        "A block's loss and PSNR are those of the part of each image that its own Gaussians reach."
    )
    return "Blocks", "".join([*parts[:2], f'<p class="note">{note}</p>', *parts[2:]])


def _plan(run: Run) -> str:
    path = run.path / "partition.png"
    if not path.is_file():
        return ""
    try:
        pixels = np.asarray(Image.open(path).convert("RGB"))
    except OSError:
        return ""
    return figure(pixels, "the blocks from above: cells, points and cameras by block")


def _curves(entries: list[dict[str, Any]]) -> str:
    shown, charts = entries[:MOST_CURVES], []
    for column, label, smooth in (("psnr", "PSNR, dB", True), ("n_gaussians", "Gaussians", False)):
        series = []
        for k, entry in enumerate(shown):
            history, steps = entry["history"], max(entry["steps"], 1)
            x = [100.0 * step / steps for step in history.get("step", [])]
            y = history.get(column, [])
            y = moving_average(y, max(1, len(y) // 40)) if smooth else y
            series.append(Series(f"block {entry['block']}", x, y, color=k + 1))
        form = (lambda v: f"{v:.4g}") if smooth else compact
        chart = line_chart(series, x_label="% of a block's steps", y_label=label, y_format=form)
        charts.append(chart)
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _table(entries: list[dict[str, Any]]) -> str:
    columns = ["Block", "Cameras", "Steps", "Gaussians", "PSNR, dB"]
    rows = []
    for entry in entries:
        last = entry["history"].get("psnr") or []
        rows.append(
            [
                str(entry["block"]),
                f"{entry['cameras']:,}",
                f"{entry['steps']:,}",
                f"{entry['n_gaussians']:,}",
                f"{last[-1]:.2f}" if last else "–",
            ]
        )
    return number_table(columns, rows)


def _seams(run: Run) -> str:
    path = run.path / "seams.json"
    if not path.is_file():
        return ""
    views = read_checked(path, _SEAMS)["views"]
    if not views:
        return '<p class="note">No test view shows a border between blocks.</p>'
    ratios = [view["ratio"] for view in views]
    excesses = [view["excess"] for view in views if view["excess"] is not None]
    rows = [("Error at borders over that elsewhere", f"{statistics.fmean(ratios):.3f}")]
    if excesses:
        mean, worst = statistics.fmean(excesses), max(excesses)
        rows.append(("The same over that of one piece", f"{mean:.3f}, worst view {worst:.3f}"))
    cells = [
        [
            view["name"],
            f"{view['border_share']:.1%}",
            f"{view['ratio']:.3f}",
            "–" if view["excess"] is None else f"{view['excess']:.3f}",
        ]
        for view in views
    ]
    columns = ["View", "Border pixels", "Error there over elsewhere", "Over that of one piece"]
    note = (
        "Border pixels are within 8 pixels of a change of the block that weighs most; errors are"
        " mean squares. 1 in the last column: borders show no more than what lies there anyway."
    )
    table = details("Seams by view", number_table(columns, cells))
    return f'{pairs_table(rows, "Seams")}<p class="note">{note}</p>{table}'
