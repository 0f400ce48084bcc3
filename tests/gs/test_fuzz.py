"""Damaged checkpoints and JSON files: a sentence or a result, in time and memory.

$SPLATRIM_FUZZ is the number of inputs per reader; 300 is what a release is tested with.
"""

import copy
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gs.config import TrainConfig
from gs.data.demo import write_demo_scene
from gs.data.scene import Scene
from gs.densification.adaptive import DensifyConfig
from gs.errors import SplatrimError
from gs.evaluation.metrics import compute_metrics
from gs.evaluation.render import render_views
from gs.model.gaussians import Gaussians
from gs.model.ply import save_ply
from gs.report.sections import write_report
from gs.run_record import RunRecord, find_model, model_file, write_record
from gs.training.checkpoint import load_checkpoint, peek_checkpoint
from gs.training.run_folder import RunFolder
from gs.training.trainer import Trainer
from pruning import MaskGaussianConfig

MAX_SECONDS, MAX_BYTES = 10.0, 2e9
bounded = settings(
    max_examples=int(os.environ.get("SPLATRIM_FUZZ", "25")),
    deadline=None,  # the body looks at the clock itself
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)

NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 7, 10**6, 2**31, 2**63, 2**80, True, False]),
    st.sampled_from([0.0, -1.0, 0.5, 1e30, 1e308, float("nan"), float("inf"), float("-inf")]),
    st.integers(-5, 50),
)
LEAVES = st.one_of(NUMBERS, st.none(), st.text(max_size=5), st.sampled_from(["\0", "../..", "7"]))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["seed", "step", "edges", "counts", "PSNR"]), inner),
    ),
    max_leaves=6,
)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 15, 80]), max_size=3))
    kinds = [torch.float32, torch.float64, torch.int32, torch.int64, torch.bool, torch.uint8]
    x = torch.ones(shape, dtype=draw(st.sampled_from([*kinds, torch.complex64])))
    how = draw(st.sampled_from(["plain", "claims", "nan", "sparse"]))
    if how == "claims":
        return torch.zeros(1, dtype=x.dtype).as_strided((10**11, *shape), (0,) * (1 + len(shape)))
    if how == "nan" and x.is_floating_point():
        return x * float("nan")
    return x.to_sparse() if how == "sparse" and x.dim() else x


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every entry within."""
    found = [path] if path else []
    if isinstance(value, (dict, list)):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in entries:
            found += places(item, (*path, key))
    return found


def damaged(value: Any, data: st.DataObject, values: st.SearchStrategy[Any]) -> Any:
    """A copy in which up to three entries are others, or gone."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        found: list[tuple[Any, ...]] = places(value) or [()]
        path = data.draw(st.sampled_from(found))
        if not path:
            return data.draw(values)
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        if data.draw(st.booleans()):
            inner[path[-1]] = data.draw(values)
        else:
            del inner[path[-1]]
    return value


def cut(content: bytes, data: st.DataObject) -> bytes:
    """The bytes with some of them changed, or their end gone."""
    if data.draw(st.booleans()):
        return content[: data.draw(st.integers(0, len(content)))]
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


class within_bounds:
    """Where a SplatrimError is a good answer, if it comes in time and in one line."""

    def __enter__(self) -> None:
        self.started = time.perf_counter()
        self.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        assert time.perf_counter() - self.started < MAX_SECONDS
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.memory
        assert grown * 1024 < MAX_BYTES
        if isinstance(error, SplatrimError):
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
            return True
        return False


def make(scene: Scene, out: Path, **options: Any) -> Trainer:
    config = TrainConfig(out, iterations=3, quiet=True, device="cpu", sh_degree=1)
    strategies = [DensifyConfig().build(), MaskGaussianConfig().build(densify_until=2)]
    return Trainer(config, scene, strategies=strategies, method="mask-gaussian", **options)


