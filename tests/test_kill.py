"""kill -9 at any moment: every file is whole, the run goes on to the same bits, nothing is left.

$SPLATRIM_KILLS=30 kills twice within every kind of save and at random moments else; the default is
two kills within saves.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from gs.data.demo import write_demo_scene
from gs.model.ply import load_ply
from gs.run_record import find_model, saved_checkpoints
from gs.training.checkpoint import load_checkpoint

N_KILLS = int(os.environ.get("SPLATRIM_KILLS", "2"))
KINDS = (
    "point_cloud.ply",
    "chkpnt",
    "run.json",
    "history.json",
    "config.json",
    "cameras.json",
    "cfg_args",
    "input.ply",
)
# dies in the `count`th save of a kind: with half of it written, or before it gets its name
DRIVER = """
import os, signal, sys
kind, moment, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.argv = ["train.py", *sys.argv[4:]]
import gs.files
import train
from gs.errors import run_cli
seen = 0
real = gs.files._RecordingFile
class Deadly(real):
    def write(self, data):
        global seen
        name = os.path.basename(self.name)
        if name.startswith("." + kind):
            seen += 1
            if seen >= count and moment == "half":
                super().write(bytes(data)[: max(len(data) // 2, 1)])
                os.kill(os.getpid(), signal.SIGKILL)
        return super().write(data)
gs.files._RecordingFile = Deadly
replace = os.replace
def deadly_replace(source, target):
    if os.path.basename(str(target)).startswith(kind) and seen >= count and moment == "named":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = deadly_replace
run_cli(train.main)
"""


def cases() -> list[tuple[str, str, int]]:
    """Kind of save ("" for any moment), moment and count."""
    within = [(kind, moment, 1) for kind in KINDS for moment in ("half", "named")]
    within[2:4] = [("chkpnt", "half", 2), ("chkpnt", "named", 1)]
    chosen = within if N_KILLS > 2 else [within[0], within[2]]
    return [*chosen, *(("", "random", seed) for seed in range(N_KILLS - len(chosen)))]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "demo"
    write_demo_scene(folder, views=9, width=32, height=24)
    return folder


def command(scene: Path, out: Path) -> list[str]:
    line = f"-s {scene} -m {out} --eval --quiet --device cpu --iterations 24 --init_points 300"
    line += " --checkpoint_iterations 5 10 15 20 24 --save_iterations 8 16 --test_iterations -1"
    return line.split()


def run(repo: Path, words: list[str], driver: tuple[str, str, int] | None = None) -> Any:
    """Start a training, with the driver's death or without."""
    program = [str(repo / "train.py")]
    if driver is not None:
        program = ["-c", DRIVER, *map(str, driver)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo)}
    return subprocess.Popen(
        [sys.executable, *program, *words], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def whole(
    scene: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> tuple[Path, float]:
    """The uninterrupted run, and how long it took."""
    out = tmp_path_factory.mktemp("whole") / "out"
    started = time.monotonic()
    train.main(command(scene, out))
    return out, time.monotonic() - started


def assert_whole(out: Path) -> None:
    """Every file under its own name can be read."""
    for path in out.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name == "point_cloud.ply":
            assert len(load_ply(path)["means"])
        elif path.suffix == ".pth":
            load_checkpoint(path)


def assert_same(got: Any, want: Any, where: str = "state") -> None:
    if isinstance(want, torch.Tensor):
        assert torch.equal(got, want), where
    elif isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for key in want:
            assert_same(got[key], want[key], f"{where}.{key}")
    else:
        assert got == want, where


@pytest.mark.parametrize(("kind", "moment", "count"), cases())
def test_a_killed_run_goes_on(
    repo: Path,
    scene: Path,
    whole: tuple[Path, float],
    tmp_path: Path,
    kind: str,
    moment: str,
    count: int,
) -> None:
    out, (reference, seconds) = tmp_path / "out", whole
    if kind:
        process = run(repo, command(scene, out), (kind, moment, count))
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
        assert [path for path in out.rglob("*.tmp") if path.name.startswith(f".{kind}")]
    else:
        process = run(repo, command(scene, out))
        time.sleep(random.Random(count).uniform(0.0, 1.1 * seconds))
        process.kill()
        process.communicate(timeout=300)
    assert_whole(out)

    saved = list(saved_checkpoints(out).values()) if out.is_dir() else []
    words = command(scene, out)
    if process.returncode != 0:  # else it came too late
        if saved and saved[-1].name == "chkpnt24.pth":  # nothing is left to do: once more
            words += ["--overwrite"]
        elif saved:
            words += ["--start_checkpoint", str(saved[-1])]
        train.main(words)
    assert_whole(out)
    assert not [p for p in out.rglob(".*") if p.suffix in (".tmp", ".lock")]
    iteration, ply = find_model(out)
    assert iteration == 24 and ply.read_bytes() == find_model(reference)[1].read_bytes()
    got, want = (load_checkpoint(folder / "chkpnt24.pth") for folder in (out, reference))
    for key in ("params", "rows", "shared", "optimizer", "strategies", "sampler", "next_id"):
        assert_same(got[key], want[key], key)
    losses = [json.loads((f / "history.json").read_text())["loss"] for f in (out, reference)]
    assert losses[0] == losses[1]
