"""train.py under torchrun: a killed rank, errors that are told once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gs.data.demo import write_demo_scene
from gs.run_record import saved_checkpoints


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "scene"
    write_demo_scene(folder, views=16, width=96, height=64)
    return folder


def start(
    repo: Path, demo: Path, out: Path, *options: str, restarts: int = 0, n: int = 2
) -> subprocess.Popen[str]:
    """torchrun of train.py, on tiny images."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc_per_node", str(n), "--max-restarts", str(restarts)]
    run = ["-s", str(demo), "-m", str(out), "-r", "2", "--device", "cpu", "--quiet", "--eval"]
    return subprocess.Popen(
        [*launcher, "train.py", *run, "--init_points", "300", *options],
        cwd=repo,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers(launcher: int) -> list[int]:
    """The processes that torchrun has started, in their order."""
    path = Path(f"/proc/{launcher}/task/{launcher}/children")
    return sorted(int(word) for word in path.read_text().split())


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_a_killed_rank_costs_an_interval(repo: Path, demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--iterations", "60", "--batch", "4", "--checkpoint_interval", "10")
    process = start(repo, demo, out, *options, "--rank_timeout", "30", restarts=1)
    deadline = time.monotonic() + 120
    while not any(out.glob("chkpnt*/manifest.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told[-2000:]
    sentences = [line for line in told.splitlines() if line.startswith("error:")]
    assert len(sentences) == 1 and "rank 1 has ended at iteration" in sentences[0]
    assert "--start_checkpoint" in sentences[0]
    assert "iteration 60: saved" in (out / "train.log").read_text()
    assert max(saved_checkpoints(out)) == 60 and not [*out.rglob("*.tmp")]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--densifier", "taming"), "--densifier taming does not run on several GPUs yet: use"),
        (("--method", "lp-3dgs"), "--method lp-3dgs does not run on several GPUs yet: use"),
        (("--batch", "0"), "batch"),
        (("--batsch", "8"), "--batsch"),
    ],
    ids=["densifier", "method", "batch", "flag"],
)
def test_errors_are_told_once(
    repo: Path, demo: Path, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    process = start(repo, demo, tmp_path / "out", "--iterations", "40", *options)
    _, told = process.communicate(timeout=100)
    assert process.returncode != 0 and not (tmp_path / "out").exists()
    sentences = [line for line in told.splitlines() if line.startswith("error:")]
    assert len(sentences) == 1 and sentence in sentences[0]
