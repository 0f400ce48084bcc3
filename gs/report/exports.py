"""The report's section on files to send: each exported file's size and what it costs in PSNR."""

from ..evaluation.exported import read_exports
from .page import number_table
from .run import Run


def exports(run: Run) -> tuple[str, str] | None:
    """A row per file beside the model's own .ply; None where nothing has been exported.

    Raises:
        SplatrimError: exports.json is broken.
    """
    found = read_exports(run.path, run.iteration) if run.iteration is not None else {}
    if not found:
        return None
    first = next(iter(found.values()))
    own = f"{first['ply_bytes'] / 1e6:.2f}"
    rows = [["point_cloud.ply", own, "", _decibels(first.get("ply_psnr")), ""]]
    for entry in found.values():
        before, after = entry.get("ply_psnr"), entry.get("psnr")
        change = None if before is None or after is None else round(after - before, 2) + 0.0
        rows.append(
            [
                entry["file"],
                f"{entry['bytes'] / 1e6:.2f}",
                f"{entry['bytes'] / max(entry['ply_bytes'], 1):.0%}",
                _decibels(after),
                "" if change is None else f"{change:+.2f}",
            ]
        )
    return "Files to send", number_table(("File", "MB", "of .ply", "PSNR, dB", "change"), rows)


def _decibels(psnr: float | None) -> str:
    return "" if psnr is None else f"{psnr:.2f}"
