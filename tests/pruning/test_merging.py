"""Merging: which pairs, exactly how many are left, schedules, and whole runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig
from gs.model.renderer import render
from gs.training.checkpoint import load_checkpoint
from gs.training.optimizer import build_optimizer
from gs.training.trainer import Trainer
from pruning.merging import Merging, MergingConfig, merge_down, mutual_pairs
from pruning.mixtures import Mixture

pytestmark = pytest.mark.usefixtures("one_thread")


def cloud(points: Tensor, colors: Tensor | None = None) -> Gaussians:
    gaussians = Gaussians.from_points(points, points * 0 + 0.5 if colors is None else colors)
    gaussians.params["scales"].data.fill_(-2.0)
    return gaussians


def test_pairs_that_find_each_other() -> None:
    x = torch.tensor([0.0, 0.1, 0.5, 3.0, 3.05, 9.0])  # 2 would go with 1, which has 0
    gaussians = cloud(torch.stack([x, 0 * x, 0 * x], -1))
    a, b = mutual_pairs(Mixture(gaussians.to_tensors()), torch.arange(6), 3, 1.0)
    assert a.tolist() == [3, 0] and b.tolist() == [4, 1]
    a, b = mutual_pairs(Mixture(gaussians.to_tensors()), torch.tensor([1, 3, 5, 0, 2, 4]), 5, 1.0)
    assert a.tolist() == [3, 0] and b.tolist() == [4, 1]
    # the other colour keeps them apart
    colors = torch.full((6, 3), 0.5)
    colors[4] = 1.0
    gaussians = cloud(torch.stack([x, 0 * x, 0 * x], -1), colors)
    a, b = mutual_pairs(Mixture(gaussians.to_tensors()), torch.arange(6), 3, 1000.0)
    assert (3, 4) not in zip(a.tolist(), b.tolist(), strict=True)


def test_one_alone_has_no_partner() -> None:
    a, b = mutual_pairs(Mixture(cloud(torch.zeros(1, 3)).to_tensors()), torch.arange(1), 8, 1.0)
    assert len(a) == len(b) == 0


def test_exactly_so_many_are_left_and_the_rest_is_as_it_was() -> None:
    gaussians = cloud(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)))
    optimizer = build_optimizer(gaussians, OptimConfig(), extent=1.0)
    for parameter in gaussians.params.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = {name: x.detach().clone() for name, x in gaussians.params.items()}
    merge_down(gaussians, optimizer, 170, MergingConfig(), seed=0)
    assert len(gaussians) == 170
    ids = gaussians.rows["ids"].long()
    old = ids < 200
    assert int(old.sum()) == 140 and len(ids.unique()) == 170 and gaussians.next_id == 230
    for name, x in gaussians.params.items():
        assert torch.equal(x[old], before[name][ids[old]]), name
        moments = optimizer.state[x]["exp_avg"]
        assert moments[old].any() and not moments[~old].any(), name
    merge_down(gaussians, optimizer, 20, MergingConfig(), seed=0)
    assert len(gaussians) == 20
    assert all(bool(x.isfinite().all()) for x in gaussians.params.values())


def test_a_model_of_twins_looks_the_same(scene: Scene) -> None:
    once = cloud(scene.points, scene.colors)
    twins = cloud(scene.points.repeat(2, 1), scene.colors.repeat(2, 1))
    with torch.no_grad():
        want = render(twins, scene.train[0]).colors
        merge_down(twins, None, 80, MergingConfig(), seed=0)
        got = render(twins, scene.train[0]).colors
        single = render(once, scene.train[0]).colors
    # of twins, each reaches only where it alone is above 1/255
    assert (got - want).abs().max() < 0.02 < (single - want).abs().max()


def test_schedules() -> None:
    config = MergingConfig(merge_iterations=(12_000, 18_000))
    assert config.scaled(0.5).merge_iterations == (6000, 9000)
    assert config.post_training(30_000, 35_000).merge_iterations == (30_001, 31_251)
    assert MergingConfig().post_training(30_000, 35_000).merge_iterations == (30_001,)
    with pytest.raises(SplatrimError, match="at least 4 iterations"):
        config.post_training(30_000, 30_003)
    with pytest.raises(SplatrimError, match="--merge_iterations must be positive and ascending"):
        MergingConfig(merge_iterations=(5, 5))
    with pytest.raises(SplatrimError, match="--survivors"):
        MergingConfig(survivors="1.5x")
    with pytest.raises(SplatrimError, match="saved before its last step merges"):
        Merging(MergingConfig()).setup(
            cloud(torch.zeros(2, 3)), extent=1.0, iterations=16_000, seed=0
        )


def make(scene: Scene, out: Path, start: Any = None, **settings: Any) -> Trainer:
    config = MergingConfig(survivors="0.5x", merge_iterations=(6, 14))
    train = TrainConfig(out, iterations=20, quiet=True, device="cpu", **settings)
    return Trainer(train, scene, strategies=[config.build(densify_until=0)], start=start)


def test_a_run_merges_in_equal_parts_and_resumes(scene: Scene, tmp_path: Path) -> None:
    whole = make(scene, tmp_path / "whole", checkpoint_iterations=(10,))
    whole.fit()
    start = load_checkpoint(tmp_path / "whole" / "chkpnt10.pth")
    assert len(start["params"]["means"]) == 57  # 80 / sqrt(2)
    assert len(whole.gaussians) == 40
    resumed = make(scene, tmp_path / "resumed", start)
    resumed.fit()
    for name, x in whole.gaussians.params.items():
        assert torch.equal(resumed.gaussians.params[name], x), name
