"""Steps in parts and as graphs, on a CPU: a recorder that calls again stands in for CUDA graphs."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.adaptive import DensifierConfig, DensifyConfig
from gs.densification.mcmc import MCMCConfig
from gs.model.gaussians import Gaussians
from gs.model.rates import OptimConfig
from gs.model.renderer import RenderOutput, render
from gs.model.rows import keep_rows
from gs.training.checkpoint import load_checkpoint
from gs.training.observer import Observer, Run
from gs.training.step_inputs import InputBuffer
from gs.training.strategy import StepContext, Strategy
from gs.training.trainer import Trainer
from pruning import MaskGaussianConfig
from tests.gs.graph_like import Watched, graph_like

__all__ = ["graph_like"]

DENSIFY = DensifyConfig(
    densify_from_iter=5,
    densify_until_iter=24,
    densification_interval=10,
    opacity_reset_interval=15,
    densify_grad_threshold=1e-4,
)
MCMC = MCMCConfig(
    densify_from_iter=5,
    densify_until_iter=24,
    densification_interval=10,
    budget="1.2x",
    min_opacity=0.05,
    initial_opacity=0.1,
)
# a low threshold: a model that keeps no Gaussian is not saved
MASKS = MaskGaussianConfig(
    lambda_mask=1.0,
    mask_from_iter=3,
    mask_until_iter=26,
    mask_prune_iter=14,
    mask_lr=0.4,
    final_threshold=0.05,
)
STAGES = {"resolution_schedule": "0:2,0.4:1", "multi_view_updates": "0.6:2,0.8:1"}
N_STEPS, HISTORY = 32, ("loss", "psnr", "n_gaussians", "n_used")

pytestmark = pytest.mark.usefixtures("one_thread", "graph_like")


def make(scene: Scene, out: Path, *strategies: Strategy, **options: Any) -> Trainer:
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = {"iterations": N_STEPS, "sh_degree_interval": 10, "quiet": True, "device": "cpu"}
    settings |= {k: options.pop(k) for k in list(options) if k in fields}
    config = TrainConfig(model_path=out, **settings)
    optim = OptimConfig(position_lr_max_steps=N_STEPS)
    return Trainer(config, scene, strategies=strategies, optim=optim, **options)


def captured(trainer: Trainer, tight: Callable[[int], bool] = lambda k: False) -> Watched:
    """Let the trainer's steps be captured."""
    trainer.stepper.graphs = graphs = Watched(tight)
    return graphs


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    gaussians = trainer.gaussians
    tensors = {**gaussians.to_tensors(), **gaussians.shared.state_dict()}
    tensors |= {f"rows.{k}": v for k, v in gaussians.rows.items()}
    for group in trainer.optimizer.param_groups:
        for key, value in trainer.optimizer.state[group["params"][0]].items():
            tensors[f"{group['name']}.{key}"] = value
    return tensors


def assert_same(got: Trainer, want: Trainer, columns: tuple[str, ...] = HISTORY) -> None:
    found, expected = state_of(got), state_of(want)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(found[name], x), name
    for column in columns:
        assert got.tracker.history[column] == want.tracker.history[column], column


class Exposure(Strategy):
    """Learns a factor on the colours of every image."""

    name = "exposure"

    def setup(self, gaussians: Gaussians, *, extent: float, iterations: int, seed: int) -> None:
        self.table = nn.Parameter(torch.ones(8, 3))
        gaussians.add_shared("exposure", self.table, lr=0.01)

    def after_render(self, step: int, colors: Tensor, ctx: StepContext) -> Tensor:
        assert ctx.inputs is not None
        return colors * self.table[ctx.inputs.view.exposure.long()]

    def phase(self, step: int) -> Hashable:
        return "scales colours"


class Notes(Strategy):
    """Counts its hooks by iteration."""

    def __init__(self, phase: Callable[[int], Hashable] = lambda step: "one") -> None:
        self.calls: Counter[tuple[int, str]] = Counter()
        self._phase = phase

    def device_inputs(self, step: int) -> dict[str, int]:
        self.calls[step, "device_inputs"] += 1
        return {}

    def before_render(self, step: int, gaussians: Gaussians) -> dict[str, Any]:
        self.calls[step, "before_render"] += 1
        return {}

    def after_render(self, step: int, colors: Tensor, ctx: StepContext) -> Tensor:
        self.calls[step, "after_render"] += 1
        return colors

    def loss(self, step: int, gaussians: Gaussians, out: RenderOutput) -> None:
        self.calls[step, "loss"] += 1

    def after_backward(self, step: int, ctx: StepContext) -> None:
        self.calls[step, "after_backward"] += 1

    def after_step(self, step: int, ctx: StepContext) -> None:
        self.calls[step, "after_step"] += 1

    def phase(self, step: int) -> Hashable | None:
        return self._phase(step)


