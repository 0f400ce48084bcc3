"""The training loop on a tiny scene: order, outputs, and resuming bit for bit."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gs.training.checkpoint
from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.adaptive import DensifierConfig, DensifyConfig
from gs.densification.mcmc import MCMCConfig
from gs.densification.taming import TamingConfig
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.ply import load_ply
from gs.model.rates import OptimConfig
from gs.model.rows import keep_rows
from gs.training.captured_steps import StepGraphs
from gs.training.checkpoint import load_checkpoint
from gs.training.strategy import StepContext, Strategy
from gs.training.trainer import Trainer
from kernels import Capacity
from pruning import MaskGaussianConfig

DENSIFY = DensifyConfig(
    densify_from_iter=5,
    densify_until_iter=32,
    densification_interval=6,
    opacity_reset_interval=20,
    densify_grad_threshold=1e-4,
)
# a low logit gap after a few steps, so that masks drop some and pruning bites
OPTIM = OptimConfig(position_lr_max_steps=40)
MASKS = MaskGaussianConfig(
    lambda_mask=1.0, mask_from_iter=3, mask_until_iter=30, mask_prune_iter=7, mask_lr=0.4
)
# opacities below 0.05 count as dead, so that some are
MCMC = MCMCConfig(
    densify_from_iter=5,
    densify_until_iter=32,
    densification_interval=6,
    budget="1.2x",
    min_opacity=0.05,
    initial_opacity=0.1,
)


pytestmark = pytest.mark.usefixtures("one_thread")


def make(scene: Scene, out: Path, *strategies: Strategy, **options: Any) -> Trainer:
    """A quiet trainer of 40 iterations; keywords are fields of TrainConfig, or Trainer's."""
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = {"iterations": 40, "sh_degree_interval": 10, "quiet": True, "device": "cpu"}
    settings |= {k: options.pop(k) for k in list(options) if k in fields}
    config = TrainConfig(model_path=out, **settings)
    return Trainer(config, scene, strategies=strategies, optim=OPTIM, **options)


