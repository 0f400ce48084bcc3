"""A scene of many million Gaussians, in blocks on a GPU held to little memory, and in one piece.

    python -m bench.big_city --out FOLDER [--gaussians 20000000] [--blocks 8] [--gpu_memory 12]
    python -m bench.big_city --out FOLDER --one_piece

The scene is the built-in district (gs.data.city_scene), ray-cast at --width and --height from
--views cameras, and starts from so many points on its surfaces; nothing is densified, so that the
number of Gaussians is known and must come out exactly. Scene and points are made once and lie in
FOLDER. Every call adds what it has found to FOLDER/big_city.json and prints all that is there: PSNR
of the test views, seconds, the most memory that torch took of the GPU, losses at first and at last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gs.blocks.partition import make_partition
from gs.blocks.trainer import BlockTrainer
from gs.cli import Config, describe, parse
from gs.config import resolve_device
from gs.data.city import make_district
from gs.data.city_rays import District
from gs.data.city_scene import FIELD_OF_VIEW, CityConfig, shoot, survey, write_city_scene
from gs.data.scene import Scene, load_scene
from gs.errors import SplatrimError, run_cli
from gs.files import atomic_write, write_json
from gs.logs import show_log
from gs.program import run_settings
from gs.run_record import find_model
from gs.training.memory import keep_freed_memory, peak_memory
from gs.training.trainer import Trainer
from pruning import METHODS

MOST_SHOTS = 64  # views, about, that points are taken of


def make_scene(args: argparse.Namespace) -> Scene:
    """The district with points for all Gaussians; written and read again."""
    folder = args.out / "scene"
    size = {"views": args.views, "width": args.width, "height": args.height}
    config = CityConfig(**size, blocks_x=args.side, blocks_y=args.side, points=100_000)
    started = time.perf_counter()
    if not folder.is_dir():
        write_city_scene(folder, config, args.device if args.device != "auto" else None)
        print(f"{args.views} views in {time.perf_counter() - started:.0f} s", flush=True)
    path = args.out / f"points_{args.gaussians}.npz"
    if not path.is_file():
        points, colors = surface_points(config, args.gaussians, resolve_device(args.device))
        with atomic_write(path) as file:
            np.savez(file, points=points, colors=colors)
        print(f"{args.gaussians:,} points by {time.perf_counter() - started:.0f} s", flush=True)
    scene = load_scene(folder, eval=True)
    with np.load(path) as known:
        points = torch.from_numpy(known["points"])
        colors = torch.from_numpy(known["colors"]).float() / 255
    return dataclasses.replace(scene, points=points, colors=colors)


def surface_points(
    config: CityConfig, n: int, device: torch.device
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:  # [n, 3] float32, uint8
    """Points on what some of the views see, evenly over their pixels, with their colours."""
    district = make_district(config.blocks_x, config.blocks_y, config.seed)
    tensors = (district.kinds, district.centres, district.halves, district.materials)
    kinds, centres, halves, materials = (x.to(device) for x in tensors)
    district = District(kinds, centres, halves, materials, district.cell, district.top)
    rng = np.random.default_rng(config.seed)
    poses = survey(config.views, district.size, rng)
    poses = poses[:: max(len(poses) // MOST_SHOTS, 1)]
    focal = config.width / (2 * math.tan(math.radians(FIELD_OF_VIEW) / 2))
    spread = 0.5 * config.width / focal  # of a pixel's neighbours, at depth 1 and width 1
    xyz, rgb = [], []
    for k, pose in enumerate(poses):
        color, surface = shoot(district, pose, focal, config.width, config.height)
        seen = np.flatnonzero(np.isfinite(surface).all(axis=1))
        count = (k + 1) * n // len(poses) - k * n // len(poses)
        rows = rng.choice(seen, count)
        height = float(-pose[2, :3] @ pose[:, 3])
        noise = spread * abs(height) / config.width * rng.standard_normal((count, 3))
        xyz.append((surface[rows] + noise).astype(np.float32))
        rgb.append(np.rint(255 * color[rows].clip(0, 1) ** (1 / 2.2)).astype(np.uint8))
    return np.concatenate(xyz), np.concatenate(rgb)


def settings_of(args: argparse.Namespace, folder: Path) -> Config[Any, Any, Any]:
    """Those of a run that densifies nothing."""
    words = ["-s", str(args.out / "scene"), "-m", str(folder), "--eval", "--method", "3dgs"]
    words += ["--iterations", str(args.iterations), "--densify_until_iter", "0", "--overwrite"]
    words += ["--device", args.device, "--seed", str(args.seed), "--test_iterations", "-1"]
    words += ["--save_iterations", "-1"]
    if not args.one_piece:
        words += ["--blocks", str(args.blocks), "--block_interval", str(args.block_interval)]
    return parse(words, METHODS, "")


def train_blocks(args: argparse.Namespace, scene: Scene, device: torch.device) -> dict[str, Any]:
    """Train in blocks on a GPU of --gpu_memory."""
    config = settings_of(args, args.out / "blocks_run")
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(args.gpu_memory * 1e9 / total, 1.0), device)
    run = run_settings(config)
    run = dataclasses.replace(run, described={**run.described, **scene.record})
    started = time.perf_counter()
    partition = make_partition(scene, config.blocks.cut())
    owned, seen = partition.n_points, [round(x, 2) for x in partition.outside]
    print(f"cut in {time.perf_counter() - started:.0f} s: points {owned}, outside over own {seen}")
    trainer = BlockTrainer(run, scene, partition, device)
    trainer.fit()
    print(f"trained and saved by {time.perf_counter() - started:.0f} s", flush=True)
    saved = np.load(find_model(config.train.model_path)[1].with_name("blocks.npy"))
    if len(saved) != len(scene.points):
        raise SplatrimError(f"{len(saved)} of {len(scene.points)} Gaussians were merged")
    return {"blocks": partition.n_blocks, "n_merged": len(saved)}


def train_whole(args: argparse.Namespace, scene: Scene, device: torch.device) -> dict[str, Any]:
    """Train in one piece."""
    config = settings_of(args, args.out / "one_piece_run")
    until = config.densify.densify_until_iter
    strategies = [config.densify.build(), config.pruning.build(densify_until=until)]
    Trainer(
        config.train, scene, strategies=strategies, optim=config.optim, method="3dgs",
        settings=describe(config),
    ).fit()  # fmt: skip
    return {"blocks": 1, "n_merged": len(scene.points)}


def main() -> None:
    """Make what is missing, train, and show all that is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/big_city"))
    parser.add_argument("--gaussians", type=int, default=20_000_000)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--gpu_memory", type=float, default=12.0, help="GB, of 10^9 bytes")
    parser.add_argument("--one_piece", action="store_true")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--block_interval", type=int, default=250)
    parser.add_argument("--views", type=int, default=240)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=960)
    parser.add_argument("--side", type=int, default=8, help="blocks of buildings along each axis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keep_freed_memory()
    show_log(quiet=False)
    args.out.mkdir(parents=True, exist_ok=True)
    device = resolve_device(args.device)
    started = time.perf_counter()
    scene = make_scene(args)
    made = time.perf_counter() - started
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    found = (train_whole if args.one_piece else train_blocks)(args, scene, device)
    folder = args.out / ("one_piece_run" if args.one_piece else "blocks_run")
    history = json.loads((folder / "history.json").read_text())
    timing = history["timing"]
    found |= {
        "n_gaussians": len(scene.points),
        "iterations": args.iterations,
        "gpu_memory": None if args.one_piece else args.gpu_memory,
        "psnr": history["test"][-1]["psnr"],
        "loss": [history["loss"][0], history["loss"][-1]],
        "seconds": timing["train_seconds"],
        "scene_seconds": round(made, 1),
        "swap_seconds": timing.get("swap_seconds"),
        "surroundings_seconds": timing.get("surroundings_seconds"),
        **peak_memory(device),
    }
    path = args.out / "big_city.json"
    known = json.loads(path.read_text()) if path.is_file() else []
    write_json(path, [*known, found])
    for entry in [*known, found]:
        print(json.dumps(entry))


if __name__ == "__main__":
    run_cli(main)
