"""What a killed rank costs: three processes train the built-in scene, one is killed, two go on.

    python -m bench.killed_rank [--iterations 600] [--device cuda] [--out DIR]

Three processes under torchrun train with masks through gloo, as several of them may share one GPU:
once undisturbed, once until one is killed with SIGKILL after the checkpoint in the middle. All end;
two processes go on from the last checkpoint. PSNR of the test views must be within LIMIT of that of
the undisturbed run. The line that is printed begins with `holds` or `DOES NOT HOLD`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gs.data.demo import write_demo_scene
from gs.errors import SplatrimError, run_cli
from gs.run_record import saved_checkpoints

LIMIT = 0.1  # dB
BATCH = 3
PATIENCE = 280.0  # seconds


def start(scene: Path, out: Path, n: int, *options: str) -> subprocess.Popen[str]:
    """torchrun of n processes, which write to a log beside `out`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = ["train.py", "-s", str(scene), "-m", str(out), "--eval", "--quiet"]
    settings = ["--method", "mask-gaussian", "--batch", str(BATCH), "--rank_backend", "gloo"]
    log = out.with_suffix(f".{n}.txt").open("w")
    return subprocess.Popen(
        [*launcher, "--nproc_per_node", str(n), *run, *settings, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait(process: subprocess.Popen[str], log: Path) -> None:
    """Until it ends well.

    Raises:
        SplatrimError: It ends otherwise.
    """
    if process.wait(timeout=PATIENCE) != 0:
        raise SplatrimError(f"{log.name}: {log.read_text()[-2000:]}")


def kill_one(process: subprocess.Popen[str], out: Path, step: int) -> int:
    """Kill the last rank once there is a checkpoint of iteration `step`; the last that is whole.

    Raises:
        SplatrimError: The run ended before, or well.
    """
    deadline = time.monotonic() + PATIENCE
    while max(saved_checkpoints(out), default=0) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SplatrimError(f"there is no checkpoint of iteration {step}")
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(max(map(int, children)), signal.SIGKILL)
    if process.wait(timeout=PATIENCE) == 0:
        raise SplatrimError("the run went on without its rank: give more --iterations")
    return max(saved_checkpoints(out))


def test_psnr(out: Path) -> float:
    """Of the last evaluation, in dB."""
    tests = json.loads((out / "history.json").read_text())["test"]
    return float(tests[-1]["psnr"])


def say(began: float, text: str) -> None:
    """A line at once, with the seconds that have passed."""
    print(f"{time.perf_counter() - began:5.0f} s: {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--views", type=int, default=40)
    parser.add_argument("--width", type=int, default=200)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="keep runs and logs here, which must be empty")
    args = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = args.out or Path(folder)
        scene, whole, broken = root / "scene", root / "whole", root / "broken"
        write_demo_scene(scene, views=args.views, width=args.width, height=args.width * 3 // 4)
        every = args.iterations // 6 // BATCH * BATCH
        options = ["--iterations", str(args.iterations), "--checkpoint_interval", str(every)]
        options += ["--device", args.device]
        first = start(scene, whole, 3, *options)
        second = start(scene, broken, 3, *options)
        last = kill_one(second, broken, 3 * every)
        say(began, f"a rank is dead; the last checkpoint is that of iteration {last}")
        checkpoint = str(saved_checkpoints(broken)[last])
        third = start(scene, broken, 2, *options, "--start_checkpoint", checkpoint)
        wait(third, broken.with_suffix(".2.txt"))
        say(began, "two ranks have come to the end")
        wait(first, whole.with_suffix(".3.txt"))
        want, got = test_psnr(whole), test_psnr(broken)
    holds = abs(got - want) <= LIMIT
    print(
        f"{'holds' if holds else 'DOES NOT HOLD'}: 3 processes, one killed, 2 went on from"
        f" iteration {last} of {args.iterations}: {got:.3f} dB, undisturbed {want:.3f}, difference"
        f" {got - want:+.3f} within {LIMIT} ({time.perf_counter() - began:.0f} s)"
    )
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    run_cli(main)
