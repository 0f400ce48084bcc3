"""What refining poses, and depths of reconstructed points, bring and cost.

    python -m bench.poses [--parts wrong exact sparse time] [--iterations N] [--out FOLDER]

    wrong    the built-in scene, training poses off by 0.5 degrees and 1 % of the extent: test PSNR
             without and with --pose_refinement, test poses as given, moved along, and fitted
    exact    the same with poses as they are: what refinement then loses
    sparse   bonsai ($SPLATRIM_DATA) with every tenth training image: without and with --depth_loss
    time     milliseconds of a captured step without either, with each, and with both, on workloads
             of bench.training or the small Gaussians of bench.photographs, which need no data

FOLDER gets poses.json. Needs a GPU for figures that mean something; --small makes all parts short.
"""

import argparse
import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.photographs import SMALL, small_gaussians
from bench.scenes import data_root
from bench.training import build_trainer as build_workload
from bench.training import run_steps, seconds_per_step, workload
from gs import cli, program
from gs.config import resolve_device
from gs.data.camera import Camera
from gs.data.demo import write_demo_scene
from gs.data.scene import Scene
from gs.data.tracks import Tracks
from gs.errors import run_cli
from gs.evaluation.pose_fit import aligned_cameras, fit_poses
from gs.evaluation.views import evaluate_views, mean_scores
from gs.files import write_json
from gs.model.poses import compose, motion, with_pose
from gs.training.depth_supervision import DepthConfig
from gs.training.pose_refinement import PoseConfig
from gs.training.strategy import Strategy
from gs.training.trainer import Trainer
from kernels.reference.poses import rigid_exponential
from pruning import METHODS

PARTS = ("wrong", "exact", "sparse", "time")
DEGREES, SHARE = 0.5, 0.01  # of which poses are wrong: angle, and distance per extent
KEPT = 10  # one training image of so many
WARM_UP, STEPS, SPANS = 30, 20, 5

Change = Callable[[Scene], Scene]


def disturbed(scene: Scene, degrees: float = DEGREES, share: float = SHARE) -> Scene:
    """The scene with training cameras turned and moved, each in a direction of its own."""
    g = torch.Generator().manual_seed(0)
    axes = torch.randn(2, len(scene.train), 3, generator=g, dtype=torch.float64)
    axes /= axes.norm(dim=-1, keepdim=True)
    size = scene.extent * share
    xi = torch.cat([size * axes[0], math.radians(degrees) * axes[1]], -1)
    moved = [
        with_pose(camera, compose(delta, camera.viewmat.double()))
        for camera, delta in zip(scene.train, rigid_exponential(xi), strict=True)
    ]
    return dataclasses.replace(scene, train=moved)


def thinned(scene: Scene) -> Scene:
    """The scene with every tenth training image."""
    return dataclasses.replace(scene, train=scene.train[::KEPT])


def trained(source: Path, out: Path, change: Change, words: Sequence[str]) -> Trainer[Any]:
    """A finished training on a scene that is changed once it is read."""
    given = ["-s", str(source), "-m", str(out), "--eval", "--quiet", "--test_iterations", "0"]
    config = cli.parse([*given, *words], METHODS, "")
    trainer = program.build_trainer(config, METHODS, change=change)
    assert isinstance(trainer, Trainer)
    trainer.fit()
    return trainer


@torch.no_grad()
def psnr(trainer: Trainer[Any], test: Sequence[Camera]) -> float:
    """Mean over the test views, from these places, in dB."""
    n = len(trainer.scene.train)
    cameras = [*trainer.scene.train, *test]
    background = torch.tensor(trainer.stepper.background_color(None), device=trainer.device)
    indices = range(n, len(cameras))
    scores = evaluate_views(
        trainer.exported(), cameras, trainer.images, background, indices=indices
    )
    return mean_scores(scores)["psnr"]


def by_protocol(trainer: Trainer[Any]) -> dict[str, float]:
    """PSNR of test views as given, moved along with the training cameras, and fitted."""
    scene, table = trainer.scene, trainer.gaussians.poses
    train = scene.train if table is None else table.moved_cameras(scene.train)
    aligned = aligned_cameras(scene.test, scene.train, train)
    background = torch.tensor(trainer.stepper.background_color(None), device=trainer.device)
    indices = range(len(train), len(train) + len(scene.test))
    fitted = fit_poses(
        trainer.exported(),
        aligned,
        trainer.images,
        background,
        indices=indices,
        unit=scene.extent,
    )
    found = {"given": scene.test, "aligned": aligned, "fitted": fitted}
    return {name: round(psnr(trainer, cameras), 3) for name, cameras in found.items()}


def errors(cameras: Sequence[Camera], truth: Sequence[Camera], extent: float) -> dict[str, float]:
    """Mean distance of poses from the true ones, which are first taken along to them."""
    moved = aligned_cameras(truth, truth, cameras)
    apart = [motion(a.viewmat, b.viewmat) for a, b in zip(cameras, moved, strict=True)]
    degrees, distances = (torch.tensor(column) for column in zip(*apart, strict=True))
    return {
        "degrees": round(degrees.mean().item(), 4),
        "percent_of_extent": round(100 * distances.mean().item() / extent, 4),
    }


