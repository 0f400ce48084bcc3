"""LP-3DGS inside training runs of 26 iterations, with the window from 6 to 20."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.adaptive import DensifyConfig
from gs.model.gaussians import Gaussians
from gs.model.ply import load_ply, save_ply
from gs.model.rates import OptimConfig
from gs.training.checkpoint import load_checkpoint
from gs.training.start import PostRates, load_start
from gs.training.trainer import Trainer
from pruning import METHODS
from pruning.lp_3dgs import SCORES, LP3DGSConfig
from pruning.scores import accumulate_scores

SMALL = LP3DGSConfig(
    mask_from_iter=6, mask_until_iter=20, score_interval=4, logit_lr=0.25, lambda_mask=0.01
)
SIZE = 32
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scene(write_scene: Callable[..., Scene]) -> Scene:
    """Four views of 40 Gaussians; the start has 20 more at random places."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(60, 3, generator=generator) * 2 - 1
    colors = torch.rand(60, 3, generator=generator)
    views = [torch.eye(4) for _ in range(4)]
    for i, viewmat in enumerate(views):
        viewmat[0, 3], viewmat[2, 3] = 0.3 * i - 0.5, 4.0
    start = points, colors
    return write_scene(points[:40], colors[:40], views, 4, (SIZE, SIZE), 36.0, start)


def trainer(
    scene: Scene, out: Path, config: LP3DGSConfig = SMALL, *, densify: bool = False, **options: Any
) -> Trainer:
    start, iterations = options.pop("start", None), options.pop("iterations", 26)
    device = options.pop("device", "cpu")
    train = TrainConfig(out, iterations=iterations, quiet=True, device=device, **options)
    densifier = DensifyConfig(
        densify_from_iter=3,
        densify_until_iter=18,
        densification_interval=5,
        densify_grad_threshold=1e-5,
    ).build()
    strategies = [*([densifier] if densify else []), config.build(densify_until=18)]
    return Trainer(train, scene, strategies=strategies, method="lp-3dgs", start=start)


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    model = trainer.gaussians
    tensors = {f"rows.{name}": rows for name, rows in model.rows.items()}
    for name, parameter in model.params.items():
        moments = trainer.optimizer.state[parameter]
        tensors |= {f"{name}.{key}": value for key, value in moments.items()}
        tensors[name] = parameter.detach()
    return tensors


AS_PUBLISHED = replace(
    SMALL, score="mini-splatting", score_source="masked", decision="sample", gumbel_temp=0.7
)


# before the window; before the first scores and with them; between; before and at the prune
@pytest.mark.parametrize(
    ("config", "stops"), [(SMALL, (5, 8, 9, 19, 20)), (AS_PUBLISHED, (9, 12, 19))]
)
def test_resuming_in_the_window_equals_not_stopping(
    scene: Scene, tmp_path: Path, config: LP3DGSConfig, stops: tuple[int, ...]
) -> None:
    whole = trainer(scene, tmp_path / "whole", config, checkpoint_iterations=stops)
    whole.fit()
    want = tensors_of(whole)
    assert 5 < len(whole.gaussians) < 55
    for stop in stops:
        start = load_checkpoint(tmp_path / "whole" / f"chkpnt{stop}.pth")
        assert (SCORES in start["rows"]) == (9 <= stop < 20)
        resumed = trainer(scene, tmp_path / str(stop), config, start=start)
        resumed.fit()
        got = tensors_of(resumed)
        assert got.keys() == want.keys()
        for name in want:
            assert torch.equal(got[name], want[name]), f"{name}, stopped at {stop}"


def test_survivors_are_those_of_the_final_logits(scene: Scene, tmp_path: Path) -> None:
    run = trainer(scene, tmp_path)
    for step in range(1, 20):
        run.train_step(step)
    model = run.gaussians
    logits, ids = model.params["mask_logits"].detach().clone(), model.rows["ids"].clone()
    opacities = model.params["opacities"].detach().clone()
    run.train_step(20)
    assert torch.equal(run.gaussians.rows["ids"], ids[logits >= 0])
    # the step that prunes moves nothing, and opacities are plain again
    assert torch.equal(run.gaussians.params["opacities"], opacities[logits >= 0])
    assert run.strategies[-1].before_render(21, run.gaussians) == {}
    before = run.gaussians.params["mask_logits"].detach().clone()
    for step in range(21, 27):
        run.train_step(step)
    assert torch.equal(run.gaussians.params["mask_logits"], before)


def test_scores_are_those_of_the_model_that_is_rendered_next(scene: Scene, tmp_path: Path) -> None:
    run = trainer(scene, tmp_path)
    for step in range(1, 10):
        run.train_step(step)
    want = accumulate_scores(run.gaussians, run.scene.train, "radsplat")
    assert torch.equal(run.gaussians.rows[SCORES], want)
    assert 0 < want.max() <= 0.99 + 1e-6


