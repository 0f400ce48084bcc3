"""Tables of a sweep, from the figures of its runs.

For each run

    ratio = 1 - Gaussians / Gaussians of 3dgs       of the same scene and seed
    difference = PSNR - PSNR of 3dgs                likewise, dB

Seeds are averaged per scene and method, and with several seeds PSNR shows the standard deviation
over them; where a method has finished on all of several scenes, a last group has its means.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

BASELINE = "3dgs"
AVERAGED = (
    "psnr",
    "difference",
    "ssim",
    "lpips",
    "n_gaussians",
    "ratio",
    "ply_bytes",
    "train_seconds",
    "peak_memory_mb",
    "energy_joules",
    "fps",
)
ENERGY = "energy, kJ"  # where a GPU tells
COLUMNS = (
    "Method",
    "PSNR",
    "to 3dgs",
    "SSIM",
    "LPIPS",
    "Gaussians",
    "ratio",
    "size, MB",
    "training",
    "peak memory, MB",
    ENERGY,
    "frames/s",
)
MEAN_OF_SCENES = "Mean of all scenes"

Row = dict[str, Any]


def with_ratios(runs: Sequence[Row]) -> list[Row]:
    """The runs, each finished one with `ratio` and `difference` where its 3dgs run has finished."""
    baselines = {
        (run["scene"], run["seed"]): run
        for run in runs
        if run["method"] == BASELINE and "error" not in run
    }
    rows = []
    for run in runs:
        base = baselines.get((run["scene"], run["seed"]))
        if base is not None and "error" not in run:
            ratio = 1.0 - run["n_gaussians"] / base["n_gaussians"]
            run = {**run, "ratio": ratio, "difference": run["psnr"] - base["psnr"]}
        rows.append(run)
    return rows


def summarize(runs: Sequence[Row]) -> list[Row]:
    """One row per scene and method, in the order of the runs, averaged over seeds.

    Returns:
        Rows with scene, method, n_seeds, means of the figures, psnr_std (None for one seed), curves
        (of PSNR over seconds, by seed), times_comparable, devices, and errors, a list of
        "seed K: line".
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for run in with_ratios(runs):
        groups.setdefault((run["scene"], run["method"]), []).append(run)
    rows = []
    for (scene, method), members in groups.items():
        done = [run for run in members if "error" not in run]
        values = [run["psnr"] for run in done]
        row = {
            "scene": scene,
            "method": method,
            "n_seeds": len(done),
            **_means(done),
            "psnr_std": statistics.stdev(values) if len(values) > 1 else None,
            "curves": [run["curve"] for run in done if run.get("curve")],
            "times_comparable": all(run.get("times_comparable", True) for run in done),
            "devices": sorted({run["device"] for run in done if run.get("device")}),
            "errors": [f"seed {run['seed']}: {run['error']}" for run in members if "error" in run],
        }
        rows.append(row)
    return rows


def mean_of_scenes(rows: Sequence[Row]) -> list[Row]:
    """Means over scenes, of the methods that have finished on all of them; [] for one scene."""
    scenes = {row["scene"] for row in rows}
    if len(scenes) < 2:
        return []
    means = []
    for method in dict.fromkeys(row["method"] for row in rows):
        members = [row for row in rows if row["method"] == method and row["n_seeds"]]
        if len(members) == len(scenes):
            comparable = all(row["times_comparable"] for row in members)
            mean = {"scene": MEAN_OF_SCENES, "method": method, "n_seeds": 0, **_means(members)}
            mean |= {"psnr_std": None, "times_comparable": comparable, "errors": []}
            means.append(mean)
    return means


def markdown(rows: Sequence[Row], remarks: Sequence[str] = ()) -> str:
    """A table per scene, one line per method, failures below it; remarks and notes in the end."""
    rows = [*rows, *mean_of_scenes(rows)]
    has_energy = any(row.get("energy_joules") is not None for row in rows)
    columns = [name for name in COLUMNS if has_energy or name != ENERGY]
    parts: list[str] = []
    for scene in dict.fromkeys(row["scene"] for row in rows):
        members = [row for row in rows if row["scene"] == scene]
        lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
        lines += [f"| {' | '.join(_cells(row, columns))} |" for row in members]
        failed = [f"- {r['method']}, {error}" for r in members for error in r["errors"]]
        parts += [f"## {scene}", "\n".join(lines)]
        if failed:
            parts += ["Failed:", "\n".join(failed)]
    notes = [*(["\n".join(f"- {remark}" for remark in remarks)] * bool(remarks)), *_notes(rows)]
    return "\n\n".join([*parts, *notes]) + "\n"


def _means(rows: Sequence[Row]) -> Row:
    """Means of the figures that all rows have, else None."""
    means: Row = {}
    for name in AVERAGED:
        values = [row.get(name) for row in rows]
        known = [v for v in values if v is not None and math.isfinite(v)]
        whole = bool(known) and len(known) == len(values)
        means[name] = math.fsum(known) / len(known) if whole else None
    return means


def _cells(row: Row, columns: Sequence[str]) -> list[str]:
    if row["psnr"] is None:
        return [row["method"], "failed", *["–"] * (len(columns) - 2)]
    psnr = f"{row['psnr']:.2f}"
    if row["psnr_std"] is not None:
        psnr += f" ± {row['psnr_std']:.2f}"
    base = row["method"] == BASELINE
    mark = "" if row["times_comparable"] else " *"
    size, energy = row["ply_bytes"], row.get("energy_joules")
    cells = [
        row["method"],
        psnr,
        "" if base else _text(row["difference"], "{:+.2f}"),
        _text(row["ssim"], "{:.4f}"),
        _text(row["lpips"], "{:.4f}"),
        f"{round(row['n_gaussians']):,}",
        "" if base else _text(row["ratio"], "{:.1%}"),
        _text(None if size is None else size / 1e6, "{:.1f}"),
        _text(row["train_seconds"], "{:.1f} s") + mark,
        _text(row["peak_memory_mb"], "{:,.0f}"),
        _text(None if energy is None else energy / 1e3, "{:.1f}") + mark,
        _text(row["fps"], "{:,.4g}") + mark,
    ]
    return [cell for name, cell in zip(COLUMNS, cells, strict=True) if name in columns]


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [
        "PSNR, SSIM and LPIPS: means over the test views, from 8-bit renderings of the saved .ply. "
        "ratio: 1 - Gaussians / Gaussians of 3dgs. MB: 10^6 bytes. Peak memory: allocated on the "
        "GPU by training (without one: resident memory of the process). frames/s: median over test "
        "views."
    ]
    if any(row.get("energy_joules") is not None for row in rows):
        notes.append("Energy: of the whole GPU, from the training's start as a process to its end.")
    devices = sorted({device for row in rows for device in row.get("devices", ())})
    if devices:
        notes.append(f"Device: {', '.join(devices)}.")
    if any(row["method"].startswith("post:") for row in rows):
        notes.append("post: starts from the 3dgs model; its training time is without that of 3dgs.")
    if any(row["psnr_std"] is not None for row in rows):
        notes.append("±: standard deviation over seeds; all figures are means over seeds.")
    if any(not row["times_comparable"] for row in rows):
        notes.append(
            "\\* several runs shared the device: these times are not comparable with others."
        )
    return notes
