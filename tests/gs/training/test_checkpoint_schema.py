"""Checkpoints are checked in one place: every entry that is not what it must be is named."""

import copy
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.adaptive import DensifyConfig
from gs.errors import SplatrimError
from gs.training.checkpoint import load_checkpoint, peek_checkpoint
from gs.training.checkpoint_schema import MAX_DEPTH, check_like
from gs.training.trainer import Trainer
from pruning import MaskGaussianConfig

State = dict[str, Any]


def trainer(scene: Scene, out: Path, **options: Any) -> Trainer:
    config = TrainConfig(out, iterations=4, quiet=True, device="cpu", sh_degree=1)
    masks = MaskGaussianConfig().build(densify_until=3)
    strategies = [DensifyConfig().build(), masks]
    return Trainer(config, scene, strategies=strategies, method="mask-gaussian", **options)


@pytest.fixture(scope="module")
def saved(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> State:
    """The state of a checkpoint of iteration 2."""
    run = trainer(scene, tmp_path_factory.mktemp("run"), settings={"optim": {}, "iterations": 4})
    run.tracker.open(tmp_path_factory.mktemp("log"), 1)
    with run.tracker, run.stepper.running():
        run.train_step(1)
        run.train_step(2)
    return torch.load(run.checkpoint(2), weights_only=True)


@pytest.fixture
def state(saved: State) -> State:
    """A copy to damage."""
    return copy.deepcopy(saved)


def repeated(x: torch.Tensor, rows: int) -> torch.Tensor:
    """A view that claims more rows than there is memory."""
    return x[:1].expand(rows, *x.shape[1:])


def set_to(*path: Any, value: Any) -> Callable[[State], None]:
    def work(state: State) -> None:
        inner = state
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return work


def change(*path: Any, by: Callable[[Any], Any]) -> Callable[[State], None]:
    def work(state: State) -> None:
        inner = state
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = by(inner[path[-1]])

    return work


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def first_is_nan(x: torch.Tensor) -> torch.Tensor:
    return x.index_fill(0, torch.tensor([0]), float("nan"))


DAMAGE: list[tuple[Callable[[State], None], str]] = [
    (set_to("active_sh_degree", value=2), "active_sh_degree: expected 0 to 1"),
    (set_to("active_sh_degree", value=-1), "active_sh_degree: expected a whole number from 0"),
    (set_to("sh_degree", value=3), "params.shN: expected"),
    (set_to("sh_degree", value=True), "sh_degree: expected a whole number"),
    (set_to("step", value=-4), "step: expected a whole number of at least 0"),
    (set_to("step", value=2.0), "step: expected a whole number"),
    (set_to("step", value=2**40), "step: expected"),
    (set_to("next_id", value=3), "rows.ids: expected 80 different numbers from 0 to below 3"),
    (set_to("extent", value=float("nan")), "extent: expected a number"),
    (set_to("extent", value=0.0), "extent: expected"),
    (set_to("method", value=7), "method: expected text"),
    (set_to("params", "opacities", value="x"), "params.opacities: expected a tensor, got str"),
    (set_to("params", value=[]), "params: expected an object"),
    (change("params", "means", by=first_is_nan), "params.means (3 of 240)"),
    (change("params", "means", by=lambda x: x[:5]), "params.sh0: expected [5, 1, 3], got [80, "),
    (change("params", "means", by=lambda x: x[:, :2]), "params.means: expected [80, 3]"),
    (change("params", "scales", by=lambda x: x.int()), "params.scales: expected floating-point"),
    (change("params", "sh0", by=lambda x: x.sum()), "params.sh0: expected a row per Gaussian"),
    (lambda s: s["params"].pop("quats"), "params.quats is missing"),
    (change("params", "means", by=lambda x: repeated(x, 10**11)), "with room for less"),
    (change("params", "means", by=lambda x: x.to_sparse()), "not an ordinary one"),
    (change("rows", "ids", by=lambda x: x * 0), "rows.ids: expected 80 different numbers"),
    (change("rows", "ids", by=lambda x: x.long()), "rows.ids: expected [80] int32"),
    (lambda s: s["rows"].pop("ids"), "rows.ids: expected [80] int32"),
    (change("rows", "densify_views", by=lambda x: x[:7]), "rows.densify_views: expected 80 rows"),
    (change("rows", "densify_views", by=first_is_nan), "rows.densify_views (1 of 80)"),
    (set_to("optimizer", "shN", "exp_avg", value=torch.zeros(5)), "optimizer.shN.exp_avg: expec"),
    (lambda s: s["optimizer"]["sh0"].pop("exp_avg"), "optimizer.sh0.exp_avg is missing"),
    (change("optimizer", "means", "exp_avg", by=first_is_nan), "optimizer.means.exp_avg (3 of"),
    (change("optimizer", "means", "exp_avg_sq", by=lambda x: x - 1), "expected no number below 0"),
    (set_to("optimizer", "means", "step", value="x"), "optimizer.means.step: expected"),
    (set_to("optimizer", "means", "step", value=torch.tensor(-1.0)), "optimizer.means.step"),
    (set_to("optimizer", "ghost", value={}), "optimizer.ghost: there is no such parameter"),
    (set_to("optimizer", "lrs", "means", value=float("inf")), "optimizer.lrs.means: expected"),
    (set_to("optimizer", "lrs", value=3), "optimizer.lrs: expected an object"),
    (set_to("sampler", value="x"), "sampler: expected an object"),
    (set_to("sampler", "position", value=10**6), "sampler.position: expected a number"),
    (lambda s: s["sampler"].pop("position"), "sampler.position: expected a number below"),
    (set_to("sampler", "seed", value=-1), "sampler.seed: expected"),
    (set_to("tracker", value="x"), "tracker: expected an object"),
    (set_to("tracker", "sums", value=[0.0]), "tracker.sums: expected 4 numbers, got 1"),
    (set_to("tracker", "seconds", value="long"), "tracker.seconds: expected a number"),
    (set_to("tracker", "history", "loss", value=3), "tracker.history.loss: expected a list"),
    (lambda s: s["tracker"]["history"].pop("loss"), "tracker.history.loss is missing"),
    (set_to("strategies", value={"densify": 3}), "strategies.densify: expected an object"),
    (set_to("strategies", "densify", "seed", value=nested(60)), f"more than {MAX_DEPTH} deep"),
    (set_to("config", value=4), "config: expected an object"),
    (set_to("config", "optim", value={"position_lr_max_steps": "x"}), "position_lr_max_steps"),
    (set_to("config", "huge", value=2**200), "more than 64 bits"),
    (set_to("rng", value={"seed": "x"}), "rng.seed: expected"),
    (set_to("run", value=5), "run: expected text"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[m[:40] for _, m in DAMAGE])
def test_damage_is_named(
    state: State, tmp_path: Path, damage: Callable[[State], None], message: str
) -> None:
    damage(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(SplatrimError) as caught:
        load_checkpoint(tmp_path / "x.pth")
    sentence = str(caught.value)
    assert "x.pth is damaged: " in sentence and message in sentence and "\n" not in sentence


def test_what_is_whole_is_taken(state: State, scene: Scene, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "x.pth")
    start = load_checkpoint(tmp_path / "x.pth")
    assert trainer(scene, tmp_path / "out", start=start).step == 2


def test_states_of_strategies(state: State, scene: Scene, tmp_path: Path) -> None:
    state["strategies"]["densify"]["seed"] = "x"
    torch.save(state, tmp_path / "x.pth")
    start = load_checkpoint(tmp_path / "x.pth")
    with pytest.raises(SplatrimError, match="strategies.densify.seed: expected int, got str"):
        trainer(scene, tmp_path / "out", start=start)
    check_like("any", {"a": 3, "new": "x", "b": None, "c": 4}, {"a": 5, "b": None, "c": None})
    with pytest.raises(SplatrimError, match="strategies.any.a: expected int, got NoneType"):
        check_like("any", {"a": None}, {"a": 5})
    with pytest.raises(SplatrimError, match="expected torch.float32, got torch.int64"):
        check_like("any", {"a": torch.arange(3)}, {"a": torch.ones(3)})
    with pytest.raises(SplatrimError, match="strategies.any.c: expected a number or none"):
        check_like("any", {"c": [3]}, {"c": None})


def test_compressed_archives_are_refused(state: State, tmp_path: Path) -> None:
    """A few bytes would become more memory than there is."""
    torch.save(state, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    for read in (load_checkpoint, peek_checkpoint):
        with pytest.raises(SplatrimError, match="y.pth is damaged: it is compressed"):
            read(tmp_path / "y.pth")


def test_lists_in_lists_are_looked_at_once(state: State, tmp_path: Path) -> None:
    """Ten lists of ten times the same list: 10^20 items in a kilobyte."""
    inner: list[Any] = [1]
    for _ in range(MAX_DEPTH - 6):
        inner = [inner] * 10
    state["sampler"]["more"] = inner
    torch.save(state, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth")["step"] == 2
