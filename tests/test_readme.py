"""README's programs run as printed; links, files, flags and tables of the documentation hold."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import train
from bench.report import tables, write
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


PAGES = ("README.md", "CONTRIBUTING.md", "docs/usage.md", "docs/methods.md", "docs/results.md")


def _anchor(title: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_files_and_headings_that_a_page_names_exist(repo: Path, page: str) -> None:
    text, folder = (repo / page).read_text(), (repo / page).parent
    named = re.findall(r"`((?:kernels|gs|pruning|bench|tests)/[\w/.]*|train\.py|Makefile)`", text)
    assert not [name for name in named if not (repo / name).exists()]
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text)
    for file, heading in links:
        target = folder / file if file else repo / page
        assert target.exists(), file
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in map(_anchor, titles), f"{file}#{heading}"
    assert named or links


def test_readme_fits_on_a_few_screens(readme: str) -> None:
    assert len(readme.splitlines()) <= 250


def test_flags_of_the_table_exist(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usage = (repo / "docs" / "usage.md").read_text()
    table = usage.partition("<!-- flags -->")[2].partition("<!-- /flags -->")[0]
    flags = set(re.findall(r"`(--?[a-z_]+)", table))
    assert len(flags) > 15
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    known = set(re.findall(r"(?<![\w-])--?[a-z_]+", capsys.readouterr().out))
    assert not flags - known - {"--help_all"}  # of `splatrim train`, before the parser


@pytest.mark.parametrize("name", ["methods_h200", "rasterization_h200"])
def test_tables_are_those_of_the_saved_figures(repo: Path, tmp_path: Path, name: str) -> None:
    made = tables(json.loads((repo / "bench" / "results" / f"{name}.json").read_text()))
    shown = 0
    for page in (repo / "README.md", repo / "docs" / "results.md"):
        copy = tmp_path / page.name
        copy.write_text(page.read_text())
        write(copy, made)
        assert copy.read_text() == page.read_text()
        shown += sum(f"<!-- {table} -->" in page.read_text() for table in made)
    assert shown == len(made)
