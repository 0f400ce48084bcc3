"""The report's sections on test views: truth, rendering and error, and the figures of all."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from ..errors import SplatrimError
from ..evaluation.metrics import read_image
from ..evaluation.rendered import COUNTED
from .page import details, error_legend, error_map, figure, number_table, side_by_side, slider
from .run import Run, View

MAX_VIEWS, OPEN_VIEWS = 6, 3  # in the page, and shown before a click
ERROR_TOPS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
ERROR_QUANTILE = 0.98  # of the shown errors; the scale of the colours ends at or above it


def test_views(run: Run) -> tuple[str, str] | None:
    """Ground truth, rendering and error of a few views, from the worst to the best."""
    if not run.views:
        command = f"splatrim render {run.path}"
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
            slider(truth, "Ground truth", rendering, "Rendering"),
            figure(error_map(error, top), "Error"),
        ]
        rows.append(
            f'<div class="view"><div class="view-head"><h3>{escape(view.name)}</h3>'
            f"<span>{escape(_scores_text(view.scores))}</span></div>"
            f"{side_by_side(figures, width=truth.shape[1], height=truth.shape[0])}</div>"
        )
    which = "All" if len(chosen) == len(run.views) else f"{len(chosen)} of {len(run.views)}"
    order = " from the worst PSNR to the best" if chosen[0].scores.get("PSNR") else ""
    note = f"{which} test views{order}. Drag the line from the ground truth to the rendering."
    first = choose_views(chosen, OPEN_VIEWS)
    shown = [row for view, row in zip(chosen, rows, strict=True) if view in first]
    folded = [row for view, row in zip(chosen, rows, strict=True) if view not in first]
    more = details(f"{len(folded)} more test views", "".join(folded)) if folded else ""
    return "Test views", f'<p class="note">{note}</p>{error_legend(top)}{"".join(shown)}{more}'


def view_table(run: Run) -> tuple[str, str] | None:
    """The figures of every test view."""
    digits = {"PSNR": 2, "SSIM": 4, "LPIPS": 4, "FLIP": 4}
    fitted = ("PSNR", "SSIM", "LPIPS")
    digits |= {f"{name}{suffix}": digits[name] for suffix in ("_cc", "_half") for name in fitted}
    metrics = [m for m in digits if any(m in v.scores for v in run.views)]
    if not metrics:
        return None
    rows = [
        [v.name, *(f"{v.scores[m]:.{digits[m]}f}" if m in v.scores else "–" for m in metrics)]
        for v in run.views
    ]
    over = ", of the pixels that their masks let through" if COUNTED in run.results else ""
    summary = f"Figures of all {len(rows)} test views{over}"
    return "", details(summary, number_table(["View", *metrics], rows))


def choose_views(views: Sequence[View], count: int = MAX_VIEWS) -> list[View]:
    """Up to `count` views, worst PSNR first, evenly spread; in file order where not measured."""
    ordered = list(views)
    if all("PSNR" in v.scores for v in views):
        ordered.sort(key=lambda v: v.scores["PSNR"])
    if len(ordered) <= count:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]


def _scores_text(scores: dict[str, float]) -> str:
    units = {"PSNR": ("{:.2f} dB", ""), "SSIM": ("{:.3f}", "SSIM "), "LPIPS": ("{:.3f}", "LPIPS ")}
    return " · ".join(
        label + text.format(scores[m]) for m, (text, label) in units.items() if m in scores
    )
