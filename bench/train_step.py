"""Where the milliseconds of a training iteration go, beside an estimate of the limit.

    python -m bench.train_step [--workloads garden-x1 garden-3x3 garden-7x7] [--batch 8]
        [--adam_rows seen] [--out FOLDER]

Iterations are those of gs.training.trainer (bench/training.py says which). FOLDER gets
train_step.json, .md and .png. Three figures per workload:

    wall     host time of 20 iterations in a row, over 20; the device is waited for at the ends
             only, as in training. Median of 5 such spans, without a profiler.
    busy     time in which the GPU runs kernels or copies (union of their intervals, torch.profiler)
             over 20 further iterations, by stage; stages are told by the names of kernels.
    idle     wall - busy: the GPU waits for the host.

With --batch B an iteration is a step of B images, and all figures are divided by B: milliseconds
per image, beside the limits of steps of one image.

The limit of a stage is its traffic over the memory's bandwidth B, or its instructions over 60 % of
the issue rate R = SMs x 4 schedulers x 32 lanes x clock, or its special functions over the rate
S = SMs x 16 x clock, whichever is longest. With N Gaussians, V visible ones, I intersections of
Gaussians and tiles, t pixels in a tile, P pixels of the image:

    projection             (12 N + 288 V) / B       means of all; shape, opacity and 48 SH
                                                    coefficients of visible ones, their records
    sort                   (68 V + 32 I) / B        depths in 4 passes, tile ids in 2
    binning                8 I / B                  a tile and a Gaussian per intersection
    blend forward          15 p / (0.6 R),  p / S   p = 0.6 t I pixel-Gaussian pairs: rays that are
    blend backward         35 p / (0.6 R), 2 p / S  done skip 40 % of them
    loss                   14 x 12 P / B            L1 and SSIM, forward and backward, separable
    projection backward    508 V / B
    optimizer              1652 N / B               59 floats: gradient, value, two moments; read,
                                                    written, and the gradient zeroed

The instructions per pair are what tensor-core kernels with split fp16 operands compile to; 0.6 of
the issue rate is what good kernels reach. The host's limit is 0, as is that of stages without a
formula: what densifiers gather or add, copies, and what no name tells. It is an estimate for
choosing what to work on, not a bound.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.training import (
    build_trainer,
    counts,
    forget_peak,
    run_steps,
    seconds_per_step,
    synchronize,
    workload,
)
from gs.config import resolve_device
from gs.errors import SplatrimError, run_cli
from gs.files import atomic_write, write_json, write_text
from gs.training.trainer import Trainer

WORKLOADS = ("garden-x1", "garden-3x3", "garden-7x7")
WARM_UP, STEPS, SPANS = 30, 20, 5

# The first pattern found in a kernel's name tells its stage.
STAGES = {
    "decoder": r"decode_\w*kernel|_seen_kernel",
    "exchange": r"pack_kernel|pack_gradients_kernel|_count_kernel",
    "projection": r"project_fwd_kernel",
    "sort": r"[Rr]adix|[Ss]ort|sweep_kernel|histograms_kernel|_order_kernel",
    "binning": r"_row_keys_kernel|_accumulate_kernel|expand_kernel|count_chunks_kernel"
    r"|place_kernel|[Ss]can",
    "blend forward": r"blend_fwd_kernel",
    "loss": r"ssim|photometric|_loss|_light_|_depth_|_sums_kernel|conv_|convolve|depthwise",
    "blend backward": r"blend_bwd_kernel|sum_rows_kernel",
    "projection backward": r"project_bwd_kernel|_spread_kernel",
    "optimizer": r"[Aa]dam|_poses_kernel|_mean_motion_kernel|_row_rates_kernel",
    "statistics": r"_gradient_norms_kernel|_count_views_kernel|_contributions_kernel"
    r"|_sampled_in_any_kernel|_langevin_kernel|_regularizer_|_report_kernel",
    "copies, fills": r"^Mem(cpy|set)|FillFunctor|[Cc]opy|_zero_kernel",
}
OTHER, IDLE = "other", "idle"
ROWS = (*STAGES, OTHER)


class Interval(NamedTuple):
    """A kernel or copy on the GPU."""

    name: str
    start: float
    """Microseconds."""
    end: float


class Machine(NamedTuple):
    """What the limits are computed from."""

    bandwidth: float
    """Bytes per second that a copy reads and writes."""
    instructions: float
    """Thread instructions per second."""
    special: float
    """exp2 and reciprocals per second."""


def stage_of(name: str) -> str:
    """The stage that a kernel belongs to, or "other"."""
    return next((s for s, pattern in STAGES.items() if re.search(pattern, name)), OTHER)


def group(intervals: Sequence[Interval], steps: int) -> dict[str, float]:
    """Milliseconds per iteration by stage; stages that did not run have 0.

    Time in which several intervals overlap counts for the one that began first, so that the stages
    add up to the time in which the GPU is busy.
    """
    totals = dict.fromkeys(ROWS, 0.0)
    reached = float("-inf")
    for name, start, end in sorted(intervals, key=lambda i: i.start):
        totals[stage_of(name)] += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return {stage: total / steps / 1e3 for stage, total in totals.items()}


def by_kernel(intervals: Sequence[Interval], steps: int) -> list[dict[str, Any]]:
    """Every kernel's stage, launches and milliseconds per iteration, the longest first."""
    rows: dict[str, dict[str, Any]] = {}
    for name, start, end in intervals:
        row = rows.setdefault(name, {"name": name, "stage": stage_of(name), "n": 0.0, "ms": 0.0})
        row["n"] += 1 / steps
        row["ms"] += (end - start) / steps / 1e3
    return sorted(rows.values(), key=lambda row: -row["ms"])


