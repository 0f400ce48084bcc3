"""A run that dies says when and of what, saves nothing bad, and keeps what is good."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.ply import load_ply
from gs.model.rates import OptimConfig
from gs.model.rows import NoneLeft, keep_rows
from gs.training.checkpoint import load_checkpoint
from gs.training.finite import not_finite
from gs.training.strategy import StepContext, Strategy
from gs.training.trainer import Trainer
from pruning import MaskGaussianConfig

pytestmark = pytest.mark.usefixtures("one_thread")


class At(Strategy):
    """Does something to the run after the backward pass of one iteration."""

    name = "spoiler"

    def __init__(self, step: int, work: Callable[[StepContext], None]) -> None:
        self.step, self.work = step, work

    def after_backward(self, step: int, ctx: StepContext) -> None:
        if step == self.step:
            with torch.no_grad():
                self.work(ctx)


def make(scene: Scene, out: Path, *strategies: Strategy, **settings: Any) -> Trainer:
    settings = {"iterations": 12, "quiet": True, "device": "cpu"} | settings
    optim = settings.pop("optim", OptimConfig())
    return Trainer(TrainConfig(out, **settings), scene, strategies=strategies, optim=optim)


def spoil(name: str, value: float, rows: int = 2) -> Callable[[StepContext], None]:
    def work(ctx: StepContext) -> None:
        ctx.gaussians.params[name].view(len(ctx.gaussians), -1)[:rows, 0] = value

    return work


def saved(out: Path) -> list[str]:
    files = [*out.rglob("*.ply"), *out.rglob("*.pth"), *out.rglob("*.tmp")]
    return sorted(path.name for path in files if path.name != "input.ply")


@pytest.mark.gpu
def test_tensors_may_lie_on_several_devices() -> None:
    bad = torch.tensor([1.0, float("nan")])
    tensors = {"a": torch.ones(2), "b": torch.ones(3, device="cuda"), "c": bad.cuda(), "d": bad}
    assert not_finite({name: tensors[name] for name in "ab"}) == ""
    assert not_finite(tensors) == "numbers are not finite in c (1 of 2), d (1 of 2)"


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "sh0", "shN"])
def test_a_model_that_is_not_finite_is_not_saved(scene: Scene, tmp_path: Path, name: str) -> None:
    trainer = make(scene, tmp_path, At(7, spoil(name, float("nan"))), save_iterations=(5, 8))
    with pytest.raises(SplatrimError) as caught:
        trainer.fit()
    sentence = str(caught.value)
    total = trainer.gaussians.params[name].numel()
    assert sentence.startswith(f"iteration 8: numbers are not finite in {name} (2 of {total})")
    assert "no model is saved" in sentence and sentence.endswith(
        "point_cloud/iteration_5/point_cloud.ply stays"
    )
    assert saved(tmp_path) == ["point_cloud.ply"]
    model = load_ply(tmp_path / "point_cloud/iteration_5/point_cloud.ply")
    assert len(model["means"]) == len(scene.points)


def spoil_moments(ctx: StepContext) -> None:
    moments = ctx.optimizer.state[ctx.gaussians.params["scales"]]
    moments["exp_avg"][3] = float("inf")


def spoil_rows(ctx: StepContext) -> None:
    ctx.gaussians.rows["extra"] = torch.full((len(ctx.gaussians),), float("nan"))


@pytest.mark.parametrize(
    ("work", "named"),
    [
        (spoil("means", float("inf")), "means (2 of"),
        (spoil_moments, "exp_avg of scales (3 of"),
        (spoil_rows, "extra (80 of 80)"),
    ],
)
def test_a_checkpoint_that_is_not_finite_is_not_saved(
    scene: Scene, tmp_path: Path, work: Callable[[StepContext], None], named: str
) -> None:
    trainer = make(scene, tmp_path, At(6, work), checkpoint_iterations=(3, 6))
    with pytest.raises(SplatrimError) as caught:
        trainer.fit()
    assert str(caught.value).startswith("iteration 6: numbers are not finite in ")
    assert named in str(caught.value)
    assert "no checkpoint is saved: lower the learning rates" in str(caught.value)
    assert str(caught.value).endswith("chkpnt3.pth stays")
    assert saved(tmp_path) == ["chkpnt3.pth"]
    assert load_checkpoint(tmp_path / "chkpnt3.pth")["step"] == 3


def test_a_loss_that_is_not_finite_names_the_parameter(scene: Scene, tmp_path: Path) -> None:
    class Endless(Strategy):
        def loss(self, step: int, gaussians: Gaussians, out: Any) -> torch.Tensor:
            return gaussians.params["opacities"].sum() * (float("nan") if step == 7 else 0.0)

    with pytest.raises(SplatrimError, match=r"the loss is not finite at iteration 10 \(numbers"):
        make(scene, tmp_path, Endless()).fit()
    assert saved(tmp_path) == []


def test_rows_are_never_all_removed(scene: Scene, tmp_path: Path) -> None:
    def remove_all(ctx: StepContext) -> None:
        nothing = torch.zeros(len(ctx.gaussians), dtype=torch.bool)
        keep_rows(ctx.gaussians, ctx.optimizer, nothing)

    trainer = make(scene, tmp_path, At(7, remove_all), checkpoint_iterations=(5,))
    with pytest.raises(SplatrimError, match="^iteration 7: pruning would leave none of 80 ") as e:
        trainer.fit()
    assert "opacities go up to 0.1" in str(e.value) and str(e.value).endswith("chkpnt5.pth stays")
    assert len(trainer.gaussians) == 80
    gaussians = Gaussians.from_points(scene.points, scene.colors)
    with pytest.raises(NoneLeft):
        keep_rows(gaussians, None, torch.zeros(len(gaussians), dtype=torch.bool))


def test_masks_that_drop_everything(scene: Scene, tmp_path: Path) -> None:
    masks = MaskGaussianConfig(lambda_mask=100.0, mask_lr=3.0, mask_prune_iter=4)
    trainer = make(scene, tmp_path / "a", masks.build(densify_until=0))
    with pytest.raises(SplatrimError, match=r"^iteration \d+: .* mask_gaussian drops \d+\): prune"):
        trainer.fit()
    assert saved(tmp_path / "a") == []
    # where nothing is pruned before the end, there is none to save
    masks = MaskGaussianConfig(lambda_mask=100.0, mask_lr=3.0, mask_prune_iter=0)
    trainer = make(scene, tmp_path / "b", masks.build(densify_until=0))
    with pytest.raises(SplatrimError, match="^iteration 12: the model to save would have none of"):
        trainer.fit()
    assert saved(tmp_path / "b") == []


def test_steps_look_at_no_number(scene: Scene, tmp_path: Path) -> None:
    """What is checked when a model is saved costs ordinary iterations nothing."""
    trainer = make(scene, tmp_path, save_iterations=(), test_iterations=())
    calls: list[Any] = []

    def count(self: torch.Tensor) -> torch.Tensor:
        calls.append(self.shape)
        return is_finite(self)

    is_finite = torch.Tensor.isfinite
    with pytest.MonkeyPatch.context() as patch, trainer.stepper.running():
        patch.setattr(torch.Tensor, "isfinite", count)
        for step in range(1, 8):
            trainer.train_step(step)
    assert calls == []


def test_counts() -> None:
    fine = {"a": torch.ones(3), "b": torch.arange(4), "c": torch.empty(0)}
    assert not_finite(fine) == ""
    bad = {name: torch.tensor([1.0, float("nan"), float("inf")]) for name in "pqrs"}
    assert not_finite({**fine, **bad}) == (
        "numbers are not finite in p (2 of 3), q (2 of 3), r (2 of 3) and 1 more"
    )
    assert not_finite({"a": torch.full((3,), 3e38)}) == ""