@pytest.mark.parametrize("densifier", [DENSIFY, MCMC], ids=["default", "mcmc"])
@pytest.mark.parametrize(("batch", "rows"), [(1, "all"), (3, "seen"), (2, "stages")])
def test_captured_steps_are_those_taken_in_parts(
    scene: Scene, tmp_path: Path, densifier: DensifierConfig, batch: int, rows: str
) -> None:
    run = {"random_background": True, "batch": batch, "iterations": batch * N_STEPS}
    run |= STAGES if rows == "stages" else {"regularise": rows, "adam_rows": rows}

    def methods() -> list[Strategy]:
        masks = MASKS.build(densify_until=densifier.densify_until_iter)
        return [densifier.build(), masks, Exposure()]

    parts = make(scene, tmp_path / "parts", *methods(), **run)
    parts.fit()
    for tight in (False, True):  # steps fit, or every other overflows
        whole = make(scene, tmp_path / f"whole {tight}", *methods(), **run)
        graphs = captured(whole, lambda k: tight and k % 2 == 1)  # noqa: B023
        whole.fit()
        assert graphs.plans.count("capture") > 2 and graphs.plans.count("replay") > 1
        assert (graphs.misfits > 1) == tight
        kinds = {key[:3] for key in graphs.keys if isinstance(key, tuple)}
        assert len(kinds) == (3 if rows == "stages" else 1)  # by images of a step and their size
        # what is repeated after a row was sent counts in the next one
        assert_same(whole, parts, ("n_gaussians",) if tight and batch > 1 else HISTORY)


def test_a_key_tells_phase_and_degree_apart(scene: Scene, tmp_path: Path) -> None:
    notes = Notes(lambda step: None if step in (3, 4) else "late" if step > 8 else "early")
    trainer = make(scene, tmp_path, notes, iterations=14, sh_degree_interval=6)
    graphs = captured(trainer)
    trainer.fit()
    #                    1          2            5         6: degree
    assert graphs.plans[:4] == ["warm up", "capture", "replay", "warm up"]
    #                            7          8         9: late
    assert graphs.plans[4:8] == ["capture", "replay", "warm up", "capture"]
    assert {key[-2:] for key in graphs.keys if isinstance(key, tuple)} == {
        (0, ("early",)),
        (1, ("early",)),
        (1, ("late",)),
        (2, ("late",)),
    }
    assert len(graphs.plans) == 11  # but for the iterations 3 and 4, and the last


def test_hooks_of_a_captured_step_run_once(scene: Scene, tmp_path: Path) -> None:
    trainer = make(scene, tmp_path, notes := Notes(), iterations=5)
    graphs = captured(trainer)
    trainer.fit()
    assert graphs.plans == ["warm up", "capture", "replay", "replay"]
    hooks = ("device_inputs", "before_render", "after_render", "loss", "after_backward")
    for step in (1, 5):
        assert all(notes.calls[step, hook] == 1 for hook in (*hooks, "after_step"))
    assert [notes.calls[step, "device_inputs"] for step in (2, 3, 4)] == [1, 1, 1]
    assert not any(notes.calls[step, hook] for step in (3, 4) for hook in hooks[1:])
    # at capture, and in both replays of this stand-in
    assert all(notes.calls[2, hook] == 3 for hook in hooks[1:])


def test_rows_that_come_or_go_drop_the_graphs(scene: Scene, tmp_path: Path) -> None:
    class Prunes(Notes):
        def after_backward(self, step: int, ctx: StepContext) -> None:
            if step == 5:
                keep_rows(ctx.gaussians, ctx.optimizer, ctx.gaussians.rows["ids"] % 2 == 0)

    trainer = make(scene, tmp_path, Prunes(lambda step: None if step == 5 else "one"), iterations=9)
    graphs = captured(trainer)
    trainer.fit()
    first, then = ["warm up", "capture", "replay", "replay"], ["warm up", "capture", "replay"]
    assert graphs.plans == first + then


