"""How the time of a training iteration grows with the number of Gaussians and of pixels.

    python -m bench.scaling [--out FOLDER] [--memory_limit 24]

Gaussians: the garden points of bench.scenes on grids of 1x1 to 7x7 (0.1M to 5.5M) at 1296x840.
Pixels: the 3x3 grid (1.0M) at 0.5 to 8 megapixels, the same view. Each series gets a line by least
squares, time = a + b x, and its R^2 = 1 - residual / total sum of squares; a line that fits says
that nothing in an iteration grows faster than its input. Times are bench.train_step's wall times.
FOLDER gets scaling.json, .md and .png.

`--memory_limit GIB` instead trains 5.5M Gaussians at 1944x1260 with torch's allocator held to that
much of the GPU and reports the peak (scaling_memory.json); it fails where that is not enough. The
driver's own context, some 0.5 GiB, is not torch's and not counted.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.scenes import Workload, garden, load
from bench.train_step import about_machine
from bench.training import (
    build_trainer,
    counts,
    forget_peak,
    random_workload,
    run_steps,
    seconds_per_step,
)
from gs.config import resolve_device
from gs.errors import SplatrimError, run_cli
from gs.files import atomic_write, write_json, write_text

GRIDS = (1, 2, 3, 4, 5, 6, 7)
WIDTH, HEIGHT, FOCAL = 1296, 840, 2.0  # focal: factor of bench.scenes at this width
MEGAPIXELS = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0)
SAME_GRID = 3
WARM_UP, STEPS, SPANS = 30, 20, 5
MEMORY_WORKLOAD = "garden-7x7"
RANDOM_SIZES = (100, 200, 400)  # of --random, which needs no data

SERIES = {
    "gaussians": ("n_gaussians", "Gaussians", 1e6, "million Gaussians", "million"),
    "pixels": ("n_pixels", "Pixels", 1e6, "megapixels", "megapixel"),
}


class Fit(NamedTuple):
    """time = intercept + slope x, by least squares."""

    intercept: float
    slope: float
    r2: float
    """1 - residual / total sum of squares; 1 where all times are equal."""


def fit_line(x: Sequence[float], y: Sequence[float]) -> Fit:
    """The line through points of at least two different x."""
    if len(set(x)) < 2 or len(x) != len(y):
        raise ValueError(f"fit_line: expected values at two or more places, got {list(x)}")
    slope, intercept = np.polyfit(x, y, 1)
    residual = np.asarray(y) - (intercept + slope * np.asarray(x))
    total = float(np.square(np.asarray(y) - np.mean(y)).sum())
    r2 = 1.0 - float(np.square(residual).sum()) / total if total > 0 else 1.0
    return Fit(float(intercept), float(slope), r2)


def image_size(megapixels: float) -> tuple[int, int]:
    """Width and height with about so many 10^6 pixels, in the ratio of WIDTH to HEIGHT."""
    scale = math.sqrt(megapixels * 1e6 / (WIDTH * HEIGHT))
    return round(WIDTH * scale), round(HEIGHT * scale)


def workloads(*, random: bool) -> Iterator[tuple[str, Workload]]:
    """Series and workload, one after the other, so that only one is in memory."""
    if random:
        for n in RANDOM_SIZES:
            yield "gaussians", random_workload(n, 64, 48)
        for width, height in ((32, 24), (64, 48), (128, 96)):
            yield "pixels", random_workload(RANDOM_SIZES[0], width, height)
        return
    for grid in GRIDS:
        yield "gaussians", garden(f"garden-{grid}x{grid}", grid, WIDTH, HEIGHT, FOCAL)
    for megapixels in MEGAPIXELS:
        width, height = image_size(megapixels)
        name = f"garden-{SAME_GRID}x{SAME_GRID}"
        yield "pixels", garden(name, SAME_GRID, width, height, FOCAL * width / WIDTH)


def measure(
    w: Workload, device: torch.device, *, method: str, graphs: bool, steps: int
) -> dict[str, Any]:
    """Counts of a workload and the time of an iteration on it."""
    row: dict[str, Any] = {"workload": w.name, "width": w.width, "height": w.height}
    row |= counts(w, device)
    forget_peak(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(w, Path(folder), device, method=method, graphs=graphs)
        try:
            run_steps(trainer, min(WARM_UP, steps))
            row["ms"] = 1e3 * seconds_per_step(trainer, spans=SPANS, steps=steps)
        finally:
            trainer.images.close()
    if device.type == "cuda":
        row["peak_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        row["peak_reserved_mb"] = torch.cuda.max_memory_reserved(device) / 1e6
    return row


def fits(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Fit]:
    """The line of each series, x in millions."""
    return {
        name: fit_line([r[SERIES[name][0]] / SERIES[name][2] for r in points], _ms(points))
        for name, points in rows.items()
    }


def markdown(about: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> str:
    """A table per series with its line."""
    parts = [
        f"Training iterations on {about['device']}, torch {about['torch']}; `{about['command']}`."
    ]
    lines_of = fits(rows)
    for name, points in rows.items():
        _, title, _, _, one = SERIES[name]
        line = lines_of[name]
        parts.append(
            f"{title}: {line.intercept:.3f} ms + {line.slope:.3f} ms per {one}, R^2 = {line.r2:.4f}"
        )
        lines = [
            "| Gaussians | visible | intersections | image | megapixels | ms | iterations/s | "
            "peak memory, MB |",
            f"|{'---:|' * 8}",
        ]
        for r in points:
            memory = f"{r['peak_memory_mb']:,.0f}" if "peak_memory_mb" in r else "–"
            lines.append(
                f"| {r['n_gaussians']:,} | {r['n_visible']:,} | {r['n_isects']:,} | "
                f"{r['width']}x{r['height']} | {r['n_pixels'] / 1e6:.2f} | {r['ms']:.3f} | "
                f"{1e3 / r['ms']:.1f} | {memory} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def plot(about: dict[str, Any], rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Times and their lines, a panel per series."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(rows), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    lines_of = fits(rows)
    for place, (name, points) in enumerate(rows.items()):
        key, _, scale, unit, _ = SERIES[name]
        line = lines_of[name]
        x = np.array([r[key] / scale for r in points])
        axes = figure.add_subplot(1, len(rows), place + 1)
        ends = np.array([0.0, x.max()])
        label = f"{line.intercept:.2f} + {line.slope:.2f} x ms, R² = {line.r2:.3f}"
        axes.plot(ends, line.intercept + line.slope * ends, color="0.6", label=label)
        axes.plot(x, _ms(points), "o", color="C0")
        axes.set_xlabel(unit)
        axes.set_ylabel("ms per iteration")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(color="0.9")
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle(about["device"], fontsize=10)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def write_results(out: Path, about: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> str:
    """Write scaling.json, .md and .png; returns the tables."""
    lines = {name: line._asdict() for name, line in fits(rows).items()}
    write_json(out / "scaling.json", {"about": about, "rows": rows, "fits": lines})
    text = markdown(about, rows)
    write_text(out / "scaling.md", text)
    plot(about, rows, out / "scaling.png")
    return text


def train_within(
    limit_gib: float, device: torch.device, *, method: str, graphs: bool, steps: int
) -> dict[str, Any]:
    """Train MEMORY_WORKLOAD with the allocator held to `limit_gib`.

    Raises:
        SplatrimError: it does not fit.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    share = min(1.0, limit_gib * 2**30 / total)
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(share, index)
    try:
        row = measure(
            load(MEMORY_WORKLOAD, "cpu"), device, method=method, graphs=graphs, steps=steps
        )
    except torch.OutOfMemoryError as error:
        raise SplatrimError(f"{limit_gib:g} GiB are not enough: {error}") from error
    return row | {"limit_gib": limit_gib}


