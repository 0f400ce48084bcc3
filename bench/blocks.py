"""Blocks beside one piece: quality, seams, memory, time and swap, on a survey.

    python -m bench.blocks [--scene FOLDER] [--blocks 2 4 7] [--methods 3dgs mask-gaussian]
                           [--surroundings live none] [--seeds 0 1 2] [--out FOLDER]

Every run adds a line to OUT/blocks.json, which later calls go on with: what is there is not run
again, so that a long table can be made in parts. The table at the end is of all that is there:
means over seeds, differences from the one piece of the same method and seed.

    PSNR          of the test views
    seam          mean and worst view of the excess at borders (gs.blocks.seams), over seeds
    memory        torch's peak, over that of the one piece
    swap          share of the time in which states went to and fro and surroundings were gathered
    time          over that of the one piece

`--surroundings none` trains each block alone at all points (--block_init whole) and cuts, which is
how it is usually done.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
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
from gs.files import write_json
from gs.training.memory import keep_freed_memory
from pruning import METHODS

MOST_LOSS, MOST_COUNT = 0.1, 0.05  # dB below the one piece; share of its Gaussians
MEAN_SEAM, WORST_SEAM = 1.05, 1.15
MEMORY_OF_4, SWAP, TIME = 0.45, 0.03, 1.8


def run_one(case: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Train a case and measure it."""
    folder = args.out / name_of(case)
    settings: dict[str, Any] = {
        "method": case["method"],
        "seed": case["seed"],
        "recipe": args.recipe,
        "iterations": args.iterations,
        "resolution": args.resolution,
        "device": args.device,
    }
    if case["blocks"] > 1:
        settings |= {"blocks": case["blocks"], "surroundings": case["surroundings"]}
        settings |= {"block_interval": args.block_interval, "waves": args.waves}
        if case["surroundings"] == "none":
            settings |= {"block_init": args.alone}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer = program.train(
        args.scene, folder, methods=METHODS, eval=True, quiet=True, overwrite=True, **settings
    )
    del trainer
    history = json.loads((folder / "history.json").read_text())
    timing = history["timing"]
    device = resolve_device(args.device)
    model, owners = load_whole(folder, device)
    result = {
        **case,
        "psnr": history["test"][-1]["psnr"],
        "n_gaussians": len(model),
        "seconds": timing["train_seconds"],
        "memory_mb": timing["peak_memory_mb"],
        "swap_seconds": timing.get("swap_seconds", 0.0),
        "surroundings_seconds": timing.get("surroundings_seconds", 0.0),
    }
    if owners is not None:
        one = args.out / name_of({**case, "blocks": 1, "surroundings": "live"})
        reference = load_whole(one, device)[0] if (one / "history.json").is_file() else None
        scene = load_scene(args.scene, resolution=args.resolution, eval=True)
        cameras = [*scene.train, *scene.test]
        images = ImageLoader(cameras, device=device)
        tests = range(len(scene.train), len(cameras))
        black = torch.zeros(3, device=device)
        seams = measure_seams(model, owners, cameras, images, black, tests, reference)
        images.close()
        excesses = [seam.excess for seam in seams if seam.excess is not None]
        result |= {
            "seam_mean": statistics.fmean(excesses) if excesses else None,
            "seam_worst": max(excesses, default=None),
            "border_share": statistics.fmean([s.border_share for s in seams]) if seams else 0.0,
        }
    return result


def name_of(case: dict[str, Any]) -> str:
    """A case's folder."""
    kind = "one" if case["blocks"] == 1 else f"{case['blocks']}{case['surroundings']}"
    return f"{case['method']}_{kind}_{case['seed']}"


def cases_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases, one piece before its blocks."""
    cases = []
    for method in args.methods:
        for seed in args.seeds:
            cases.append({"method": method, "seed": seed, "blocks": 1, "surroundings": "live"})
            cases += [
                {"method": method, "seed": seed, "blocks": n, "surroundings": kind}
                for kind in args.surroundings
                for n in args.blocks
            ]
    return cases


def table(results: list[dict[str, Any]]) -> list[str]:
    """All results as lines of text, with what must be reached at the end."""
    ones = {(r["method"], r["seed"]): r for r in results if r["blocks"] == 1}
    head = "method          blocks  seeds   PSNR   diff  Gaussians    diff   seam (worst)"
    lines = [f"{head}      MB  memory   swap   time", ""]
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for r in results:
        groups.setdefault((r["method"], r["blocks"], r["surroundings"]), []).append(r)
    for (method, blocks, kind), runs in sorted(groups.items()):
        keys = [(r["method"], r["seed"]) for r in runs]
        paired = [(r, ones[k]) for r, k in zip(runs, keys, strict=True) if k in ones]
        lost = [r["psnr"] - one["psnr"] for r, one in paired]
        more = [r["n_gaussians"] / one["n_gaussians"] - 1 for r, one in paired]
        moved = [(r["swap_seconds"] + r["surroundings_seconds"]) / r["seconds"] for r in runs]
        seams = [r["seam_mean"] for r in runs if r.get("seam_mean") is not None]
        worst = [r["seam_worst"] for r in runs if r.get("seam_worst") is not None]
        cells = [
            f"{method:14}",
            f"{'1' if blocks == 1 else f'{blocks} {kind}':>6}",
            f"{len(runs):5d}",
            _mean([r["psnr"] for r in runs], "5.2f"),
            _mean(lost, "+5.2f"),
            _mean([r["n_gaussians"] for r in runs], "9,.0f"),
            _mean(more, "+6.1%"),
            f"{_mean(seams, '5.3f')} ({max(worst):5.3f})" if seams else " " * 13,
            _mean([r["memory_mb"] for r in runs], "6,.0f"),
            _mean([r["memory_mb"] / one["memory_mb"] for r, one in paired], "5.0%"),
            _mean(moved, "5.1%"),
            _mean([r["seconds"] / one["seconds"] for r, one in paired], "5.2f"),
        ]
        lines.append("  ".join(cells))
    lines += [
        "",
        f"to reach: PSNR -{MOST_LOSS}, Gaussians within {MOST_COUNT:.0%}, seam {MEAN_SEAM}"
        f" ({WORST_SEAM}), memory of 4 blocks {MEMORY_OF_4:.0%}, swap {SWAP:.0%}, time {TIME}",
    ]
    return lines


def _mean(values: list[float], form: str) -> str:
    return format(statistics.fmean(values), form) if values else "-"


def main() -> None:
    """Run what is missing, and show all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--scene", type=Path, default=data_root() / "data/aerial_caliterra")
    parser.add_argument("--out", type=Path, default=Path("output/bench_blocks"))
    parser.add_argument("--blocks", type=int, nargs="*", default=[2, 4, 7])
    parser.add_argument("--methods", nargs="+", default=["3dgs", "mask-gaussian"])
    parser.add_argument("--surroundings", nargs="+", default=["live", "none"])
    parser.add_argument("--alone", default="whole", help="--block_init without surroundings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=14_000)
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--resolution", type=int, default=-1)
    parser.add_argument("--block_interval", type=int, default=0)
    parser.add_argument("--waves", default="coloured")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "blocks.json"
    results: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    known = {name_of(r) for r in results}
    for case in cases_of(args):
        if name_of(case) in known:
            continue
        results.append(run_one(case, args))
        write_json(path, results)
        print(json.dumps(results[-1]), flush=True)
    print("\n".join(table(results)))


if __name__ == "__main__":
    run_cli(main)
