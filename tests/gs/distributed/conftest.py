"""Ranks for tests: simulated ones, and processes that live as long as a file's tests."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gs.data.scene import Scene
from gs.distributed.simulated import simulate

N_PROCESSES = 3


def _jobs() -> ModuleType:
    """jobs.py, which cannot be imported by name from here."""
    spec = importlib.util.spec_from_file_location("jobs", Path(__file__).parent / "jobs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def jobs() -> ModuleType:
    return _jobs()


@pytest.fixture(scope="session")
def small_scene(
    write_scene: Callable[..., Scene], turned_view: Callable[[float], torch.Tensor]
) -> str:
    """Folder of eight views 48x40 of 300 Gaussians, six of them to train on."""
    g = torch.Generator().manual_seed(0)
    points, colors = torch.rand(300, 3, generator=g) * 2 - 1, torch.rand(300, 3, generator=g)
    views = [turned_view(0.3 * i - 1.0) for i in range(8)]
    start = points + 0.05 * torch.randn(300, 3, generator=g), colors
    scene = write_scene(points, colors, views, 6, (48, 40), 50.0, start)
    cameras = [
        (c.image_name, c.width, c.height, c.viewmat, c.K) for c in (*scene.train, *scene.test)
    ]
    kept = {"cameras": cameras, "n_train": 6, "points": start[0], "colors": start[1]}
    torch.save(kept, scene.source / "scene.pt")
    return str(scene.source)


@pytest.fixture(scope="module")
def processes(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """processes(n, name, *args, **options): what each of n processes returns for a job."""
    path = Path(__file__).parent / "jobs.py"
    environment = os.environ | {"PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(N_PROCESSES)
    ]
    folder, n_jobs = tmp_path_factory.mktemp("results"), 0

    def run(n: int, name: str, *args: Any, **options: Any) -> list[Any]:
        nonlocal n_jobs
        n_jobs += 1
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        files = [folder / f"{n_jobs}_{rank}.pt" for rank in range(n)]
        for rank, process in enumerate(running[:n]):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            job = {"name": name, "args": args, "options": options, "environment": place}
            assert process.stdin is not None
            process.stdin.write(json.dumps(job | {"result": str(files[rank])}) + "\n")
            process.stdin.flush()
        for process in running[:n]:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n", "a process has failed"
        return [torch.load(path) for path in files]

    yield run
    for process in running:
        process.stdin.close() if process.stdin is not None else None
        process.wait(timeout=30)


@pytest.fixture
def simulated(jobs: ModuleType) -> Callable[..., Any]:
    """simulated(n, name, *args, **options): the same of n simulated ranks."""

    def run(n: int, name: str, *args: Any, **options: Any) -> list[Any]:
        return simulate(n, lambda ranks: jobs.JOBS[name](ranks, *args, **options))

    return run