def measure_poses(folder: Path, arguments: argparse.Namespace, change: Change) -> dict[str, Any]:
    """The built-in scene without and with refinement."""
    source = folder / "demo"
    if not source.exists():
        sizes: dict[str, Any] = {"width": 400, "height": 300}
        sizes = {"views": 24, "width": 120, "height": 90} if arguments.small else sizes
        write_demo_scene(source, **sizes)
    n = 600 if arguments.small else 7000
    words = ["--iterations", str(arguments.iterations or n), "--device", arguments.device]
    words += arguments.words
    found: dict[str, Any] = {}
    truth: list[Camera] = []

    def keep(scene: Scene) -> Scene:
        truth[:] = scene.train
        return change(scene)

    for name, more in (("without", []), ("with", ["--pose_refinement", "--test_poses", "given"])):
        out = Path(tempfile.mkdtemp(dir=folder)) / "run"
        trainer = trained(source, out, keep, [*words, *more])
        scene, table = trainer.scene, trainer.gaussians.poses
        now = scene.train if table is None else table.moved_cameras(scene.train)
        found[name] = by_protocol(trainer) | {"poses": errors(now, truth, scene.extent)}
        print(name, json.dumps(found[name]), flush=True)
    best = found["without"]
    found["gain_fitted"] = round(found["with"]["fitted"] - best["fitted"], 3)
    found["gain_aligned"] = round(found["with"]["aligned"] - best["given"], 3)
    return found


def measure_depths(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Bonsai with few images, without and with depths."""
    source = data_root() / "data" / "bonsai"
    n = 300 if arguments.small else 7000
    words = ["--iterations", str(arguments.iterations or n), "--device", arguments.device]
    words += (["-r", "8"] if arguments.small else []) + arguments.words
    found: dict[str, Any] = {}
    for name, more in (("without", []), ("with", ["--depth_loss"])):
        out = Path(tempfile.mkdtemp(dir=folder)) / "run"
        trainer = trained(source, out, thinned, [*words, *more])
        found[name] = {
            "psnr": round(psnr(trainer, trainer.scene.test), 3),
            "gaussians": len(trainer.gaussians),
            "images": len(trainer.scene.train),
        }
        print(name, json.dumps(found[name]), flush=True)
    found["gain"] = round(found["with"]["psnr"] - found["without"]["psnr"], 3)
    return found


def _with_tracks(points: Tensor, n: int = 2000) -> Change:
    """A change that gives the scene's images some of the points."""
    rows = torch.linspace(0, len(points) - 1, n).long()

    def change(scene: Scene) -> Scene:
        names = [camera.image_name for camera in scene.train]
        return dataclasses.replace(
            scene, tracks=Tracks(points.double(), dict.fromkeys(names, rows))
        )

    return change


def measure_time(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a captured step."""
    device = resolve_device(arguments.device)
    poses = PoseConfig(pose_refinement=True, pose_lr=1e-9, pose_from_iter=0)
    depths = DepthConfig(depth_loss=True)

    def strategies(with_poses: bool, with_depths: bool) -> Callable[[Scene], list[Strategy[Any]]]:
        def build(scene: Scene) -> list[Strategy[Any]]:
            made = [poses.build(scene) if with_poses else None]
            made += [depths.build(scene) if with_depths else None]
            return [strategy for strategy in made if strategy is not None]

        return build

    found: dict[str, Any] = {}
    for name in ("random-500",) if arguments.small else arguments.workloads:
        w = small_gaussians() if name == SMALL else workload(name)
        times: dict[str, float] = {}
        for kind, which in (
            ("neither", (False, False)),
            ("poses", (True, False)),
            ("depths", (False, True)),
            ("both", (True, True)),
            ("neither, again", (False, False)),
        ):
            place = Path(tempfile.mkdtemp(dir=folder))
            change = _with_tracks(w.means.cpu())
            trainer = build_workload(w, place, device, change=change, more=strategies(*which))
            run_steps(trainer, 2 if arguments.small else WARM_UP)
            spans, steps = (1, 2) if arguments.small else (SPANS, STEPS)
            times[kind] = round(1e3 * seconds_per_step(trainer, spans=spans, steps=steps), 4)
            trainer.images.close()
        base = min(times["neither"], times["neither, again"])
        more = {k: round(100 * (times[k] / base - 1), 2) for k in ("poses", "depths", "both")}
        found[name] = {"ms": times, "percent_more": more}
        print(name, json.dumps(found[name]), flush=True)
    return found


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m bench.poses`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="short runs, to try the bench out")
    parser.add_argument("--out", type=Path, default=Path("output") / "poses")
    parser.add_argument("--workloads", nargs="+", default=[SMALL], help="of time")
    parser.add_argument("words", nargs="*", help="further flags of the trainings, after --")
    arguments = parser.parse_args(args)
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.out) as name:
        folder = Path(name)
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "wrong": lambda: measure_poses(folder, arguments, disturbed),
            "exact": lambda: measure_poses(folder, arguments, lambda scene: scene),
            "sparse": lambda: measure_depths(folder, arguments),
            "time": lambda: measure_time(folder, arguments),
        }
        for part in arguments.parts:
            print(f"{part}:", flush=True)
            found[part] = measures[part]()
            write_json(arguments.out / "poses.json", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    run_cli(main)