def _ms(points: Sequence[dict[str, Any]]) -> list[float]:
    return [r["ms"] for r in points]


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m bench.scaling`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("output") / "scaling")
    parser.add_argument("--memory_limit", type=float, help="GiB; see above")
    parser.add_argument("--random", action="store_true", help="small scenes that need no data")
    parser.add_argument("--method", default="3dgs", help="pruning method")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=STEPS, help="iterations per span")
    parser.add_argument("--no_graph", action="store_true", help="launch kernels one by one")
    arguments = parser.parse_args(args)
    device = resolve_device(arguments.device)
    about = about_machine(device, "python -m bench.scaling")
    how = {"method": arguments.method, "graphs": not arguments.no_graph, "steps": arguments.steps}
    try:
        if arguments.memory_limit is not None:
            if device.type != "cuda":
                raise SplatrimError("--memory_limit needs a CUDA device")
            row = train_within(arguments.memory_limit, device, **how)
            write_json(arguments.out / "scaling_memory.json", {"about": about, "row": row})
            print(json.dumps(row))
            return
        rows: dict[str, list[dict[str, Any]]] = {}
        for series, w in workloads(random=arguments.random):
            row = measure(w, device, **how)
            rows.setdefault(series, []).append(row)
            shown = {k: row[k] for k in ("n_gaussians", "width", "height", "ms")}
            print(json.dumps(shown), flush=True)
    except FileNotFoundError as error:
        raise SplatrimError(f"the workloads need their data: {error.filename}") from error
    print(write_results(arguments.out, about, rows))


if __name__ == "__main__":
    run_cli(main)