def test_a_step_that_is_repeated_has_its_own_learning_rates(scene: Scene, tmp_path: Path) -> None:
    parts, whole = (make(scene, tmp_path / name) for name in ("parts", "whole"))
    graphs = captured(whole, lambda k: True)
    with whole.stepper.running(), parts.stepper.running():
        for step in (1, 2):
            for trainer in (parts, whole):
                trainer.train_step(step)
        for group in whole.optimizer.param_groups:
            group["lr"] = 0.0
        assert graphs.misfits == 0  # it is not yet known
        whole.stepper.settle()
        assert graphs.misfits == 1
        whole.stepper.settle()  # once is enough
    found, expected = state_of(whole), state_of(parts)
    assert all(torch.equal(found[name], x) for name, x in expected.items())


class Looks(Observer):
    """Does after every iteration what an observer may do."""

    def __init__(self, out: Path) -> None:
        self.out, self.steps, self.colors = out, [], []

    def on_step(self, run: Run, step: int) -> None:
        self.steps.append(step)
        quality, camera = run.evaluate(step), run.scene.train[0]
        assert quality["test"] > 5
        assert (run.save(step)).is_file()
        with torch.no_grad():
            self.colors.append(render(run.exported(), camera).colors)


@pytest.mark.parametrize("tight", [False, True], ids=["roomy", "overflowing"])
def test_an_observer_sees_every_step_and_changes_none(
    scene: Scene, tmp_path: Path, tight: bool
) -> None:
    seen: list[Looks] = []
    runs = []
    for name, graphed in (("parts", False), ("graphs", True), ("alone", True)):
        looks = Looks(tmp_path)
        observers = [] if name == "alone" else [looks]
        masks = MASKS.build(densify_until=N_STEPS)
        trainer = make(scene, tmp_path / name, masks, iterations=9, observers=observers)
        graphs = captured(trainer, lambda k: tight) if graphed else None
        trainer.fit()
        if graphs is not None:
            assert graphs.plans.count("replay") + graphs.misfits > 3
        runs.append(trainer)
        seen.append(looks)
    assert seen[0].steps == seen[1].steps == [*range(1, 10)]
    assert all(torch.equal(a, b) for a, b in zip(seen[0].colors, seen[1].colors, strict=True))
    found, alone = state_of(runs[1]), state_of(runs[2])
    assert all(torch.equal(found[name], x) for name, x in alone.items())


def test_no_observer_no_cost(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replayed step is waited for once, by the step after it, and is not due for anybody."""
    wait, waits = InputBuffer.wait, []
    monkeypatch.setattr(InputBuffer, "wait", lambda self: waits.append(0) or wait(self))
    for name, observers in (("none", []), ("idle", [Observer()])):
        trainer = make(scene, tmp_path / name, iterations=9, observers=observers)
        graphs = captured(trainer)
        trainer.fit()
        assert graphs.plans == ["warm up", "capture", *["replay"] * 6], name
        assert len(waits) == 7
        waits.clear()


def test_what_is_due_is_not_captured(scene: Scene, tmp_path: Path) -> None:
    gradients: dict[int, bool] = {}

    class Due(Observer):
        def is_due(self, step: int) -> bool:
            return step in (4, 6)

        def report(self, run: Run, step: int) -> None:
            gradients[step] = run.gaussians.params["means"].grad is not None

    trainer = make(
        scene,
        tmp_path,
        iterations=9,
        test_iterations=(5,),
        save_iterations=(7,),
        observers=[Due()],
    )
    graphs = captured(trainer)
    trainer.fit()
    assert gradients == {4: True, 6: True}
    assert len(graphs.plans) == 4  # iterations 1, 2, 3 and 8


def test_exposures_are_learnt_and_resume(scene: Scene, tmp_path: Path) -> None:
    run = {"checkpoint_iterations": (11,)}
    whole = make(scene, tmp_path / "whole", DENSIFY.build(), Exposure(), **run)
    whole.fit()
    table = whole.gaussians.shared.get_parameter("exposure")
    assert (table[:6] != 1).all() and (table[6:] == 1).all()  # of the images it trains on
    start = load_checkpoint(tmp_path / "whole" / "chkpnt11.pth")
    resumed = make(scene, tmp_path / "resumed", DENSIFY.build(), Exposure(), start=start, **run)
    resumed.fit()
    found, expected = state_of(resumed), state_of(whole)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(found[name], x), name
