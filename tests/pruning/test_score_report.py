"""Histogram of scores, and quality over the share pruned."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gs.data.camera import Camera
from gs.evaluation.views import evaluate_views, mean_scores, quantize
from gs.files import read_json
from gs.model.gaussians import Gaussians
from gs.model.renderer import render
from pruning.score_report import quality_curve, score_histogram, write_pruning
from pruning.scores import accumulate_scores


class Images(list[Any]):
    def prefetch(self, indices: list[int], /) -> None:
        pass


def scene(n: int = 40) -> tuple[Gaussians, list[Camera], Images]:
    """A model, two views, and its own renderings as their images."""
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(n, 3, generator=generator) * 2 - 1
    model = Gaussians.from_points(points, torch.rand(n, 3, generator=generator), sh_degree=0)
    model.params["opacities"].data = 2 * torch.randn(n, generator=generator)
    cameras = []
    for x in (-0.5, 0.5):
        viewmat = torch.eye(4)
        viewmat[0, 3], viewmat[2, 3] = x, 4.0
        K = torch.tensor([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]])
        cameras.append(Camera(f"{x}.png", None, 32, 24, viewmat, K, 32, 24))
    images = Images(quantize(render(model, camera).colors) for camera in cameras)
    return model, cameras, images


def test_histogram_counts_every_score() -> None:
    scores = torch.tensor([0.0, 0.0, 1e-4, 1e-3, 1e-3, 0.1, 1.0])
    histogram = score_histogram(scores, bins=4)
    assert histogram["edges"] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert histogram["n_zero"] == 2
    assert sum(histogram["counts"]) == 5
    # away from the edges, where rounding decides nothing
    assert score_histogram(torch.tensor([1e-4, 3e-3, 4e-3, 1.0]), bins=4)["counts"] == [1, 2, 0, 1]


def test_histogram_of_nothing() -> None:
    assert score_histogram(torch.zeros(3)) == {"edges": [], "counts": [], "n_zero": 3}
    one = score_histogram(torch.full((3,), 0.5), bins=2)
    assert sum(one["counts"]) == 3 and len(one["edges"]) == 3


def test_curve_falls_from_the_whole_model() -> None:
    model, cameras, images = scene()
    scores = accumulate_scores(model, cameras, "mini-splatting")
    curve = quality_curve(model, cameras, images, scores, (0.0, 0.25, 0.5, 0.9, 1.0))
    assert [point["n_gaussians"] for point in curve] == [40, 30, 20, 4, 0]
    assert curve[0]["psnr"] == pytest.approx(120.0)
    psnrs = [point["psnr"] for point in curve]
    assert psnrs == sorted(psnrs, reverse=True) and psnrs[1] > psnrs[3] + 3
    # and the best removed first is worse than the worst
    other = quality_curve(model, cameras, images, -scores, (0.25,))
    assert other[0]["psnr"] < psnrs[1] - 3
    assert len(model) == 40


def test_curve_of_some_views_over_a_background() -> None:
    model, cameras, images = scene()
    scores = torch.arange(40.0)
    white = torch.ones(3)
    kept = {name: values[10:] for name, values in model.to_tensors().items()}
    views = evaluate_views(
        Gaussians.from_tensors(kept, active_sh_degree=0), cameras, images, white, indices=[1]
    )
    curve = quality_curve(model, cameras, images, scores, (0.25,), background=white, indices=[1])
    assert curve == [{"ratio": 0.25, "n_gaussians": 30, "psnr": mean_scores(views)["psnr"]}]


def test_going_on_replaces_what_came_after(tmp_path: Path) -> None:
    model, cameras, images = scene()
    path, scores = tmp_path / "pruning.json", torch.rand(40)
    for step, n_left in ((5, 30), (9, 20), (5, 25)):
        write_pruning(path, step, model, scores, n_left, cameras, None)
    (entry,) = read_json(path)
    assert (entry["iteration"], entry["n_left"], entry["curve"]) == (5, 25, [])
    write_pruning(path, 9, model, scores, 20, cameras, images)
    assert [entry["iteration"] for entry in read_json(path)] == [5, 9]
    assert all(math.isfinite(point["psnr"]) for point in read_json(path)[1]["curve"])
