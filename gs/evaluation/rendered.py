"""Rendered views of a run's models, and whether they still are of the models that are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..run_record import read_record
from ..schema import fields, integer, listed, mapped, number, read_checked, text

STATS = "render_stats.json"
RESULTS, PER_VIEW = "results.json", "per_view.json"
MASKS = "masks"  # folder beside that of the renderings
CORRECTED = "PSNR_cc"  # of renderings whose colours were fitted to the truth
COUNTED = "counted"  # share of the pixels that metrics are over, beside them where it is not 1

_SPLIT = fields({"views": listed(text), **dict.fromkeys(("psnr", "ssim", "l1"), number())})
_STATS = mapped(
    fields(
        {
            "model": text,
            "device": text,
            "n_gaussians": integer(0),
            "ply_bytes": integer(0),
            "width": integer(1),
            "height": integer(1),
            "test_poses": text,
            "fps": number(0),
            "ms": number(0),
            "test": _SPLIT,
            "train": _SPLIT,
        }
    )
)
_RESULTS = mapped(mapped(number()))
_PER_VIEW = mapped(mapped(mapped(number())))


def method_name(iteration: int) -> str:
    """The name of a model's renderings and figures, as in the original code."""
    return f"ours_{iteration}"


def read_stats(folder: Path) -> dict[str, Any]:
    """render_stats.json by method; {} where it is missing. Raises SplatrimError if broken."""
    path = folder / STATS
    return read_checked(path, _STATS) if path.is_file() else {}


def read_results(folder: Path) -> dict[str, dict[str, float]]:
    """results.json, figures by method and metric; {} where it is missing.

    Raises:
        SplatrimError: it is broken.
    """
    path = folder / RESULTS
    return read_checked(path, _RESULTS) if path.is_file() else {}


def read_per_view(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """per_view.json, figures by method, metric and file name; {} where it is missing.

    Raises:
        SplatrimError: it is broken.
    """
    path = folder / PER_VIEW
    return read_checked(path, _PER_VIEW) if path.is_file() else {}


def mark_of(folder: Path, iteration: int) -> str:
    """The mark of a saved model; "" where the folder has no record."""
    record = read_record(folder)
    return "" if record is None else record.models.get(iteration, "")


def is_current(folder: Path, method: str, stats: dict[str, Any]) -> bool:
    """Whether renderings called `method` are of a model that the run has, as it is saved now.

    Args:
        folder: The run's.
        method: "ours_N".
        stats: What `read_stats` gave.
    """
    record = read_record(folder)
    if record is None:  # of another program
        return True
    marks = {method_name(i): mark for i, mark in record.models.items()}
    return method in marks and stats.get(method, {}).get("model", "") == marks[method]
