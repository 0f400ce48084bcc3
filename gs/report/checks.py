"""What history.json and pruning.json must hold to be drawn."""

from __future__ import annotations

from typing import Any

from ..schema import Mismatch, anything, fields, integer, listed, mapped, maybe, number, text

COLUMNS = ("step", "loss", "psnr", "n_gaussians", "n_used", "seconds")
TINIEST = 1e-300  # of what is drawn on a logarithmic axis
DRAWN = 1e100  # more than that is no result of a training

_VALUE = number(-DRAWN, DRAWN, is_finite=False)  # training may diverge
_TIMING = fields(
    {
        **dict.fromkeys(("train_seconds", "iterations_per_second"), number(0, DRAWN)),
        **dict.fromkeys(("peak_memory_mb", "peak_reserved_mb"), number(0, DRAWN)),
    }
)
_TEST = fields({"step": integer(0), "psnr": _VALUE, "l1": _VALUE})
_RANK = fields(
    {
        "rank": integer(0),
        "device": text,
        "n_gaussians": integer(0),
        **dict.fromkeys(("sent_mb", "peak_memory_mb"), number(0, DRAWN)),
        "seconds": mapped(number(0, DRAWN)),
    }
)
_BLOCK = fields(
    {
        **dict.fromkeys(("block", "rank", "steps", "cameras", "n_gaussians"), integer(0)),
        "history": fields(
            {
                **dict.fromkeys(COLUMNS, listed(number(0, DRAWN))),
                **dict.fromkeys(("loss", "psnr"), listed(_VALUE)),
            }
        ),
    },
    needs=("block", "steps", "cameras", "n_gaussians", "history"),
)
_HISTORY = fields(
    {
        **dict.fromkeys(COLUMNS, listed(number(0, DRAWN))),
        **dict.fromkeys(("loss", "psnr"), listed(_VALUE)),
        "test": listed(_TEST),
        "timing": _TIMING,
        "settings": mapped(anything),
        "ranks": listed(_RANK),
        "blocks": listed(_BLOCK),
    }
)


def history(value: Any, where: str) -> None:
    """Columns of one length or empty, evaluations, timing, and histograms by their names."""
    _HISTORY(value, where)
    lengths = {len(value[name]) for name in COLUMNS if value.get(name)}
    if len(lengths) > 1:
        raise Mismatch("its columns differ in length")
    for name, entry in value.items():
        if is_histogram(entry):
            histogram()(entry, name)


def is_histogram(entry: Any) -> bool:
    """Whether an entry of the history is a histogram."""
    return isinstance(entry, dict) and {"edges", "counts"} <= entry.keys()


def histogram(low: float = -DRAWN) -> Any:
    """A check of counts between ascending edges, all of which are at least `low`."""
    parts = fields(
        {
            "edges": listed(number(low, DRAWN)),
            "counts": listed(integer(0)),
            "label": text,
            "n_zero": integer(0),
        },
        needs=("edges", "counts"),
    )

    def check(value: Any, where: str) -> None:
        parts(value, where)
        edges, counts = value["edges"], value["counts"]
        if len(edges) != len(counts) + 1 and (edges or counts):
            raise Mismatch(f"{where}: expected one edge more than counts")
        if any(a >= b for a, b in zip(edges, edges[1:], strict=False)):
            raise Mismatch(f"{where}: expected ascending edges")

    return check


_POINT = fields(
    {"ratio": number(0, 1), "n_gaussians": integer(0), "psnr": _VALUE}, needs=("ratio", "psnr")
)
PRUNINGS = listed(
    fields(
        {
            "iteration": integer(0),
            "n_gaussians": integer(0),
            "n_left": integer(0),
            "histogram": maybe(histogram(TINIEST)),
            "curve": maybe(listed(_POINT)),
        }
    )
)
