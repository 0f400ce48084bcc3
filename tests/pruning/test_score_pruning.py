"""Baselines with a fixed rule: schedules, who is pruned, finished models, going on bit for bit."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import train
from gs.config import TrainConfig
from gs.data.demo import write_demo_scene
from gs.data.scene import Scene
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.ply import load_ply, save_ply
from gs.model.rates import OptimConfig
from gs.training.checkpoint import load_checkpoint
from gs.training.optimizer import build_optimizer
from gs.training.strategy import StepContext
from gs.training.trainer import Trainer
from pruning import (
    METHODS,
    LightGaussianConfig,
    MiniSplattingConfig,
    OpacityConfig,
    RadSplatConfig,
    ScorePruningConfig,
    prune_once,
)

WIDTH, HEIGHT = 40, 30
BASELINES = [name for name, config in METHODS.items() if issubclass(config, ScorePruningConfig)]
ALL_STEPS = [1, 5000, 14_999, *range(15_000, 30_001, 1000)]


pytestmark = pytest.mark.usefixtures("one_thread")


def cloud(n: int) -> Gaussians:
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(n, 3, generator=generator)
    return Gaussians.from_points(points, points, sh_degree=0)


def context(model: Gaussians) -> StepContext:
    nothing: Any = None
    optimizer = build_optimizer(model, OptimConfig(), extent=1.0)
    return StepContext(model, optimizer, nothing, nothing, 1.0, 30_000)


def fix_scores(monkeypatch: pytest.MonkeyPatch, config: ScorePruningConfig, s: Tensor) -> None:
    """Give every Gaussian the score of its id, so that they survive prunings."""
    monkeypatch.setattr(
        type(config), "score", lambda self, gaussians, cameras: s[gaussians.rows["ids"].long()]
    )


def survivors(
    monkeypatch: pytest.MonkeyPatch, config: ScorePruningConfig, scores: Tensor
) -> dict[int, list[int]]:
    """Ids that are left after each step that prunes, over the whole published length."""
    fix_scores(monkeypatch, config, scores)
    model, strategy = cloud(len(scores)), config.build(densify_until=15_000)
    strategy.setup(model, extent=1.0, iterations=30_000, seed=0)
    left: dict[int, list[int]] = {}
    for step in ALL_STEPS:
        n = len(model)
        strategy.after_backward(step, context(model))
        if len(model) < n:
            left[step] = model.rows["ids"].tolist()
    return left


def test_all_baselines_are_methods() -> None:
    assert {*BASELINES} == {"radsplat", "mini-splatting", "light-gaussian", "opacity"}
    for name in BASELINES:
        for preset in METHODS[name].PRESETS:
            assert METHODS[name].preset(preset).prune_iterations  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("preset", "dropped"), [("default", 2), ("light", 3), ("zip-nerf", 1), ("zip-nerf-light", 3)]
)
def test_radsplat(monkeypatch: pytest.MonkeyPatch, preset: str, dropped: int) -> None:
    scores = torch.tensor([0.001, 0.0099, 0.01, 0.25, 0.9])
    left = survivors(monkeypatch, RadSplatConfig.preset(preset), scores)
    assert left == {16_000: list(range(dropped, 5))}  # strictly below; the second finds none


def test_radsplat_prunes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RadSplatConfig()
    fix_scores(monkeypatch, config, torch.tensor([0.001, 0.5, 0.5]))
    model, strategy = cloud(3), config.build(densify_until=15_000)
    strategy.after_backward(16_000, context(model))
    assert model.rows["ids"].tolist() == [1, 2]
    fix_scores(monkeypatch, config, torch.tensor([0.5, 0.5, 0.001]))
    strategy.after_backward(24_000, context(model))
    assert model.rows["ids"].tolist() == [1]


def test_radsplat_with_a_ratio_is_exact_under_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.tensor([0.0] * 7 + [0.5] * 3)
    config = RadSplatConfig(prune_iterations=(20_000,), ratio=0.5)
    left = survivors(monkeypatch, config, scores)
    assert left == {20_000: [0, 1, 7, 8, 9]}
    assert RadSplatConfig.preset("fixed-ratio").ratio == 0.6


def test_opacity(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.tensor([0.5, 0.1, 0.9, 0.1, 0.1])
    assert survivors(monkeypatch, OpacityConfig(ratio=0.4), scores) == {20_000: [0, 1, 2]}
    monkeypatch.undo()
    model = cloud(5)
    model.params["opacities"].data = scores.logit()
    assert prune_once(model, [], OpacityConfig(ratio=0.4)).tolist() == [1, 1, 1, 0, 0]


def test_light_gaussian_decays(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.arange(1.0, 1001.0)
    left = survivors(monkeypatch, LightGaussianConfig.preset("two-step"), scores)
    # 50 % of 1000, then 50 % * 0.8 of 500
    assert left == {16_000: list(range(500, 1000)), 24_000: list(range(700, 1000))}
    left = survivors(monkeypatch, LightGaussianConfig(), scores)
    assert left == {20_000: list(range(600, 1000))}


@pytest.mark.parametrize("kind", ["indoor", "outdoor"])
def test_mini_splatting_samples_then_cuts(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2000, generator=generator)
    scores[:500] = 0.0
    config = MiniSplattingConfig.preset(kind)
    left = survivors(monkeypatch, config, scores)
    assert list(left) == [15_000, 20_000]
    drawn = left[15_000]
    assert len(drawn) == 750 and min(drawn) >= 500  # half of those with a score
    # the lowest go as long as their sum, the one that exceeds it included, is 1 %
    ascending = sorted(drawn, key=lambda i: float(scores[i]))
    total, given_up, n = math.fsum(scores[drawn].tolist()), 0.0, 0
    while given_up <= 0.01 * total:
        given_up += float(scores[ascending[n]])
        n += 1
    assert n > 5 and left[20_000] == sorted(ascending[n:])


def test_mini_splatting_with_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MiniSplattingConfig.preset("fixed-ratio")
    left = survivors(monkeypatch, config, torch.rand(500))
    assert list(left) == [20_000] and len(left[20_000]) == 200


def test_draws_change_with_seed_and_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MiniSplattingConfig()
    fix_scores(monkeypatch, config, torch.ones(200))
    keeps = [prune_once(cloud(200), [], config, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(keeps[0], keeps[1]) and not torch.equal(keeps[0], keeps[2])
    later = dataclasses.replace(config, prune_iterations=(15_001,))
    assert not torch.equal(prune_once(cloud(200), [], later), keeps[0])


def test_scaled_schedules() -> None:
    assert RadSplatConfig().scaled(0.1).prune_iterations == (1600, 2400)
    assert RadSplatConfig().scaled(1e-5).prune_iterations == (1, 2)  # still two
    assert MiniSplattingConfig().scaled(1 / 60).prune_iterations == (250, 333)


def test_schedules_of_finished_models() -> None:
    assert OpacityConfig().post_training(30_000, 35_000).prune_iterations == (30_001,)
    assert RadSplatConfig().post_training(30_000, 35_000).prune_iterations == (30_001, 32_501)
    config = LightGaussianConfig.preset("finetune").post_training(7000, 7002)
    assert config == dataclasses.replace(config, prune_iterations=(7001,), ratio=0.66, decay=1.0)
    with pytest.raises(SplatrimError, match="give --iterations 30004 or more"):
        RadSplatConfig().post_training(30_000, 30_003)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (RadSplatConfig, {"prune_iterations": (24_000, 16_000)}, "ascending, not 24000 16000"),
        (OpacityConfig, {"prune_iterations": (0,)}, "positive"),
        (RadSplatConfig, {"threshold": 1.5}, "--threshold must be 0 to 0.99, not 1.5"),
        (RadSplatConfig, {"ratio": 1.0}, "--ratio must be at least 0 and below 1"),
        (OpacityConfig, {"ratio": -0.1}, "--ratio"),
        (LightGaussianConfig, {"decay": 2.0}, "--decay"),
        (MiniSplattingConfig, {"sampling": 0.0}, "--sampling"),
        (MiniSplattingConfig, {"cut": 1.01}, "--cut"),
    ],
)
def test_settings_that_cannot_be(
    config: type[ScorePruningConfig], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SplatrimError, match=message):
        config(**settings)


def test_refusals_leave_the_model_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RadSplatConfig()
    for scores, message in (
        (torch.full((4,), 0.001), "would leave none of 4 Gaussians.*0.001"),
        (torch.tensor([1.0, math.nan, 1.0, 1.0]), "1 of 4 .* not finite"),
    ):
        fix_scores(monkeypatch, config, scores)
        model = cloud(4)
        with pytest.raises(SplatrimError, match=message):
            config.build(densify_until=1).after_backward(16_000, context(model))
        assert len(model) == 4


@pytest.mark.parametrize("method", BASELINES)
def test_command_line(method: str) -> None:
    args = ["-s", "scene", "-m", "out", "--method", method]
    config = train.parse([*args, "--prune_iterations", "50", "70", "--save_scores"])
    assert config.pruning.prune_iterations == (50, 70) and config.pruning.save_scores
    config = train.parse([*args, "--iterations", "3000"])
    published = METHODS[method]().prune_iterations  # type: ignore[attr-defined]
    assert config.pruning.prune_iterations == tuple(step // 10 for step in published)


@pytest.fixture(scope="module")
def scene(write_scene: Callable[..., Scene], turned_view: Callable[[float], Tensor]) -> Scene:
    """Five views of 60 Gaussians, four of them to train on."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(60, 3, generator=generator) * 2 - 1
    colors = torch.rand(60, 3, generator=generator)
    views = [turned_view(0.4 * i - 0.8) for i in range(5)]
    return write_scene(points, colors, views, 4, (WIDTH, HEIGHT), 45.0)


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small copy of the built-in scene."""
    folder = tmp_path_factory.mktemp("scenes") / "demo"
    write_demo_scene(folder, views=3, width=40, height=30)
    return folder


def make(scene: Scene, out: Path, config: ScorePruningConfig | None, **options: Any) -> Trainer:
    settings = {"iterations": 12, "quiet": True, "device": "cpu", "sh_degree": 0}
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    settings |= {k: options.pop(k) for k in list(options) if k in fields}
    return Trainer(
        TrainConfig(model_path=out, **settings),
        scene,
        strategies=[] if config is None else [config.build(densify_until=0)],
        optim=OptimConfig(opacity_lr=0.5),
        **options,
    )


TINY: list[ScorePruningConfig] = [
    RadSplatConfig(prune_iterations=(4, 8), threshold=0.05),
    MiniSplattingConfig(prune_iterations=(4, 8), metric="indoor", cut=0.95),
    LightGaussianConfig(prune_iterations=(4, 8), ratio=0.3),
    OpacityConfig(prune_iterations=(4, 8), ratio=0.2),
]


@pytest.mark.parametrize("config", TINY, ids=BASELINES)
def test_going_on_between_prunings_is_exact(
    scene: Scene, tmp_path: Path, config: ScorePruningConfig
) -> None:
    whole = make(scene, tmp_path / "whole", config, checkpoint_iterations=(6,))
    whole.fit()
    start = load_checkpoint(tmp_path / "whole" / "chkpnt6.pth")
    n_once = len(start["params"]["means"])
    assert len(whole.gaussians) < n_once < 60
    rest = make(scene, tmp_path / "rest", config, start=start, seed=5)
    rest.fit()
    for name, values in whole.gaussians.to_tensors().items():
        assert torch.equal(values, rest.gaussians.to_tensors()[name]), name
    assert torch.equal(whole.gaussians.rows["ids"], rest.gaussians.rows["ids"])


def test_a_finished_model_is_pruned_at_once(scene: Scene, tmp_path: Path) -> None:
    make(scene, tmp_path / "plain", None, checkpoint_iterations=(12,)).fit()
    start = load_checkpoint(tmp_path / "plain" / "chkpnt12.pth")
    model = Gaussians.from_tensors(start["params"])
    config = OpacityConfig(ratio=0.5).post_training(12, 16)
    keep = prune_once(model, scene.train, config)
    trainer = make(scene, tmp_path / "post", config, start=start, iterations=16)
    trainer.fit()
    assert len(trainer.gaussians) == 30
    assert trainer.gaussians.rows["ids"].tolist() == keep.nonzero()[:, 0].tolist()
    saved = tmp_path / "post" / "point_cloud" / "iteration_16" / "point_cloud.ply"
    assert saved.is_file()


@pytest.mark.parametrize("method", BASELINES)
def test_command_line_prunes_a_ply(scene_folder: Path, tmp_path: Path, method: str) -> None:
    model = cloud(200)
    save_ply(tmp_path / "model.ply", model.to_tensors())
    folders = ["-s", str(scene_folder), "-m", str(tmp_path / "out")]
    start = ["--start_ply", str(tmp_path / "model.ply"), "--iterations", "30004"]
    train.main([*folders, "--method", method, "--quiet", *start])
    log = (tmp_path / "out" / "train.log").read_text()
    n_left = int(log.split("iteration 30001: kept ")[1].split(" of 200")[0])
    assert 0 < n_left < 200 or method == "radsplat"  # nothing of this model is that faint
    saved = load_ply(tmp_path / "out" / "point_cloud" / "iteration_30004" / "point_cloud.ply")
    assert len(saved["means"]) <= n_left
    if method == "light-gaussian":
        assert n_left == 200 - 132  # 66 % as published for finished models


def test_runs_too_short_to_prune(scene: Scene, tmp_path: Path, caplog: Any) -> None:
    with pytest.raises(SplatrimError, match="4 8: the run has 4, so nothing would be pruned"):
        make(scene, tmp_path, TINY[0], iterations=4)
    make(scene, tmp_path, TINY[0], iterations=8)
    assert "--prune_iterations 8: the run has 8, so that pruning is left out" in caplog.text


def test_scores_are_written_on_request(scene: Scene, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY[3], save_scores=True)
    trainer = make(scene, tmp_path, config)
    trainer.fit()
    first, second = json.loads((tmp_path / "pruning.json").read_text())
    assert [first["iteration"], second["iteration"]] == [4, 8]
    assert [first["n_gaussians"], first["n_left"]] == [60, 48]
    assert [second["n_gaussians"], second["n_left"]] == [48, len(trainer.gaussians)]
    assert [point["n_gaussians"] for point in first["curve"]] == list(range(60, 0, -6))
    assert sum(first["histogram"]["counts"]) + first["histogram"]["n_zero"] == 60
    with np.load(tmp_path / "scores.npz") as saved:
        assert len(saved["ids"]) == len(saved["scores"]) == 48
        assert set(trainer.gaussians.rows["ids"].tolist()) <= set(saved["ids"].tolist())
        lowest = saved["ids"][saved["scores"].argsort()[: 48 - len(trainer.gaussians)]]
        assert not set(lowest.tolist()) & set(trainer.gaussians.rows["ids"].tolist())


def test_nothing_is_written_unasked(scene: Scene, tmp_path: Path) -> None:
    make(scene, tmp_path, TINY[3], iterations=5).fit()
    assert not (tmp_path / "scores.npz").exists() and not (tmp_path / "pruning.json").exists()


def test_scores_that_cannot_be_written_end_nothing(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "scores.npz").mkdir()
    make(scene, tmp_path, dataclasses.replace(TINY[3], save_scores=True), iterations=5).fit()
    assert "cannot write" in caplog.text and "scores.npz" in caplog.text
    assert (tmp_path / "point_cloud" / "iteration_5" / "point_cloud.ply").is_file()
