"""The report's section on refined poses: how far every image's has moved, and what tests had."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ..evaluation.poses_file import SAID, read_poses
from ..run_record import model_file
from .charts import histogram_chart
from .page import details, number_table, pairs_table
from .run import Run

BINS = 20
SHOWN = 10  # images that moved most


def poses(run: Run) -> tuple[str, str] | None:
    """Angles and distances that cameras moved by; None where poses were not refined."""
    if run.iteration is None:
        return None
    found = read_poses(model_file(run.path, run.iteration))
    if found is None or not found["cameras"]:
        return None
    extent = found["extent"] or 1.0
    entries: list[dict[str, Any]] = [
        {**entry, "percent": 100.0 * entry["distance"] / extent} for entry in found["cameras"]
    ]
    train = [entry for entry in entries if entry["split"] == "train"]
    test = [entry for entry in entries if entry["split"] == "test"]
    rows = []
    for name, those in (("Training images", train), ("Test images", test)):
        if those:
            rows.append((f"{name}: turned by", _spread(those, "degrees", "°")))
            rows.append((f"{name}: shifted by", _spread(those, "percent", " % of the extent")))
    html = f'<p class="note">Camera poses were refined; {SAID[found["test_poses"]]}.</p>'
    charts = [_chart(train, "degrees", "degrees"), _chart(train, "percent", "% of the extent")]
    html += pairs_table(rows) + f'<div class="charts">{"".join(charts)}</div>'
    most = sorted(entries, key=lambda entry: -entry["degrees"])[:SHOWN]
    table = number_table(
        ["Image", "Split", "Degrees", "% of the extent"],
        [[e["name"], e["split"], f"{e['degrees']:.3f}", f"{e['percent']:.3f}"] for e in most],
    )
    return "Camera poses", html + details("Images that turned most", table)


def _spread(entries: Sequence[dict[str, Any]], key: str, unit: str) -> str:
    """Median and largest."""
    values = [entry[key] for entry in entries]
    return f"{statistics.median(values):.3f}{unit} (median), {max(values):.3f}{unit} at most"


def _chart(entries: Sequence[dict[str, Any]], key: str, label: str) -> str:
    """Images by how far they moved."""
    values = [entry[key] for entry in entries]
    top = max(values, default=0.0) or 1.0
    counts = [0] * BINS
    for value in values:
        counts[min(int(BINS * value / top), BINS - 1)] += 1
    edges = [top * k / BINS for k in range(BINS + 1)]
    return histogram_chart(edges, counts, x_label=label, y_label="training images")
