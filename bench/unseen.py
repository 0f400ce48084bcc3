"""What pushing Gaussians that no image of a step shows does to masks.

    python -m bench.unseen -s SCENE [--seeds 0 1] [--settings all/all seen/all seen/seen] [FLAGS]

Trains mask-gaussian with each setting, `--regularise` / `--adam_rows`, and further flags of
train.py; all trainings of a seed at once with `--together`, where time is not looked at. Per run a
row: the share of Gaussians that a step's images see, the share whose mask logits a step has moved
though it did not see them, both the mean over the run, PSNR of the test views, Gaussians saved.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gs.errors import SplatrimError, run_cli
from gs.model.ply import load_ply

SETTINGS = ("all/all", "seen/all", "seen/seen")
HEAD = ("regularise/adam_rows", "seed", "seen", "moved unseen", "PSNR", "Gaussians")


def start(scene: Path, out: Path, setting: str, seed: int, flags: list[str]) -> subprocess.Popen:
    """A training, whose log is beside `out`."""
    regularise, rows = setting.split("/")
    words = ["-s", str(scene), "-m", str(out), "--eval", "--quiet", "--method", "mask-gaussian"]
    words += ["--regularise", regularise, "--adam_rows", rows, "--seed", str(seed), *flags]
    log = out.with_suffix(".txt").open("w")
    return subprocess.Popen([sys.executable, "train.py", *words], stdout=log, stderr=log)


def row_of(out: Path, setting: str, seed: int) -> tuple[str, ...]:
    """What the run has come to.

    Raises:
        SplatrimError: It has not come to an end.
    """
    if not (out / "history.json").is_file():
        raise SplatrimError(out.with_suffix(".txt").read_text()[-1000:])
    history = json.loads((out / "history.json").read_text())
    seen = statistics.mean(x["seen"] for x in history["unseen"])
    moved = statistics.mean(x["moved"]["mask_logits"] for x in history["unseen"])
    model = load_ply(
        max(out.glob("point_cloud/*/point_cloud.ply"), key=lambda p: p.stat().st_mtime)
    )
    psnr = history["test"][-1]["psnr"]
    return setting, str(seed), f"{seen:.3f}", f"{moved:.3f}", f"{psnr:.2f}", f"{len(model):,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-s", "--scene", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS)
    parser.add_argument("--together", action="store_true", help="train a seed's runs side by side")
    args, flags = parser.parse_known_args()
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            outs = {s: Path(folder) / f"{seed}-{s.replace('/', '-')}" for s in args.settings}
            running = {}
            for setting, out in outs.items():
                running[setting] = start(args.scene, out, setting, seed, flags)
                if not args.together:
                    running[setting].wait()
            for setting, out in outs.items():
                running[setting].wait()
                print(f"| {' | '.join(row_of(out, setting, seed))} |", flush=True)


if __name__ == "__main__":
    run_cli(main)