@pytest.fixture(scope="module")
def checkpoint(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    run = make(scene, tmp_path_factory.mktemp("run"), settings={"optim": {}, "seed": 0})
    with run.stepper.running():
        run.train_step(1)
    return run.checkpoint(1)


def resume(scene: Scene, path: Path, out: Path) -> None:
    """All that resuming does with a checkpoint, and an iteration."""
    peek_checkpoint(path)
    run = make(scene, out, start=load_checkpoint(path))
    RunFolder.of(run.config, load_checkpoint(path), scene.source).check()
    with run.stepper.running():
        run.train_step(run.step + 1)


@bounded
@given(data=st.data())
def test_entries_of_a_checkpoint(
    scene: Scene, checkpoint: Path, tmp_path: Path, data: st.DataObject
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    torch.save(damaged(state, data, st.one_of(VALUES, tensors())), tmp_path / "x.pth")
    with within_bounds():
        resume(scene, tmp_path / "x.pth", tmp_path / "out")


@bounded
@given(data=st.data())
def test_bytes_of_a_checkpoint(
    scene: Scene, checkpoint: Path, tmp_path: Path, data: st.DataObject
) -> None:
    (tmp_path / "x.pth").write_bytes(cut(checkpoint.read_bytes(), data))
    with within_bounds():
        resume(scene, tmp_path / "x.pth", tmp_path / "out")


@bounded
@given(data=st.data())
def test_published_checkpoints(tmp_path: Path, data: st.DataObject) -> None:
    n = 4
    shapes = [(n, 3), (n, 1, 3), (n, 3, 3), (n, 3), (n, 4), (n, 1)]
    names = ("xyz", "f_dc", "f_rest", "scaling", "rotation", "opacity")
    values = [torch.ones(shape) for shape in shapes]
    groups = [{"params": [i], "lr": 0.1, "name": name} for i, name in enumerate(names)]
    moments = {
        i: {"step": torch.tensor(1.0), "exp_avg": x, "exp_avg_sq": x} for i, x in enumerate(values)
    }
    adam = {"state": moments, "param_groups": groups}
    entries = [1, *values, torch.ones(n), torch.ones(n, 1), torch.ones(n, 1), adam, 2.0]
    torch.save(damaged([entries, 5], data, st.one_of(VALUES, tensors())), tmp_path / "x.pth")
    with within_bounds():
        peek_checkpoint(tmp_path / "x.pth")
        state = load_checkpoint(tmp_path / "x.pth")
        Gaussians.from_state(state, "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with everything that a report shows."""
    folder = tmp_path_factory.mktemp("runs")
    write_demo_scene(folder / "scene", views=9, width=24, height=16)
    out = folder / "out"
    points = torch.rand(30, 3)
    save_ply(model_file(out, 20), Gaussians.from_points(points, points, sh_degree=0).to_tensors())
    histogram = {"edges": [0.0, 0.5, 1.0], "counts": [3, 4]}
    scores = {"edges": [0.1, 0.5, 1.0], "counts": [3, 4], "n_zero": 2}
    curve = [{"ratio": 0.0, "n_gaussians": 30, "psnr": 20.0}]
    history = {
        "step": [10, 20],
        "loss": [0.5, 0.4],
        "psnr": [10.0, 12.0],
        "n_gaussians": [30, 30],
        "n_used": [30, 28],
        "seconds": [1.0, 2.0],
        "masks": {**histogram, "label": "p"},
        "test": [{"step": 20, "psnr": 12.0, "l1": 0.2}],
        "settings": {"method": "3dgs"},
        "timing": {"train_seconds": 2.0, "iterations_per_second": 10.0, "device": "cpu"},
    }
    prunings = [
        {"iteration": 9, "n_gaussians": 40, "n_left": 30, "histogram": scores, "curve": curve}
    ]
    config = {
        "source_path": str(folder / "scene"),
        "eval": True,
        "resolution": -1,
        "images": None,
        "white_background": False,
        "method": "3dgs",
        "iterations": 20,
        "model_path": str(out),
        "optim": {"position_lr_max_steps": 20},
        "densify": {},
        "pruning": {},
        "seed": 0,
    }
    for name, value in (("history", history), ("pruning", prunings), ("config", config)):
        (out / f"{name}.json").write_text(json.dumps(value))
    write_record(out, RunRecord("a", {20: "m"}, (20,), {"run": "b", "step": 3}))
    render_views(out, skip_train=True, quiet=True, device="cpu")
    compute_metrics([out], device="cpu")
    write_report(out)
    return out


FILES = ["config", "history", "pruning", "run", "results", "per_view", "render_stats"]


def use(run: Path, name: str) -> None:
    """What reads a file of a run."""
    with within_bounds():
        write_report(run)
    with within_bounds():
        find_model(run)
    if name in ("config", "render_stats", "run"):
        with within_bounds():
            render_views(run, skip_train=True, quiet=True, device="cpu")
    if name in ("run", "render_stats"):
        with within_bounds():
            compute_metrics([run], device="cpu")
    with within_bounds():
        RunFolder(run).check()


@pytest.mark.parametrize("name", FILES)
@bounded
@given(data=st.data())
def test_json_files(run: Path, name: str, data: st.DataObject) -> None:
    path = run / f"{name}.json"
    before = {p: p.read_bytes() for p in run.glob("*.json")}
    content = before[path]
    if data.draw(st.integers(0, 3)):
        text = json.dumps(damaged(json.loads(content), data, VALUES))
    else:
        text = cut(content, data).decode("latin-1")
    path.write_text(text, encoding="latin-1")
    try:
        use(run, name)
    finally:
        for kept, old in before.items():
            kept.write_bytes(old)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "1" * 5000, '{"ours_20": 1e999}', ""]
)
def test_json_files_made_to_hurt(run: Path, name: str, text: str) -> None:
    path = run / f"{name}.json"
    before = {p: p.read_bytes() for p in run.glob("*.json")}
    path.write_text(text)
    try:
        use(run, name)
    finally:
        for kept, old in before.items():
            kept.write_bytes(old)
