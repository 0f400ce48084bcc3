"""Training from a program: settings by name, what is wrong with them, the documented example."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from gs import SplatrimError, train
from gs.data.demo import write_demo_scene
from gs.training.observer import Observer
from gs.training.trainer import Trainer
from pruning import METHODS

FENCE = re.compile(r"^```python\n(# train_scene.py\n.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_documented_example(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("output").mkdir()
    write_demo_scene(Path("output/demo_scene"), views=9, width=40, height=30)
    (code,) = FENCE.findall((repo / "docs" / "usage.md").read_text())
    names: dict[str, Any] = {}
    said = io.StringIO()
    with redirect_stdout(said):
        exec(compile(code, "usage.md", "exec"), names)
    ((n, score),) = re.findall(r"^(\d+) Gaussians, ([\d.]+) dB\n$", said.getvalue())
    assert 0 < int(n) <= 6000 and 8 < float(score) < 40
    assert Path("output/mine/point_cloud/iteration_30/point_cloud.ply").is_file()
    assert not Path("output/mine/report.html").exists()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "demo"
    write_demo_scene(folder, views=9, width=40, height=30)
    return folder


def test_settings_observers_and_the_report(scene: Path, tmp_path: Path) -> None:
    class Steps(Observer):
        seen: list[int] = []

        def on_step(self, run: Any, step: int) -> None:
            self.seen.append(step)

    trainer = train(
        scene,
        tmp_path / "out",
        methods=METHODS,
        observers=[Steps()],
        method="3dgs",
        iterations=3,
        test_iterations=[1, 2],
        cuda_graphs=False,
        init_points=None,
        report=True,
        quiet=True,
    )
    assert isinstance(trainer, Trainer) and trainer.step == 3
    assert trainer.method == "3dgs" and trainer.config.test_iterations == (1, 2)
    assert not trainer.config.cuda_graphs
    assert Steps.seen == [1, 2, 3]
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iteratons": 5}, "^Unrecognized options: --iteratons, 5$"),
        ({"sh_degree": "two"}, "^Error parsing --sh_degree: "),
        ({"iterations": 0}, "--iterations must be at least 1"),
        ({"method": "magic"}, "unknown --method 'magic'"),
    ],
)
def test_wrong_settings(
    scene: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SplatrimError, match=message):
        train(scene, tmp_path / "out", methods=METHODS, **settings)
    assert not (tmp_path / "out").exists()
