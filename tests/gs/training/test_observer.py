"""When observers are called; tests/gs/training/test_step.py has captured steps."""

from pathlib import Path

import pytest
import torch

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.training.observer import EVALUATION_AHEAD, Evaluation, Observer, Run, default_observers
from gs.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def config(out: Path) -> TrainConfig:
    return TrainConfig(
        out,
        iterations=5,
        quiet=True,
        device="cpu",
        test_iterations=(2,),
        save_iterations=(3,),
        checkpoint_iterations=(4,),
    )


class Watches(Observer):
    """Notes where the positions are, and which files, at each call."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.calls: list[tuple[str, int]] = []
        self.files: dict[tuple[str, int], set[str]] = {}
        self.means = [torch.empty(0)]

    def is_due(self, step: int) -> bool:
        return step in (3, 4)

    def report(self, run: Run, step: int) -> None:
        self._note("report", run, step)
        assert torch.equal(self.means[-1], run.gaussians.params["means"])  # of the step before

    def on_step(self, run: Run, step: int) -> None:
        self._note("on_step", run, step)
        means = run.gaussians.params["means"].detach().clone()
        # the published loop's last iteration updates nothing
        assert torch.equal(self.means[-1], means) == (step == 5)
        self.means.append(means)

    def _note(self, call: str, run: Run, step: int) -> None:
        assert run.n_rendered == 80
        self.calls.append((call, step))
        names = {path.name for path in [*self.out.glob("point_cloud/*"), *self.out.glob("*.pth")]}
        self.files[call, step] = names


def test_observers_are_called_after_those_of_every_run(scene: Scene, tmp_path: Path) -> None:
    watches = Watches(tmp_path)
    trainer = Trainer(config(tmp_path), scene, observers=[watches])
    trainer.fit()
    assert watches.calls == [
        ("on_step", 1),
        ("on_step", 2),
        ("report", 3),
        ("on_step", 3),
        ("report", 4),
        ("on_step", 4),
        ("on_step", 5),
    ]
    assert watches.files["on_step", 2] == set()
    assert watches.files["report", 3] == {"iteration_3"}
    assert watches.files["report", 4] == {"iteration_3"}
    assert watches.files["on_step", 4] == {"iteration_3", "chkpnt4.pth"}
    assert [entry["step"] for entry in trainer.tracker.history["test"]] == [2, 5]


def test_images_of_an_evaluation_are_fetched_ahead(scene: Scene, tmp_path: Path) -> None:
    trainer = Trainer(config(tmp_path), scene)
    fetched: list[int] = []
    trainer.images.prefetch = fetched.extend  # type: ignore[method-assign]
    evaluation = Evaluation(TrainConfig(tmp_path, test_iterations=(1002,), iterations=9000))
    evaluation.on_step(trainer, 1002 - EVALUATION_AHEAD - 1)
    assert fetched == []
    evaluation.on_step(trainer, 1002 - EVALUATION_AHEAD)
    assert fetched == [6, 7]


def test_nothing_is_due_but_what_is_evaluated_or_saved(tmp_path: Path) -> None:
    observers = default_observers(config(tmp_path))
    due = [step for step in range(1, 6) if any(x.is_due(step) for x in observers)]
    assert due == [2, 3, 5]