def limits(
    machine: Machine,
    *,
    n_gaussians: int,
    n_visible: int,
    n_isects: int,
    n_pixels: int,
    tile_pixels: int,
) -> dict[str, float]:
    """Milliseconds of every stage by the formulas of the module's docstring."""
    N, V, entries, P = n_gaussians, n_visible, n_isects, n_pixels
    pairs = 0.6 * tile_pixels * entries
    B, issue = machine.bandwidth, 0.6 * machine.instructions
    seconds = {
        "projection": (12 * N + 288 * V) / B,
        "sort": (68 * V + 32 * entries) / B,
        "binning": 8 * entries / B,
        "blend forward": max(15 * pairs / issue, pairs / machine.special),
        "loss": 14 * 12 * P / B,
        "blend backward": max(35 * pairs / issue, 2 * pairs / machine.special),
        "projection backward": 508 * V / B,
        "optimizer": 1652 * N / B,
    }
    return {stage: 1e3 * seconds.get(stage, 0.0) for stage in ROWS}


def measure_machine(device: torch.device) -> Machine:
    """Bandwidth of a copy of 1 GiB, the best of 5; rates from the device's properties."""
    about = torch.cuda.get_device_properties(device)
    clock = getattr(about, "clock_rate", 1_755_000) * 1e3  # kHz, where torch tells
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(6):  # the first one warms up
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize(device)
        best = min(best, start.elapsed_time(end))
    cycles = about.multi_processor_count * clock
    return Machine(2 * source.nbytes / (best / 1e3), 128 * cycles, 16 * cycles)


def profile_steps(trainer: Trainer, steps: int) -> list[Interval]:
    """What the GPU ran during `steps` iterations."""
    from torch.profiler import ProfilerActivity, profile

    synchronize(trainer.device)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run_steps(trainer, steps)
        synchronize(trainer.device)
    return [
        Interval(event.name, event.time_range.start, event.time_range.end)
        for event in trace.events() or ()
        # annotations (optimizers make them) span the kernels that they contain
        if event.device_type.name == "CUDA" and "#" not in event.name
    ]


