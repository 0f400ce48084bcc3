"""The README's two programs run as they are printed, and its links and flags exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import train
from gs.data.demo import write_demo_scene
from gs.data.scene import load_scene
from gs.model.gaussians import Gaussians
from gs.model.ply import save_ply
from gs.run_record import RunRecord, write_record

FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def readme(repo: Path) -> str:
    return (repo / "README.md").read_text()


def _snippet(readme: str, first_line: str) -> str:
    """The one Python block that starts with `first_line`."""
    (found,) = [code for code in FENCE.findall(readme) if code.startswith(first_line + "\n")]
    return found


def _run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_fit_one_image(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = _run(_snippet(readme, "# fit_image.py"))
    target = names["target"]
    blank = (target - target.mean((0, 1))).abs().mean()
    assert names["loss"].item() < 0.5 * blank.item()
    with Image.open("fit.png") as image:
        assert image.size == (names["width"], names["height"])


def test_render_ply(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scene_folder = Path("output/demo_scene")
    scene_folder.parent.mkdir()
    write_demo_scene(scene_folder, views=9, width=32, height=24)
    scene = load_scene(scene_folder)
    model = Gaussians.from_points(scene.points, scene.colors)
    for step in (7, 600, 9000):
        folder = Path(f"output/demo/point_cloud/iteration_{step}")
        save_ply(folder / "point_cloud.ply", model.to_tensors())

    write_record(Path("output/demo"), RunRecord("a", {7: "", 600: ""}))  # 9000 is of another run

    names = _run(_snippet(readme, "# render_ply.py"))
    assert names["path"].parent.name == "iteration_600"
    with Image.open("view.png") as image:
        assert image.size == (32, 24)
    alphas = names["out"].alphas
    assert torch.isfinite(names["out"].colors).all() and alphas.max() > 0.5


def test_files_that_it_names_exist(readme: str, repo: Path) -> None:
    named = re.findall(r"`((?:kernels|gs|pruning|bench|tests)/[\w/.]*|train\.py|Makefile)`", readme)
    named += re.findall(r"\]\((?!https?:|#)([^)#]+)\)", readme)
    assert len(named) > 10
    assert not [name for name in named if not (repo / name).exists()]


def test_flags_of_the_table_exist(readme: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = readme.partition("<!-- flags -->")[2].partition("<!-- /flags -->")[0]
    flags = set(re.findall(r"`(--?[a-z_]+)", table))
    assert len(flags) > 15
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    known = set(re.findall(r"(?<![\w-])--?[a-z_]+", capsys.readouterr().out))
    assert not flags - known
