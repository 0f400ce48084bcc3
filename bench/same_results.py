"""Checkpoints of short trainings as hashes, to see that a refactoring changes no result:

    python -m bench.same_results --out before.json [--tree FOLDER] [--device cuda] [--only NAME ...]
    python -m bench.same_results --compare before.json after.json

Trains the built-in scene at a fifth of its size for 60 iterations in each of CASES: every method
and densifier, with densification, opacity reset, pruning and mask phases within; some go on from
another case's checkpoint, or from its .ply. --tree is the checkout that trains; its `train.py` runs
as a user would call it, on one thread, with equal gradients on a GPU (--deterministic).

A hash is of a tensor's dtype, shape and bytes, under its name: parameters, row buffers, Adam's
moments, columns of the saved .ply. How a file holds them does not count. Floats of PyTorch differ
between its builds and processors: compare what one machine wrote.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from plyfile import PlyData
from torch import Tensor

from gs.errors import SplatrimError, run_cli
from gs.files import check_writable, read_json, write_json

STOP, END = 30, 60  # iterations with a checkpoint
POST_START = 30_000  # the iteration at which a .ply begins
SHARED = "--eval -r 40 --quiet --deterministic --sh_degree_interval 12"
WINDOW = "--densify_from_iter 4 --densify_until_iter 42"
DENSIFY = {
    "default": f"{WINDOW} --densification_interval 6 --opacity_reset_interval 21"
    " --densify_grad_threshold 1.5e-3",
    "taming": f"{WINDOW} --densification_interval 9 --opacity_reset_interval 21"
    " --densify_grad_threshold 1.5e-3 --budget 1.2x --score_views 3",
    "mcmc": f"{WINDOW} --densification_interval 6 --budget 1.2x --min_opacity 0.08",
    "error": f"{WINDOW} --densification_interval 6 --budget 1.2x --densify_grad_threshold 1.5e-3"
    " --opacity_resets 1 --opacity_reset_interval 15 --recovery_delay 8",
}
MASKS = (
    "--method mask-gaussian --lambda_mask 0.3 --mask_from_iter 3 --mask_until_iter 55"
    " --mask_prune_iter 4 --mask_lr 0.15"
)
LP = "--method lp-3dgs --mask_from_iter 20 --mask_until_iter 50 --score_interval 5 --logit_lr 0.1"
SELECTION = (
    "--method natural-selection --survivors 0.7x --select_from_iter 40 --select_until_iter 56"
    " --select_interval 3"
)
TWICE = "--prune_iterations 17 47"

Fingerprint: TypeAlias = dict[str, str | float]


@dataclass(frozen=True)
class Case:
    """One training: flags of train.py beside SHARED."""

    flags: str
    densifier: str | None = "default"
    """None where nothing is densified."""
    start: tuple[str, str] | None = None
    """A flag, and the file that it names in the folder of the case before the colon."""
    iterations: int = END


def _post(flags: str) -> Case:
    ply = f"3dgs:point_cloud/iteration_{END}/point_cloud.ply"
    return Case(flags, None, ("--start_ply", ply), POST_START + END)


CASES: dict[str, Case] = {
    "3dgs": Case("--method 3dgs"),
    "3dgs taming": Case("--method 3dgs", "taming"),
    "3dgs mcmc": Case("--method 3dgs", "mcmc"),
    "3dgs error": Case("--method 3dgs", "error"),
    "3dgs reordered on white": Case("--method 3dgs --reorder -w"),
    "3dgs on random colours": Case("--method 3dgs --random_background"),
    "3dgs fast": Case("--method 3dgs --recipe fast"),
    "mask-gaussian": Case(MASKS),
    "mask-gaussian taming": Case(MASKS, "taming"),
    "mask-gaussian mcmc": Case(MASKS, "mcmc"),
    "mask-gaussian sampled": Case(f"{MASKS} --mean_over start --final_mask sample"),
    "natural-selection error": Case(SELECTION, "error"),
    "merging": Case("--method merging --merge_iterations 30 48"),
    "polarized": Case("--method polarized --preset smooth --polarize_from_iter 42"),
    "lp-3dgs": Case(LP),
    "lp-3dgs mini-splatting": Case(f"{LP} --preset mini-splatting --score_source masked"),
    "lp-3dgs straight-through": Case(f"{LP} --preset straight-through --mask_threshold 0.49"),
    "radsplat": Case(f"--method radsplat {TWICE} --threshold 0.01"),
    "mini-splatting": Case(f"--method mini-splatting {TWICE}"),
    "light-gaussian": Case(f"--method light-gaussian {TWICE}"),
    "opacity": Case(f"--method opacity {TWICE} --ratio 0.2"),
    "resumed 3dgs mcmc": Case(
        "--method 3dgs", "mcmc", ("--start_checkpoint", f"3dgs mcmc:chkpnt{STOP}.pth")
    ),
    "resumed mask-gaussian": Case(
        MASKS, start=("--start_checkpoint", f"mask-gaussian:chkpnt{STOP}.pth")
    ),
    "resumed lp-3dgs": Case(LP, start=("--start_checkpoint", f"lp-3dgs:chkpnt{STOP}.pth")),
    "post 3dgs": _post("--method 3dgs"),
    "post mask-gaussian": _post("--method mask-gaussian"),
    "post lp-3dgs": _post("--method lp-3dgs"),
    "post natural-selection": _post("--method natural-selection"),
    "post merging": _post("--method merging"),
    "post polarized": _post("--method polarized --preset polar"),
    "post light-gaussian": _post("--method light-gaussian"),
    "post mask-gaussian, checkpoint": Case(
        "--method mask-gaussian", None, ("--start_checkpoint", f"3dgs:chkpnt{END}.pth"), 2 * END
    ),
}


def run_cases(
    tree: Path, work: Path, *, device: str, only: Iterable[str] = (), at_once: int = 1
) -> dict[str, Fingerprint]:
    """Train the cases, and those that they start from, and take their fingerprints.

    Args:
        tree: The checkout that trains.
        work: Folder for the scene ("scene", written if absent) and what trainings leave.
        device: As train.py's.
        only: Names of CASES; empty for all.
        at_once: How many trainings run at a time.

    Raises:
        SplatrimError: there is no such case, or a command fails.
    """
    wanted = list(only) or list(CASES)
    unknown = [name for name in wanted if name not in CASES]
    if unknown:
        raise SplatrimError(f"no such case: {unknown[0]!r}; choose from {', '.join(CASES)}")
    scene = work / "scene"
    if not scene.exists():
        _run(tree, ["-m", "gs.data.demo", str(scene)])

    def train(name: str) -> Fingerprint:
        case, out = CASES[name], work / name
        words = ["train.py", "-s", str(scene), "-m", str(out), "--device", device]
        words += [*SHARED.split(), *case.flags.split(), "--iterations", str(case.iterations)]
        words += ["--checkpoint_iterations", str(STOP), str(case.iterations)]
        if case.densifier is not None:
            words += ["--densifier", case.densifier, *DENSIFY[case.densifier].split()]
        if case.start is not None:
            flag, (origin, file) = case.start[0], case.start[1].split(":")
            words += [flag, str(work / origin / file)]
        _run(tree, words)
        found = fingerprint(out, case.iterations)
        figures = "{n_gaussians:,} Gaussians, loss {loss}".format_map(found)
        print(f"{name}: {figures}", flush=True)
        return found

    starts = {name: case.start[1].split(":")[0] for name, case in CASES.items() if case.start}
    first = dict.fromkeys(starts.get(name, name) for name in wanted)
    then = [name for name in wanted if name not in first]
    done: dict[str, Fingerprint] = {}
    with ThreadPoolExecutor(at_once) as pool:
        for names in (list(first), then):
            done |= zip(names, pool.map(train, names), strict=True)
    return {name: done[name] for name in wanted}


def fingerprint(out: Path, iteration: int) -> Fingerprint:
    """Hashes and figures of what a training left in `out` at its last iteration, by name."""
    state = torch.load(out / f"chkpnt{iteration}.pth", map_location="cpu", weights_only=True)
    found: Fingerprint = {"n_gaussians": len(state["params"]["means"])}
    for part in ("params", "rows", "optimizer"):
        found |= _hash_tensors(state[part], part)
    ply = PlyData.read(out / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply")
    vertices = ply["vertex"].data
    for name in vertices.dtype.names:
        found[f"ply.{name}"] = _hash_tensor(torch.from_numpy(vertices[name].copy()))
    history = json.loads((out / "history.json").read_text())
    found["loss"] = history["loss"][-1]
    found["test psnr"] = history["test"][-1]["psnr"]
    return found


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """What differs between two mappings of equal names, one line each; [] if nothing does."""
    lines = []
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in after or name not in before:
            lines.append(f"{name}: only {'before' if name in before else 'after'}")
        elif before[name] != after[name]:
            lines.append(f"{name}: {before[name]} before, {after[name]} after")
    return lines


def _hash_tensors(tree: Mapping[str, object], prefix: str) -> Fingerprint:
    """Numbers as they are and tensors of one dimension or more as hashes, by dotted name."""
    found: Fingerprint = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            found |= _hash_tensors(value, name)
        elif isinstance(value, Tensor) and value.dim():
            found[name] = _hash_tensor(value)
        elif isinstance(value, (Tensor, int, float)):
            found[name] = float(value)
    return found


def _hash_tensor(x: Tensor) -> str:
    data = x.contiguous().view(torch.uint8).numpy().tobytes() if x.numel() else b""
    head = f"{x.dtype} {list(x.shape)} ".encode()
    return hashlib.sha256(head + data).hexdigest()[:16]


def _run(tree: Path, words: list[str]) -> None:
    """Run Python in the checkout, on one thread; its packages come before any other."""
    path = os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise SplatrimError(f"{' '.join(words)}: exit status {done.returncode}: {last}")


def _compare(files: list[Path], only: list[str]) -> int:
    """Print what differs between two files of hashes, and how many of their cases do."""
    before, after = (read_json(file) for file in files)
    lines = differences(before["made"], after["made"])
    names = dict.fromkeys([*before["cases"], *after["cases"]])
    n_different = 0
    for name in (name for name in names if not only or name in only):
        found = differences(before["cases"].get(name, {}), after["cases"].get(name, {}))
        n_different += bool(found)
        lines += [f"{name}: {line}" for line in found]
    print("\n".join([*lines, f"{n_different} of {len(only or names)} cases differ"]))
    return n_different


def main() -> None:
    """Train and write hashes, or compare two files of them: exit status 1 where they differ."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.same_results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="file to write")
    what.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--tree", type=Path, default=Path(), help="checkout that trains: here")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--only", nargs="+", default=[], help="these cases alone", metavar="CASE")
    parser.add_argument("--at_once", type=int, default=1, help="trainings that run at a time")
    parser.add_argument("--work", type=Path, help="keep scene and trainings in this folder")
    args = parser.parse_args()
    if args.compare:
        sys.exit(1 if _compare(args.compare, args.only) else 0)
    check_writable(args.out.parent)
    with tempfile.TemporaryDirectory() as folder:
        work = (args.work or Path(folder)).absolute()
        cases = run_cases(
            args.tree.absolute(), work, device=args.device, only=args.only, at_once=args.at_once
        )
        images = sorted((work / "scene" / "images").iterdir())
        scene = hashlib.sha256(b"".join(image.read_bytes() for image in images))
    made = {"torch": torch.__version__, "device": args.device, "scene": scene.hexdigest()[:16]}
    write_json(args.out, {"made": made, "cases": cases})


if __name__ == "__main__":
    run_cli(main)
