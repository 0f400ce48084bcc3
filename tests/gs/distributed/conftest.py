"""Simulated ranks for tests, and what they train on; processes are in the folder above."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gs.data.scene import Scene
from gs.distributed.simulated import simulate


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


@pytest.fixture
def simulated(jobs: ModuleType) -> Callable[..., Any]:
    """simulated(n, name, *args, **options): the same of n simulated ranks."""

    def run(n: int, name: str, *args: Any, **options: Any) -> list[Any]:
        return simulate(n, lambda ranks: jobs.JOBS[name](ranks, *args, **options))

    return run
