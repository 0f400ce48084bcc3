"""The demo trains a baseline beside the run, and its report compares the two."""

import json
from pathlib import Path

import pytest

import train
from gs import cli
from gs.data.demo import write_demo_scene
from gs.report.run import load_run
from pruning import METHODS


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small copy of the built-in scene."""
    folder = tmp_path_factory.mktemp("scenes") / "demo"
    write_demo_scene(folder, views=9, width=32, height=24)
    return folder


@pytest.mark.usefixtures("one_thread")
def test_the_demo_is_compared_with_3dgs(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train.main(["--demo", "-s", str(scene), "-m", str(out), "--iterations", "12", "--quiet"])
    base = load_run(out / "baseline")
    assert base.method_name == "3DGS" and base.iteration == 12 and base.psnr is not None
    settings = [json.loads((f / "config.json").read_text()) for f in (out, out / "baseline")]
    for part in ("optim", "densify", "iterations", "seed", "source_path"):
        assert settings[0][part] == settings[1][part], part
    html = (out / "report.html").read_text()
    assert "Gaussians</b> than 3DGS" in html or "As many Gaussians as 3DGS" in html


@pytest.mark.parametrize(
    "line", ["--demo --no_baseline", "--demo --method 3dgs", "--method opacity"]
)
def test_other_runs_have_no_baseline(line: str, tmp_path: Path) -> None:
    config = train.parse([*line.split(), "-s", "scene", "-m", str(tmp_path / "out")])
    assert cli.baseline_of(config, METHODS) is None
