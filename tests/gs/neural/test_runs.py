"""Runs of neural Gaussians: trained, resumed, captured, masked by offset, saved and rendered."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.growth import GrowthConfig
from gs.errors import SplatrimError
from gs.model.rates import OptimConfig
from gs.model.renderer import render
from gs.neural.anchors import OFF, Anchors, first_anchors
from gs.neural.config import NeuralConfig
from gs.neural.loading import load_model
from gs.training.checkpoint import load_checkpoint
from gs.training.pose_refinement import PoseConfig, PoseRefinement
from gs.training.strategy import Strategy
from gs.training.trainer import Trainer
from pruning import METHODS, MaskGaussianConfig
from pruning.score_pruning import OpacityConfig
from tests.gs.graph_like import Watched, graph_like

NEURAL = NeuralConfig(feature_dim=8, offsets=3, voxel_size=0.1, appearance_dim=2)
GROWTH = GrowthConfig(
    densify_from_iter=5,
    statistics_from_iter=2,
    densify_until_iter=24,
    densification_interval=8,
    densify_grad_threshold=1e-5,
    update_init_factor=4.0,
    min_opacity=1e-4,
)
MASKS = MaskGaussianConfig(
    lambda_mask=0.01,
    mask_from_iter=1,
    mask_until_iter=40,
    mask_prune_iter=13,
    mask_lr=0.3,
    final_threshold=0.05,
)
N_STEPS = 32

__all__ = ["graph_like"]

pytestmark = pytest.mark.usefixtures("one_thread")


def make(scene: Scene, out: Path, *strategies: Strategy[Any], **options: Any) -> Trainer[Anchors]:
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    settings: dict[str, Any] = {"iterations": N_STEPS, "quiet": True, "device": "cpu"}
    settings |= {k: options.pop(k) for k in list(options) if k in fields}
    start = options.get("start")
    cpu = torch.device("cpu")
    model = first_anchors(NEURAL, scene, start, seed=settings.get("seed", 0), device=cpu)
    return Trainer(
        TrainConfig(model_path=out, **settings),
        scene,
        strategies=[GROWTH.build(), *strategies],
        optim=OptimConfig(position_lr_max_steps=N_STEPS),
        model=model,
        **options,
    )


def state_of(trainer: Trainer[Anchors]) -> dict[str, Tensor]:
    model = trainer.gaussians
    tensors = {**model.to_tensors(), **model.shared.state_dict()}
    tensors |= {f"rows.{k}": v for k, v in model.rows.items()}
    for group in trainer.optimizer.param_groups:
        for key, value in trainer.optimizer.state.get(group["params"][0], {}).items():
            tensors[f"{group['name']}.{key}"] = value
    return tensors


def assert_same(got: Trainer[Anchors], want: Trainer[Anchors]) -> None:
    found, expected = state_of(got), state_of(want)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(found[name], x), name
    assert got.tracker.history["loss"] == want.tracker.history["loss"]


def test_a_run_learns_grows_resumes_and_is_saved(scene: Scene, tmp_path: Path) -> None:
    masks = MASKS.build(densify_until=24)
    options = {
        "checkpoint_iterations": (13, 20),
        "test_iterations": (1,),
        "method": "mask-gaussian",
    }
    whole = make(scene, tmp_path / "whole", masks, **options)
    n = len(whole.gaussians)
    whole.fit()
    first, last = whole.tracker.history["test"]
    assert last["psnr"] > first["psnr"] + 1.0
    assert int(whole.gaussians.rows["ids"].max()) >= n  # some have grown
    assert bool(whole.gaussians.rows[OFF].any())  # and some offsets are gone
    for at in (13, 20):
        state = load_checkpoint(tmp_path / "whole" / f"chkpnt{at}.pth", gaussians=False)
        again = make(
            scene, tmp_path / f"again{at}", MASKS.build(densify_until=24), start=state, **options
        )
        again.fit()
        assert_same(again, whole)
    path = tmp_path / "whole" / "point_cloud" / f"iteration_{N_STEPS}" / "point_cloud.ply"
    saved, exported = load_model(path), whole.exported()
    assert isinstance(exported, Anchors)
    for camera in (scene.test[0], scene.train[2]):
        assert torch.equal(render(saved, camera).colors, render(exported, camera).colors)


def test_a_checkpoint_of_other_settings_is_refused(scene: Scene, tmp_path: Path) -> None:
    make(scene, tmp_path / "a", checkpoint_iterations=(3,), iterations=4).fit()
    state = load_checkpoint(tmp_path / "a" / "chkpnt3.pth", gaussians=False)
    wider = dataclasses.replace(NEURAL, offsets=4)
    with pytest.raises(SplatrimError, match="go on with the settings"):
        first_anchors(wider, scene, state, seed=0, device=torch.device("cpu"))


def test_anchors_refine_poses(scene: Scene, tmp_path: Path) -> None:
    poses = PoseRefinement(
        PoseConfig(pose_refinement=True, pose_from_iter=2, test_poses="given"), scene
    )
    trainer = make(scene, tmp_path / "a", poses, iterations=14)
    trainer.fit()
    assert float(poses.table.steps.sum()) == 11
    moved = poses.table.deltas[:-1] - torch.eye(3, 4)
    # rates fall: those whose turn came last moved by 5e-5, and rounding is 6e-7
    assert bool((moved.abs().amax((1, 2)) > 1e-5).all())


@pytest.mark.parametrize("batch", [1, 3])
def test_steps_of_several_images_add_their_gradients(
    scene: Scene, tmp_path: Path, batch: int
) -> None:
    trainer = make(scene, tmp_path / "a", iterations=6, batch=batch, regularise="seen")
    trainer.fit()
    assert trainer.step == 6 and trainer.tracker.history["loss"][-1] < 1.0


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (
            "lp-3dgs",
            {"mask_from_iter": 4, "mask_until_iter": 16, "score_interval": 3, "logit_lr": 0.2},
        ),
        ("radsplat", {"prune_iterations": (14,)}),
        ("light-gaussian", {"prune_iterations": (14,)}),
        ("mini-splatting", {}),
        ("opacity", {"prune_iterations": (14,), "ratio": 0.4}),
    ],
)
def test_methods_by_score_prune_offsets(
    scene: Scene, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    config = METHODS[method](**{**METHODS[method].PRESETS["demo"], **settings})
    if method == "mini-splatting":
        config = config.scaled(18 / 30_000)
    pruner = config.build(densify_until=24)
    trainer = make(scene, tmp_path / "a", pruner, method=method, iterations=18)
    trainer.fit()
    model = trainer.exported()
    assert isinstance(model, Anchors)
    off = model.rows[OFF]
    assert bool(off.any()) or len(model) < len(trainer.gaussians)
    assert not bool(off.all(1).any())


def test_the_share_of_offsets_that_go_is_the_method_s(scene: Scene, tmp_path: Path) -> None:
    config = OpacityConfig(prune_iterations=(4,), ratio=0.4)
    trainer = make(scene, tmp_path / "a", config.build(densify_until=24), method="opacity")
    for step in range(1, 5):
        trainer.train_step(step)
    model, n = trainer.gaussians, 3 * 80
    assert int((~model.rows[OFF]).sum()) == n - round(0.4 * n)
    assert len(model) <= 80


@pytest.mark.usefixtures("graph_like")
@pytest.mark.parametrize("room", [1.4, 0.3])
def test_captured_steps_are_the_same_steps(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: float
) -> None:
    plain = make(scene, tmp_path / "plain", MASKS.build(densify_until=24))
    plain.fit()
    monkeypatch.setattr("gs.neural.anchors.ROOM", room)
    captured = make(scene, tmp_path / "captured", MASKS.build(densify_until=24))
    captured.stepper.graphs = graphs = Watched()
    captured.fit()
    assert graphs.replays > 12
    assert (graphs.misfits > 0) == (room < 1)
    # places that are empty come last, so that sums have the same terms in the same order
    found, expected = state_of(captured), state_of(plain)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=1e-4, atol=1e-5, msg=name)