def test_a_run_that_ends_with_the_prune_saves_the_pruned_model(
    scene: Scene, tmp_path: Path
) -> None:
    run = trainer(scene, tmp_path, iterations=20, save_iterations=(12,))
    run.fit()
    saved = [
        len(load_ply(tmp_path / "point_cloud" / f"iteration_{step}" / "point_cloud.ply")["means"])
        for step in (12, 20)
    ]
    assert saved == [60, len(run.gaussians)]
    assert len(run.gaussians) < 60


def test_rows_may_change_inside_the_window(scene: Scene, tmp_path: Path) -> None:
    run = trainer(scene, tmp_path, replace(SMALL, lambda_mask=1e-4, logit_lr=0.15), densify=True)
    sizes = []
    for step in range(1, 27):
        run.train_step(step)
        sizes.append(len(run.gaussians))
    assert len(set(sizes[5:18])) > 1  # rows came inside the window
    assert 0 < sizes[19] < sizes[18]
    assert all(x.isfinite().all() for x in run.gaussians.params.values())


def test_straight_through_trains(scene: Scene, tmp_path: Path) -> None:
    config = replace(SMALL, relaxation="straight-through", mask_threshold=0.3)
    run = trainer(scene, tmp_path, config)
    run.fit()
    assert 0 < len(run.gaussians) < 60


@pytest.mark.gpu
@pytest.mark.parametrize("config", [SMALL, AS_PUBLISHED])
def test_training_on_a_gpu(scene: Scene, tmp_path: Path, config: LP3DGSConfig) -> None:
    run = trainer(scene, tmp_path, config, device="cuda")
    for step in range(1, 8):
        run.train_step(step)
    logits = run.gaussians.params["mask_logits"].detach().cpu()
    want = 1 - config.logit_lr * config.logit_decay - config.logit_lr
    torch.testing.assert_close(logits, torch.full((60,), want), rtol=1e-4, atol=0)
    for step in range(8, 27):
        run.train_step(step)
    assert 0 < len(run.gaussians) < 60
    assert all(x.isfinite().all() for x in run.gaussians.params.values())


@pytest.mark.parametrize("start", ["ply", "checkpoint"])
def test_post_training_of_a_finished_model(scene: Scene, tmp_path: Path, start: str) -> None:
    if start == "ply":
        first, path = 30_000, tmp_path / "model.ply"
        model = Gaussians.from_points(scene.points, scene.colors, sh_degree=1)
        save_ply(path, model.to_tensors())
    else:
        first, path = 5, tmp_path / "plain" / "chkpnt5.pth"
        plain = TrainConfig(
            tmp_path / "plain", iterations=5, checkpoint_iterations=(5,), quiet=True, device="cpu"
        )
        Trainer(plain, scene).fit()
    last = first + 42
    config = SMALL.post_training(first, last)
    assert (config.mask_from_iter, config.mask_until_iter) == (first, first + 14)
    train = TrainConfig(
        tmp_path / "lp",
        iterations=last,
        post_start=first,
        quiet=True,
        device="cpu",
        start_ply=path if start == "ply" else None,
        start_checkpoint=path if start == "checkpoint" else None,
    )
    strategies = [
        PostRates(OptimConfig(), start=first, iterations=last),
        config.build(densify_until=first),
    ]
    state = load_start(train, "lp-3dgs", METHODS)
    run = Trainer(train, scene, strategies=strategies, method="lp-3dgs", start=state)
    run.train_step(first + 1)
    # Adam's first step has the length of the rate, whatever the age of the model
    moved = run.gaussians.params["mask_logits"].detach() - (1 - config.logit_lr * 0.01)
    torch.testing.assert_close(moved, torch.full((60,), -config.logit_lr), rtol=1e-3, atol=0)
    for step in range(first + 2, first + 20):
        run.train_step(step)
    assert 0 < len(run.gaussians) < 60


def test_a_sum_of_weights_is_divided_by_its_mean(scene: Scene, tmp_path: Path) -> None:
    presets = LP3DGSConfig.PRESETS
    for out, name, divisor in (("a", "mini-splatting", 60), ("b", "mini-splatting-unscaled", None)):
        run = trainer(scene, tmp_path / out, replace(SMALL, **presets[name]))
        for step in range(1, 10):
            run.train_step(step)
        want = accumulate_scores(run.gaussians, run.scene.train, "mini-splatting")
        if divisor:
            want = want * divisor / want.sum()
        assert len(want) == 60 and want.max() > 1.5
        torch.testing.assert_close(run.gaussians.rows[SCORES], want)
