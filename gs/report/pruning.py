"""The report's sections on pruning: what the Gaussians are like, and what removing them costs.

Opacities come from the saved .ply, strategies' histograms from history.json (as of the last save),
and prunings by score from pruning.json: a list with, per pruning, its iteration, n_gaussians
before, n_left after, a histogram of the scores (edges, counts, n_zero) and a curve (ratio pruned,
n_gaussians left, psnr in dB, without refinement).
"""

from collections.abc import Sequence
from typing import Any

from .charts import Series, histogram_chart, line_chart
from .run import Run


def distributions(run: Run) -> tuple[str, str] | None:
    """Histograms over the Gaussians: opacity, and those of the strategies."""
    charts = []
    if run.opacities is not None:
        charts.append(
            histogram_chart(
                run.opacities["edges"],
                run.opacities["counts"],
                x_label="opacity",
                y_label="Gaussians by opacity",
            )
        )
    for name, histogram in run.histograms.items():
        label = histogram.get("label", name)
        charts.append(
            histogram_chart(
                histogram["edges"],
                histogram["counts"],
                x_label=label,
                y_label=f"Gaussians by {label}",
                color=2,
                log_y=True,  # nearly all are at one end
            )
        )
    drawn = "".join(charts)
    return ("Gaussians", f'<div class="charts">{drawn}</div>') if drawn else None


def prunings(run: Run) -> tuple[str, str] | None:
    """For every pruning by score: the scores, and quality over the share that goes."""
    parts = [_pruning(entry) for entry in run.prunings]
    return ("Pruning", "".join(parts)) if any(parts) else None


def chosen_point(entry: dict[str, Any]) -> tuple[float, float] | None:
    """Share that the pruning removed and its PSNR on the curve, which is linear between points.

    None where the curve does not reach that share.
    """
    total = entry.get("n_gaussians")
    curve = _points(entry)
    if not total or "n_left" not in entry or not curve:
        return None
    ratio = 1.0 - entry["n_left"] / total
    for (r0, p0), (r1, p1) in zip(curve, curve[1:], strict=False):
        if r0 <= ratio <= r1:
            share = (ratio - r0) / (r1 - r0) if r1 > r0 else 0.0
            return ratio, p0 + share * (p1 - p0)
    return next(((r, p) for r, p in curve if r == ratio), None)


def _pruning(entry: dict[str, Any]) -> str:
    charts = []
    scores = entry.get("histogram") or {}
    if scores.get("counts"):
        charts.append(
            histogram_chart(
                scores["edges"],
                scores["counts"],
                x_label="score, logarithmic",
                y_label="Gaussians by score",
                log_x=True,
            )
        )
    curve = _points(entry)
    chosen = chosen_point(entry)
    if curve:
        series = [Series("by score", *_percent(curve), style="points")]
        if chosen is not None:
            series.append(Series("this run", *_percent([chosen]), color=2, style="points"))
        charts.append(
            line_chart(
                series,
                x_label="Gaussians removed, %",
                y_label="PSNR, dB",
                y_format=lambda y: f"{y:.4g}",
            )
        )
    drawn = "".join(charts)
    return f'{_note(entry, scores)}<div class="charts">{drawn}</div>' if drawn else ""


def _note(entry: dict[str, Any], scores: dict[str, Any]) -> str:
    before, left = entry.get("n_gaussians"), entry.get("n_left")
    text = f"Iteration {entry['iteration']:,}: " if "iteration" in entry else ""
    if before and left is not None:
        text += f"{left:,} of {before:,} Gaussians stay, {100 * (1 - left / before):.1f} % go. "
    if scores.get("n_zero"):
        text += f"{scores['n_zero']:,} score 0 and are not drawn. "
    if entry.get("curve"):
        text += "The curve is of training views, right after pruning and without refinement."
    return f'<p class="note">{text.strip()}</p>' if text else ""


def _points(entry: dict[str, Any]) -> list[tuple[float, float]]:
    return sorted((p["ratio"], p["psnr"]) for p in entry.get("curve") or ())


def _percent(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [100 * ratio for ratio, _ in points], [psnr for _, psnr in points]
