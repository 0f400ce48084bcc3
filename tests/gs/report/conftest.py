"""A finished run to report, as files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gs.model.ply import save_ply


def write_run(out: Path, *, n_views: int = 8) -> None:
    """All files of a finished, measured run."""
    out.mkdir(parents=True)
    n = 40
    save_ply(
        out / "point_cloud/iteration_300/point_cloud.ply",
        {
            "means": torch.zeros(n, 3),
            "quats": torch.ones(n, 4),
            "scales": torch.zeros(n, 3),
            "opacities": torch.zeros(n),
            "sh0": torch.zeros(n, 1, 3),
            "shN": torch.zeros(n, 15, 3),
        },
    )
    steps = list(range(10, 301, 10))
    history = {
        "step": steps,
        "loss": [0.3 / s for s in steps],
        "psnr": [10 + 0.05 * s for s in steps],
        "n_gaussians": [50 + (s if s < 160 else 300 - s) for s in steps],
        "n_used": [40 + (s if s < 160 else 300 - s) for s in steps],
        "seconds": steps,
        "test": [{"step": 150, "psnr": 20.0, "l1": 0.1}, {"step": 300, "psnr": 24.0, "l1": 0.05}],
        "settings": {},
        "timing": {"train_seconds": 245.0, "iterations_per_second": 1.224, "device": "cpu"},
    }
    settings = {
        "source_path": "/data/<garden> & co",
        "method": "mask-gaussian",
        "eval": True,
        "iterations": 300,
        "pruning": {"lambda_mask": 0.0005, "deep": {"on": True}},
    }
    names = [f"{i:05d}.png" for i in range(n_views)]
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        truth = rng.integers(0, 200, (12, 16, 3), np.uint8)
        for kind, image in (("gt", truth), ("renders", truth + np.uint8(5 * i))):
            (out / "test/ours_300" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(out / "test/ours_300" / kind / name)
    means = {"PSNR": 24.125, "SSIM": 0.8125, "LPIPS": 0.25}
    per_view = {m: {k: v + i for i, k in enumerate(names)} for m, v in means.items()}
    views = [f"cam/{i}.jpg" for i in range(n_views)]
    stats = {"fps": 12.5, "ms": 80.0, "device": "CPU", "width": 16, "height": 12}
    stats["test"] = {"psnr": 24.125, "views": views}
    for name, data in {
        "history": history,
        "config": settings,
        "results": {"ours_300": means},
        "per_view": {"ours_300": per_view},
        "render_stats": {"ours_300": stats},
    }.items():
        (out / f"{name}.json").write_text(json.dumps(data))


@pytest.fixture(scope="session", name="write_run")
def writer() -> Callable[..., None]:
    """`write_run`, for tests that cannot import this file."""
    return write_run
