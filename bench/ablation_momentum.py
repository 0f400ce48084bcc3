"""What each part of Momentum-GS is worth: independent, parallel, + teacher, full; beside one piece.

    python -m bench.ablation_momentum [--scene FOLDER] [--blocks 4] [--iterations 7000]
        [--seeds 0 1 2] [--kinds one independent parallel teacher full] [--published] [--out FOLDER]

    one           neural Gaussians in one piece
    independent   blocks one after the other, each with moments of its own, without a teacher
    parallel      one decoder, by the mean gradient of all blocks
    teacher       and the loss that keeps it near its average
    full          and weights of blocks

Without --published blocks see their neighbours, take steps by their share of the cameras and end
with a frozen decoder; with it they are alone, take all iterations and are cut (--recipe momentum).
A merged model has one decoder, so independent blocks are those that hand it on (--lockstep 1
--decoder_adam per_slot).

Every run adds a line to OUT/ablation.json, which later calls go on with, so that a table can be
made in parts. It has means over seeds of PSNR, PSNR after the colour fit, SSIM, anchors, excess at
seams over the one piece, seconds and memory; and whether the published order holds.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.scenes import data_root
from gs import program
from gs.blocks.seams import load_whole, measure_seams
from gs.config import resolve_device
from gs.data.loader import ImageLoader
from gs.data.scene import load_scene
from gs.errors import run_cli
from gs.evaluation.metrics import compute_metrics
from gs.evaluation.render import render_views
from gs.files import write_json
from gs.training.memory import keep_freed_memory
from pruning import METHODS

ORDER = ("independent", "parallel", "teacher", "full")
KINDS: dict[str, dict[str, Any]] = {
    "one": {},
    "independent": {"lockstep": 1, "decoder_adam": "per_slot", "teacher": "none", "sigma": 0.0},
    "parallel": {"teacher": "none", "sigma": 0.0},
    "teacher": {"sigma": 0.0},
    "full": {},
}
FIGURES = {
    "psnr": ("PSNR", "{:.3f}"),
    "psnr_cc": ("PSNR fitted", "{:.3f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "n_anchors": ("anchors", "{:,.0f}"),
    "seam": ("seam excess", "{:.3f}"),
    "seconds": ("training, s", "{:.1f}"),
    "memory_mb": ("memory, MB", "{:,.0f}"),
}


def settings_of(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Flags of a kind, those of the seed apart."""
    found: dict[str, Any] = {"representation": "neural", "method": "3dgs", "eval": True}
    found |= {"iterations": args.iterations, "resolution": args.resolution, "device": args.device}
    found |= {"voxel_size": args.voxel_size, "appearance_dim": args.appearance_dim}
    if args.published:
        found |= {"recipe": "momentum"}
    else:
        # parts are compared among blocks that are trained at once
        found |= {"waves": args.waves}
    if kind == "one":
        found |= {"surroundings": "live", "block_init": "points"} if args.published else {}
        found.pop("waves", None)
        return found
    return {**found, "blocks": args.blocks, "lambda_consistency": args.lambda_c, **KINDS[kind]}


def run_one(kind: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train a kind and measure it."""
    folder = args.out / f"{kind}_{seed}"
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer = program.train(
        args.scene,
        folder,
        methods=METHODS,
        seed=seed,
        quiet=True,
        overwrite=True,
        **settings_of(kind, args),
    )
    del trainer
    render_views(folder, skip_train=True, quiet=True, device=args.device)
    measured = compute_metrics([folder], device=args.device, color_correct=True)
    figures = next(iter(measured[str(folder)].values()))
    timing = json.loads((folder / "history.json").read_text())["timing"]
    model, owners = load_whole(folder, resolve_device(args.device))
    result = {
        "kind": kind,
        "seed": seed,
        "psnr": figures["PSNR"],
        "psnr_cc": figures["PSNR_cc"],
        "psnr_half": figures["PSNR_half"],
        "ssim": figures["SSIM"],
        "lpips": figures.get("LPIPS"),
        "n_anchors": len(model),
        "seconds": timing["train_seconds"],
        "memory_mb": timing.get("peak_memory_mb"),
        "seam": None,
    }
    one = args.out / f"one_{seed}"
    if owners is not None and (one / "history.json").is_file():
        result["seam"] = _seam(model, owners, load_whole(one, model.device)[0], args)
    return result


def _seam(model: Any, owners: torch.Tensor, one: Any, args: argparse.Namespace) -> float | None:
    """Mean excess at borders over the one piece."""
    scene = load_scene(args.scene, resolution=args.resolution, eval=True)
    cameras = [*scene.train, *scene.test]
    images = ImageLoader(cameras, device=model.device)
    tests = range(len(scene.train), len(cameras))
    black = torch.zeros(3, device=model.device)
    seams = measure_seams(model, owners, cameras, images, black, tests, one)
    images.close()
    found = [seam.excess for seam in seams if seam.excess is not None]
    return statistics.fmean(found) if found else None


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """The table of means over seeds, and whether the published order holds."""
    heads = [head for head, _ in FIGURES.values()]
    lines = [f"| | seeds | {' | '.join(heads)} |", f"|---|---:|{'---:|' * len(heads)}"]
    means: dict[str, float] = {}
    for kind in KINDS:
        own = [run for run in runs if run["kind"] == kind]
        if not own:
            continue
        cells = []
        for figure, (_, form) in FIGURES.items():
            known = [run[figure] for run in own if run.get(figure) is not None]
            cells.append(form.format(statistics.fmean(known)) if known else "–")
        means[kind] = statistics.fmean([run["psnr"] for run in own])
        lines.append(f"| {kind} | {len(own)} | {' | '.join(cells)} |")
    there = [kind for kind in ORDER if kind in means]
    steps = [
        f"{a} {'<=' if means[a] <= means[b] else '> (not as published)'} {b}"
        for a, b in zip(there, there[1:], strict=False)
    ]
    return "\n".join([*lines, "", f"Order by PSNR: {'; '.join(steps) or '–'}."]) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """Train what is not there yet, and print the table."""
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=text)
    parser.add_argument("--scene", type=Path, help="default: the survey of the measuring data")
    parser.add_argument("--out", type=Path, default=Path("output") / "ablation_momentum")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=7000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--waves", choices=["coloured", "one"], default="one")
    parser.add_argument("--lambda_c", type=float, default=50.0)
    parser.add_argument("--voxel_size", type=float, default=0.0)
    parser.add_argument("--appearance_dim", type=int, default=0)
    parser.add_argument("--resolution", type=int, default=-1)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(words)
    if args.scene is None:
        args.scene = data_root() / "data" / "aerial_caliterra"
    keep_freed_memory()
    path = args.out / "ablation.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    for seed in args.seeds:
        for kind in args.kinds:
            if any((run["kind"], run["seed"]) == (kind, seed) for run in runs):
                continue
            runs.append(run_one(kind, seed, args))
            args.out.mkdir(parents=True, exist_ok=True)
            write_json(path, runs)
    print(markdown(runs))


if __name__ == "__main__":
    run_cli(main)
