"""Exact mask gradients against those that MaskGaussian published (published_backward.py):

    python -m bench.ablation --scene data/garden [--seeds 0 1 2] [--device cuda:0 cuda:1]
        [--out output/ablation] [--iterations N] [-- further flags of train.py]

Per seed: 3dgs (for the ratio; --skip_baseline leaves it out), MaskGaussian beta with exact and
with published gradients. Runs resume, fail and are measured as in bench.sweep, whose folders they
have: OUT/SCENE/{3dgs,exact,published}/seedK. OUT gets ablation.json and ablation.md after each.

With a figure's values e_k and p_k of n seeds, its difference is the mean of d_k = e_k - p_k, whose
standard error is the standard deviation of d_k (n - 1 in its denominator) over sqrt(n). One seed
starts from the same points and draws the same views and noise in both.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bench.sweep import SweepConfig, make_job, parse_method, run_command, run_jobs
from bench.sweep.run import BASELINE, Job, Method
from bench.sweep.table import with_ratios
from gs.errors import SplatrimError
from gs.files import write_json, write_text

EXACT = Method("exact", "mask-gaussian", "beta")
PUBLISHED = Method("published", "mask-gaussian", "beta", module="bench.ablation.train")
# figure: heading, how its values and its differences are written
FIGURES = {
    "psnr": ("PSNR", "{:.3f}", "{:+.3f}"),
    "ssim": ("SSIM", "{:.5f}", "{:+.5f}"),
    "n_gaussians": ("Gaussians", "{:,.0f}", "{:+,.0f}"),
    "ratio": ("ratio", "{:.4f}", "{:+.4f}"),
    "train_seconds": ("training, s", "{:.1f}", "{:+.1f}"),
}


@dataclass(frozen=True)
class AblationConfig:
    """What to train; flags of train.py follow after a lone "--"."""

    scene: Path
    """Folder of the scene."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("output") / "ablation"
    """Where runs and tables go."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of each kind."""
    iterations: int | None = None
    """None is train.py's own number, 30,000."""
    resolution: Annotated[int | None, tyro.conf.arg(aliases=("-r",))] = None
    """As train.py's."""
    device: tuple[str, ...] = ("auto",)
    """auto or cuda; or several GPUs, which share the runs: cuda:0 cuda:1."""
    skip_baseline: bool = False
    """Do not train 3dgs; ratios stay unknown."""


def plan(config: AblationConfig, extra: Sequence[str] = ()) -> tuple[SweepConfig, list[Job]]:
    """The runs, by seed, and the sweep that they make.

    Raises:
        SplatrimError: there is no such scene.
    """
    if not config.scene.is_dir():
        raise SplatrimError(f"no such scene: {config.scene}")
    sweep = SweepConfig(
        (config.scene,),
        out=config.out,
        seeds=config.seeds,
        iterations=config.iterations,
        resolution=config.resolution,
        device=config.device,
    )
    baseline = [] if config.skip_baseline else [parse_method(BASELINE)]
    return sweep, [
        make_job(sweep, config.scene, method, seed, extra)
        for seed in dict.fromkeys(config.seeds)
        for method in (*baseline, EXACT, PUBLISHED)
    ]


def summarize(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over seeds, and differences over the seeds that finished with both gradients.

    Returns:
        {"exact": {...}, "published": {...}, "difference": {...}} with, by figure, None or
        {"mean", "spread", "n"}: spread is the standard deviation of the first two, the standard
        error of a difference, and None for one seed.
    """
    done = [run for run in with_ratios(runs) if "error" not in run]
    values = {
        method.label: {run["seed"]: run for run in done if run["method"] == method.label}
        for method in (EXACT, PUBLISHED)
    }
    exact, published = values.values()
    both = [seed for seed in exact if seed in published]
    summary: dict[str, dict[str, Any]] = {"exact": {}, "published": {}, "difference": {}}
    for figure in FIGURES:
        for label, by_seed in values.items():
            summary[label][figure] = _spread([run.get(figure) for run in by_seed.values()])
        pairs = [(exact[seed].get(figure), published[seed].get(figure)) for seed in both]
        d = _spread([None if e is None or p is None else e - p for e, p in pairs])
        if d is not None and d["spread"] is not None:
            d["spread"] /= math.sqrt(d["n"])
        summary["difference"][figure] = d
    return summary


def _spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "spread": deviation, "n": len(known)}


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """The table of means, that of all runs, failures, and what was measured."""
    summary = summarize(runs)
    heading = [name for name, _, _ in FIGURES.values()]
    lines = [f"| Gradients | {' | '.join(heading)} |", f"|---|{'---:|' * len(heading)}"]
    for label, title in (("exact", "exact"), ("published", "published")):
        cells = [_cell(summary[label][f], form) for f, (_, form, _) in FIGURES.items()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    cells = [_cell(summary["difference"][f], form) for f, (_, _, form) in FIGURES.items()]
    lines.append(f"| exact - published | {' | '.join(cells)} |")

    each = [f"| Run | seed | {' | '.join(heading)} |", f"|---|---:|{'---:|' * len(heading)}"]
    for run in with_ratios(runs):
        cells = [
            "–" if run.get(f) is None else form.format(run[f])
            for f, (_, form, _) in FIGURES.items()
        ]
        each.append(f"| {run['method']} | {run['seed']} | {' | '.join(cells)} |")
    parts = ["\n".join(lines), "\n".join(each)]
    failed = [f"- {r['method']}, seed {r['seed']}: {r['error']}" for r in runs if "error" in r]
    if failed:
        parts += ["Failed:", "\n".join(failed)]
    scenes = ", ".join(sorted({run["scene"] for run in runs}))
    devices = ", ".join(sorted({run["device"] for run in runs if run.get("device")}))
    parts.append(
        f"Scene: {scenes}. Device: {devices or '–'}. Means over seeds ± standard deviation; of the "
        "difference, seed by seed, ± standard error. ratio: 1 - Gaussians / Gaussians of 3dgs."
    )
    return "\n\n".join(parts) + "\n"


def _cell(value: dict[str, Any] | None, form: str) -> str:
    if value is None:
        return "–"
    text = form.format(value["mean"])
    spread = value["spread"]
    return text if spread is None else f"{text} ± {form.replace('+', '').format(spread)}"


def write_tables(out: Path, runs: list[dict[str, Any]]) -> None:
    """Write ablation.json and ablation.md. Raises SplatrimError as files do."""
    write_json(out / "ablation.json", {"runs": with_ratios(runs), "summary": summarize(runs)})
    write_text(out / "ablation.md", markdown(runs))


def run_ablation(config: AblationConfig, extra: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Do what is not done yet, and write the tables; as `bench.sweep.run_sweep`."""
    return run_jobs(*plan(config, extra), write_tables)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m bench.ablation`."""
    run_command(AblationConfig, __doc__, args, run_ablation, "ablation.md")
