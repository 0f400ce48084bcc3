"""The ranks of a run in the report: what each held, sent and took its time with."""

from __future__ import annotations

from typing import Any

from .page import number_table
from .run import Run

PHASES = ("project", "picture", "finish", "update", "exchange")


def ranks(run: Run) -> tuple[str, str] | None:
    """A row per rank; None where there was one."""
    entries = run.column("ranks")
    found: list[dict[str, Any]] = [entry for entry in entries if isinstance(entry, dict)]
    if not found:
        return None
    columns = ["Rank", "Device", "Gaussians", "Sent, MB", *(f"{p}, s" for p in PHASES)]
    columns.append("Peak memory, MB")
    rows = []
    for entry in found:
        seconds = entry.get("seconds", {})
        cells = [str(entry.get("rank", "–")), str(entry.get("device", "–"))]
        cells += [_number(entry.get("n_gaussians")), _number(entry.get("sent_mb"))]
        cells += [f"{seconds[p]:.1f}" if p in seconds else "–" for p in PHASES]
        rows.append([*cells, _number(entry.get("peak_memory_mb"))])
    note = (
        "Each rank has a part of the Gaussians. It projects them, renders its part of the images,"
        " finds the gradients of its Gaussians and updates them; in between, ranks exchange"
        " records, and wait for the slowest."
    )
    return "Ranks", f'<p class="note">{note}</p>{number_table(columns, rows)}'


def _number(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, (int, float)) else "–"