def measure(name: str, machine: Machine | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """One workload: counts, wall time, and on a GPU the stages and their limits."""
    device = resolve_device(arguments.device)
    w = workload(name)
    row: dict[str, Any] = {"workload": name, "width": w.width, "height": w.height}
    row["batch"] = arguments.batch
    row |= counts(w, device)
    forget_peak(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            w,
            Path(folder),
            device,
            method=arguments.method,
            graphs=not arguments.no_graph,
            densifying=arguments.densifying,
            batch=arguments.batch,
            adam_rows=arguments.adam_rows,
        )
        steps, n_images = arguments.steps, arguments.steps * arguments.batch
        try:
            run_steps(trainer, min(WARM_UP, steps))
            seconds = seconds_per_step(trainer, spans=SPANS, steps=steps)
            row["wall_ms"] = 1e3 * seconds / arguments.batch
            if machine is not None:
                intervals = profile_steps(trainer, steps)
                row["stages"] = group(intervals, n_images)
                row["busy_ms"] = sum(row["stages"].values())
                row["idle_ms"] = max(0.0, row["wall_ms"] - row["busy_ms"])
                row["launches"] = len(intervals) / n_images
                row["kernels"] = by_kernel(intervals, n_images)
                work = ("n_gaussians", "n_visible", "n_isects", "n_pixels", "tile_pixels")
                row["limits"] = limits(machine, **{key: row[key] for key in work})
                row["n_gaussians_after"] = len(trainer.gaussians)
                row["peak_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        finally:
            trainer.images.close()
    return row


def markdown(about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Stages in rows, workloads in columns, each with its limit."""
    heads = [f"{r['n_gaussians']:,} Gaussians, {r['width']}x{r['height']}" for r in rows]
    lines = [
        f"Milliseconds per iteration of training on {about['device']}, torch {about['torch']}; "
        f"`{about['command']}`. Measured / estimated limit.",
        "",
        f"| | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(rows)}",
    ]
    if all("stages" in row for row in rows):
        for stage in ROWS:
            cells = [f"{r['stages'][stage]:.3f} / {r['limits'][stage]:.3f}" for r in rows]
            lines.append(f"| {stage} | {' | '.join(cells)} |")
        busy = [f"{r['busy_ms']:.3f} / {sum(r['limits'].values()):.3f}" for r in rows]
        lines.append(f"| GPU busy | {' | '.join(busy)} |")
    figures = {
        "idle (wall - busy)": ("idle_ms", "{:.3f}"),
        "**wall**": ("wall_ms", "**{:.3f}**"),
        "visible": ("n_visible", "{:,}"),
        "intersections": ("n_isects", "{:,}"),
        "kernels and copies": ("launches", "{:.0f}"),
        "peak memory, MB": ("peak_memory_mb", "{:,.0f}"),
    }
    for label, (key, form) in figures.items():
        if all(key in row for row in rows):
            lines.append(f"| {label} | {' | '.join(form.format(row[key]) for row in rows)} |")
    return "\n".join(lines) + "\n"


def plot(about: dict[str, Any], rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Stacked bars, measured beside the limit, a panel per workload."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(rows) + 2.4, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    hues = [f"C{i}" for i in range(10) if i != 7] + ["k", "navy", "olive"]  # C7 is grey, as are two
    colors = dict(zip(STAGES, hues, strict=True)) | {OTHER: "0.45", IDLE: "0.85"}
    handles: dict[str, Any] = {}
    for place, row in enumerate(rows):
        axes = figure.add_subplot(1, len(rows), place + 1)
        bars = (row["stages"] | {IDLE: row["idle_ms"]}, row["limits"])
        for x, values in enumerate(bars):
            bottom = 0.0
            for stage in (*ROWS, IDLE):
                height = values.get(stage, 0.0)
                handles[stage] = axes.bar(x, height, 0.6, bottom, color=colors[stage], zorder=2)
                bottom += height
            axes.annotate(
                f"{bottom:.2f}", (x, bottom), (0, 3), textcoords="offset points", ha="center"
            )
        axes.set_xticks([0, 1], ["measured", "limit"])
        axes.set_title(
            f"{row['n_gaussians'] / 1e6:.1f}M Gaussians\n{row['width']}x{row['height']}",
            fontsize=10,
        )
        axes.margins(x=0.15, y=0.08)
        axes.grid(axis="y", color="0.9", zorder=0)
        if place == 0:
            axes.set_ylabel("ms per iteration")
    shown = [s for s in reversed((*ROWS, IDLE)) if s in handles]
    figure.legend(
        [handles[s] for s in shown], shown, loc="outside right center", frameon=False, fontsize=9
    )
    figure.suptitle(about["device"], fontsize=10)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def write_results(out: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Write train_step.json, .md and, with stages, .png; returns the table."""
    write_json(out / "train_step.json", {"about": about, "rows": rows})
    text = markdown(about, rows)
    write_text(out / "train_step.md", text)
    if all("stages" in row for row in rows):
        plot(about, rows, out / "train_step.png")
    return text


def about_machine(device: torch.device, command: str) -> dict[str, Any]:
    """Device, versions and command, for results."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    return {"device": name, "torch": torch.__version__, "command": command}


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m bench.train_step`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--out", type=Path, default=Path("output") / "train_step")
    parser.add_argument("--method", default="3dgs", help="pruning method")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=STEPS, help="iterations per span")
    parser.add_argument("--batch", type=int, default=1, help="images per iteration")
    parser.add_argument("--adam_rows", choices=("all", "seen"), default="all", help="who steps")
    parser.add_argument("--no_graph", action="store_true", help="launch kernels one by one")
    parser.add_argument(
        "--densifying", action="store_true", help="iterations that densify, not later ones"
    )
    arguments = parser.parse_args(args)
    device = resolve_device(arguments.device)
    command = "python -m bench.train_step"
    command += f" --batch {arguments.batch}" if arguments.batch > 1 else ""
    command += f" --adam_rows {arguments.adam_rows}" if arguments.adam_rows != "all" else ""
    about = about_machine(device, command)
    machine = None
    if device.type == "cuda":
        machine = measure_machine(device)
        about["machine"] = machine._asdict()
    rows = []
    for name in arguments.workloads:
        try:
            rows.append(measure(name, machine, arguments))
        except FileNotFoundError as error:
            raise SplatrimError(f"workload {name} needs its data: {error.filename}") from error
        shown = {key: rows[-1].get(key) for key in ("workload", "wall_ms", "busy_ms")}
        print(json.dumps(shown), flush=True)
    print(write_results(arguments.out, about, rows))


if __name__ == "__main__":
    run_cli(main)