def methods() -> list[Strategy]:
    return [DENSIFY.build(), MASKS.build(densify_until=DENSIFY.densify_until_iter)]


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor of the model and its optimizer, by name."""
    tensors = {f"params.{k}": v.detach() for k, v in trainer.gaussians.params.items()}
    tensors |= {f"rows.{k}": v for k, v in trainer.gaussians.rows.items()}
    for group in trainer.optimizer.param_groups:
        for key, value in trainer.optimizer.state[group["params"][0]].items():
            tensors[f"{group['name']}.{key}"] = value
    return tensors


class Signals(Strategy):
    """Sends this process a signal after iteration `step`."""

    name = "signals"

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def after_step(self, step: int, ctx: StepContext) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


def test_training_improves_and_writes_its_files(scene: Scene, tmp_path: Path) -> None:
    settings = {"source_path": "here", "images": None, "sh_degree": 3, "eval": True}
    gentle = dataclasses.replace(MASKS, lambda_mask=0.05).build(densify_until=32)
    calm = {"opacity_reset_interval": 100, "densify_grad_threshold": 4e-3}
    densify = dataclasses.replace(DENSIFY, **calm).build()
    trainer = make(scene, tmp_path, densify, gentle, settings=settings, test_iterations=(1,))
    assert not any(tmp_path.iterdir())
    assert trainer.fit() is None

    history = json.loads((tmp_path / "history.json").read_text())
    assert history["step"] == [10, 20, 30, 40]
    assert [entry["step"] for entry in history["test"]] == [1, 40]
    assert history["test"][1]["psnr"] > history["test"][0]["psnr"] + 0.5
    settings |= scene.record
    assert history["settings"] == settings
    assert len(history["n_used"]) == len(history["n_gaussians"]) == len(history["seconds"]) == 4
    assert history["n_used"][-1] < history["n_gaussians"][-1]
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == {**settings, "run": trainer.folder.run}
    assert (tmp_path / "cfg_args").read_text().startswith("Namespace(")
    assert len(json.loads((tmp_path / "cameras.json").read_text())) == 8
    assert "test views PSNR" in (tmp_path / "train.log").read_text()
    model = load_ply(tmp_path / "point_cloud" / "iteration_40" / "point_cloud.ply")
    assert "mask_logits" not in model
    assert 0 < len(model["means"]) <= history["n_gaussians"][-1]


def test_tensorboard_scalars(scene: Scene, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make(scene, tmp_path, *methods(), iterations=20).fit()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    want = {
        "train_loss_patches/l1_loss",
        "train_loss_patches/total_loss",
        "iter_time",
        "total_points",
        "num_used_gs",
        "test/loss_viewpoint - psnr",
        "test/loss_viewpoint - l1_loss",
        "train/loss_viewpoint - psnr",
    }
    assert want <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("num_used_gs")] == [10, 20]


@pytest.mark.parametrize("stop", [17, 24])  # before and on an iteration that densifies
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_resuming_equals_not_stopping(scene: Scene, tmp_path: Path, stop: int, device: str) -> None:
    run: dict[str, Any] = {"device": device, "deterministic": True}
    whole = make(scene, tmp_path / "whole", *methods(), checkpoint_iterations=(stop,), **run)
    whole.fit()
    start = load_checkpoint(tmp_path / "whole" / f"chkpnt{stop}.pth")
    resumed = make(scene, tmp_path / "resumed", *methods(), start=start, **run)
    assert resumed.step == stop and len(resumed.gaussians) != len(whole.gaussians)
    resumed.fit()

    want, got = state_of(whole), state_of(resumed)
    assert want.keys() == got.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name
    for column in ("step", "loss", "psnr", "n_gaussians", "n_used", "test"):
        assert resumed.tracker.history[column] == whole.tracker.history[column], column
    file = Path("point_cloud") / "iteration_40" / "point_cloud.ply"
    got_bytes = (tmp_path / "resumed" / file).read_bytes()
    assert got_bytes == (tmp_path / "whole" / file).read_bytes()


def test_masks_within_a_budget_resume_too(scene: Scene, tmp_path: Path) -> None:
    config = TamingConfig(
        densify_from_iter=5,
        densify_until_iter=26,
        densification_interval=8,
        opacity_reset_interval=20,
        densify_grad_threshold=1e-4,
        budget="1.5x",
        score_views=2,
    )
    counts: list[int] = []

    class Counts(Strategy):
        def after_step(self, step: int, ctx: StepContext) -> None:
            counts.append(len(ctx.gaussians))

    def strategies() -> list[Strategy]:
        return [config.build(), MASKS.build(densify_until=26)]

    run = {"iterations": 28, "checkpoint_iterations": (14,)}
    whole = make(scene, tmp_path / "whole", *strategies(), Counts(), **run)
    whole.fit()
    assert 80 < max(counts) <= 120 and counts[-1] < max(counts)
    for step, count in enumerate(counts, 1):
        if config.densifies_at(step):
            assert count <= config.target(step, 80)
    start = load_checkpoint(tmp_path / "whole" / "chkpnt14.pth")
    resumed = make(scene, tmp_path / "resumed", *strategies(), start=start, **run)
    resumed.fit()
    want, got = state_of(whole), state_of(resumed)
    assert want.keys() == got.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name


def test_monte_carlo_improves_and_resumes(scene: Scene, tmp_path: Path) -> None:
    def strategies() -> list[Strategy]:
        return [MCMC.build(), MASKS.build(densify_until=32), counts]

    class Counts(Strategy):
        def __init__(self) -> None:
            self.rows: list[int] = []
            self.moved = 0.0

        def after_step(self, step: int, ctx: StepContext) -> None:
            self.rows.append(len(ctx.gaussians))
            if MCMC.densifies_at(step):
                self.moved += float(ctx.strategies[0].scalars(step)["n_relocated"])

    run = {"checkpoint_iterations": (17,), "test_iterations": (1,)}
    counts = Counts()
    whole = make(scene, tmp_path / "whole", *strategies(), **run)
    whole.fit()
    assert max(counts.rows) > 80 and max(counts.rows) <= 96 and counts.moved > 0
    first, last = whole.tracker.history["test"]
    assert last["psnr"] > first["psnr"] + 0.5
    counts = Counts()
    start = load_checkpoint(tmp_path / "whole" / "chkpnt17.pth")
    resumed = make(scene, tmp_path / "resumed", *strategies(), start=start, **run)
    resumed.fit()
    assert len(set(counts.rows)) > 1
    want, got = state_of(whole), state_of(resumed)
    assert want.keys() == got.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name


def test_a_signal_saves_a_checkpoint_that_resumes(scene: Scene, tmp_path: Path) -> None:
    whole = make(scene, tmp_path / "whole", *methods())
    whole.fit()
    want = state_of(whole)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        before, out = signal.getsignal(number), tmp_path / number.name
        trainer = make(scene, out, *methods(), Signals(13, number))
        path = trainer.fit()
        assert path is not None and path == out / "chkpnt13.pth"
        assert signal.getsignal(number) is before
        assert json.loads((out / "history.json").read_text())["step"] == [10]

        resumed = make(scene, out, *methods(), start=load_checkpoint(path))
        assert resumed.fit() is None
        got = state_of(resumed)
        assert all(torch.equal(got[name], want[name]) for name in want), number


def test_a_second_ctrl_c_during_a_save_leaves_the_old_file(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(scene, tmp_path, Signals(7), checkpoint_iterations=(3,)).fit()
    start = load_checkpoint(tmp_path / "chkpnt3.pth")
    path = tmp_path / "chkpnt7.pth"
    before = path.read_bytes()
    save = torch.save

    def interrupted_save(state: Any, file: Any) -> None:
        file.write(b"half of a file")
        os.kill(os.getpid(), signal.SIGINT)
        save(state, file)

    monkeypatch.setattr(gs.training.checkpoint.torch, "save", interrupted_save)
    with pytest.raises(KeyboardInterrupt):
        make(scene, tmp_path, Signals(7), start=start).fit()
    assert path.read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if "tmp" in name]


def test_hooks_come_in_the_published_order(scene: Scene, tmp_path: Path) -> None:
    calls: list[str] = []

    class Records(Strategy):
        def before_render(self, step: int, gaussians: Gaussians) -> dict[str, Any]:
            calls.append("before_render")
            return {}

        def loss(self, step: int, gaussians: Gaussians, out: Any) -> None:
            assert gaussians.params["means"].grad is None
            calls.append("loss")

        def after_backward(self, step: int, ctx: StepContext) -> None:
            assert ctx.gaussians.params["means"].grad is not None
            assert ctx.out.info["means2d"].grad is not None
            saved = (tmp_path / "point_cloud" / f"iteration_{step}").exists()
            calls.append("after_backward, saved" if saved else "after_backward")
            self.means = ctx.gaussians.params["means"].detach().clone()

        def after_step(self, step: int, ctx: StepContext) -> None:
            moved = not torch.equal(self.means, ctx.gaussians.params["means"])
            calls.append("after_step, moved" if moved else "after_step")

    make(scene, tmp_path, Records(), iterations=2).fit()
    assert calls == [
        "before_render",
        "loss",
        "after_backward",
        "after_step, moved",
        "before_render",
        "loss",
        "after_backward, saved",
        "after_step",
    ]


def test_the_saved_model_is_the_one_before_pruning(scene: Scene, tmp_path: Path) -> None:
    class PrunesAtTheEnd(Strategy):
        def after_backward(self, step: int, ctx: StepContext) -> None:
            if step == ctx.iterations:
                keep_rows(ctx.gaussians, ctx.optimizer, torch.arange(80) < 5)

    trainer = make(scene, tmp_path, PrunesAtTheEnd(), iterations=3)
    trainer.fit()
    assert len(trainer.gaussians) == 5
    saved = load_ply(tmp_path / "point_cloud" / "iteration_3" / "point_cloud.ply")
    assert len(saved["means"]) == 80


def test_sh_degree_grows(scene: Scene, tmp_path: Path) -> None:
    degrees: list[int] = []

    class Watches(Strategy):
        def before_render(self, step: int, gaussians: Gaussians) -> dict[str, Any]:
            degrees.append(gaussians.active_sh_degree)
            return {}

    make(scene, tmp_path, Watches(), iterations=9, sh_degree_interval=2, sh_degree=2).fit()
    assert degrees == [0, 1, 1, 2, 2, 2, 2, 2, 2]


def test_mask_gaussian_goes_on_from_a_plain_checkpoint(
    scene: Scene, tmp_path: Path, write_published: Callable[..., None]
) -> None:
    plain = make(scene, tmp_path / "plain", DENSIFY.build(), checkpoint_iterations=(20,))
    plain.fit()
    state = load_checkpoint(tmp_path / "plain" / "chkpnt20.pth")
    write_published(tmp_path / "inria.pth", state)
    start = load_checkpoint(tmp_path / "inria.pth")
    trainer = make(scene, tmp_path / "masks", *methods(), start=start)
    assert trainer.step == 20
    assert trainer.gaussians.params["mask_logits"].tolist()[0] == [10.0, 1.0]
    moments = state_of(trainer)
    assert torch.equal(moments["means.exp_avg"], state["optimizer"]["means"]["exp_avg"])
    assert "mask_logits.exp_avg" not in moments
    trainer.fit()
    assert (tmp_path / "masks" / "point_cloud" / "iteration_40" / "point_cloud.ply").is_file()


def test_a_loss_that_is_not_finite_stops(scene: Scene, tmp_path: Path) -> None:
    class Breaks(Strategy):
        def loss(self, step: int, gaussians: Gaussians, out: Any) -> Tensor:
            return out.colors.sum() * float("nan")

    with pytest.raises(SplatrimError, match="not finite at iteration 10"):
        make(scene, tmp_path, Breaks()).fit()


def test_random_background_differs_by_iteration(scene: Scene, tmp_path: Path) -> None:
    trainer = make(scene, tmp_path, random_background=True, seed=4)
    colors = [trainer._background(step).tolist() for step in (1, 2, 1)]
    assert colors[0] == colors[2] != colors[1]
    assert trainer._background(None).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.gpu
@pytest.mark.parametrize("densifier", [DENSIFY, MCMC], ids=["default", "mcmc"])
@pytest.mark.parametrize("tight", [False, True], ids=["roomy", "overflowing"])
@pytest.mark.parametrize("batch", [1, 3])
def test_graphs_change_nothing(
    scene: Scene,
    tmp_path: Path,
    densifier: DensifierConfig,
    tight: bool,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def methods() -> list[Strategy]:
        return [densifier.build(), MASKS.build(densify_until=densifier.densify_until_iter)]

    options = {"device": "cuda", "deterministic": True, "batch": batch, "iterations": 40 * batch}
    eager = make(scene, tmp_path / "eager", *methods(), cuda_graphs=False, **options)
    eager.fit()
    capacity, replays = StepGraphs.capacity, []

    def small_first(graphs: StepGraphs, n: int) -> Capacity:
        replays.append(n)
        return Capacity(n, 64) if tight and len(replays) % 2 else capacity(graphs, n)

    monkeypatch.setattr(StepGraphs, "capacity", small_first)
    graphed = make(scene, tmp_path / "graphs", *methods(), **options)
    graphed.fit()
    assert len(replays) > 3  # captures
    expected, found = state_of(eager), state_of(graphed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(x, found[name]) for name, x in expected.items())
    assert graphed.tracker.history["n_gaussians"] == eager.tracker.history["n_gaussians"]
    # a logged iteration that overflows is repeated after its row is written: it counts in the next
    for name in () if tight else ("loss", "psnr", "n_used"):
        assert graphed.tracker.history[name] == pytest.approx(eager.tracker.history[name], rel=1e-5)
