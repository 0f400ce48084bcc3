"""The site builds without a warning and needs no network; commands in it have the flags named."""

import ast
import dataclasses
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import train

HOW_TO = sorted((Path(__file__).parents[1] / "docs" / "howto").glob("*.md"))
SETTINGS = {
    "render": ("gs.evaluation.render", "RenderConfig"),
    "metrics": ("gs.evaluation.metrics", "MetricsConfig"),
    "export": ("gs.evaluation.export", "ExportConfig"),
}
SHORT = {"m", "s", "r", "i", "f", "o"}


@pytest.fixture(scope="module")
def site(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_page_and_needs_no_network(repo: Path, site: Path) -> None:
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - {"404.html"}
    written = {
        path.relative_to(repo / "docs").with_suffix(".html").as_posix()
        for path in (repo / "docs").rglob("*.md")
    }
    root = {"index.html", "changelog.html", "contributing.html", "licence.html"}
    assert pages == written | root
    for page in pages:
        text = (site / page).read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*src=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preconnect)[^>]*href=\"?(\S+)", text)
        assert not [address for address in loaded if "//" in address], page
        assert "docs/usage.html" not in text and 'href="../README' not in text, page


def test_docstrings_are_in_the_api_pages(site: Path) -> None:
    for page, name in (
        ("model", "gs.formats.model_file.load_model"),
        ("training", "gs.training.strategy.Strategy.before_render"),
        ("kernels", "kernels.rasterization.rasterization"),
    ):
        text = (site / "api" / f"{page}.html").read_text()
        assert f'id="{name}"' in text and "Raises" in text, name


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_links_of_a_how_to_hold(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    known = {"../contributing.md", "../changelog.md", "../index.md"}  # made by docs/pages.py
    assert not [link for link in links if link not in known and not (page.parent / link).exists()]


def _commands(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith(("splatrim ", "!splatrim ")):
            yield shlex.split(line, comments=True)[1:]


def _flags(text: str) -> Iterator[tuple[str, str]]:
    """Command and flag of every flag in a page's commands."""
    for name, *words in _commands(text):
        yield from ((name, word.lstrip("-")) for word in words if word.startswith("-"))


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The flags of each command."""
    found = {
        name: {field.name for field in dataclasses.fields(getattr(importlib.import_module(m), c))}
        for name, (m, c) in SETTINGS.items()
    }
    return {name: known | SHORT for name, known in found.items()}


def test_commands_have_the_flags_that_pages_name(
    repo: Path, flags: dict[str, set[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    shown = capsys.readouterr().out
    flags = flags | {"train": set(re.findall(r"--?([a-z_]+)", shown))}
    notebook = json.loads((repo / "docs" / "demo.ipynb").read_text())
    cells = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    named = [pair for page in HOW_TO for pair in _flags(page.read_text())] + [*_flags(cells)]
    assert len(named) > 30
    assert not [(name, flag) for name, flag in named if name in flags and flag not in flags[name]]


def test_the_notebook_is_one_and_names_what_there_is(repo: Path) -> None:
    notebook = json.loads((repo / "docs" / "demo.ipynb").read_text())
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) > 10
    lines = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [] and cell["execution_count"] is None
        source = "".join(line for line in cell["source"] if not line.startswith(("!", "%")))
        lines += source.count("\n")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module == "gs":
                module = importlib.import_module("gs")
                assert not [a.name for a in node.names if not hasattr(module, a.name)]
    assert lines > 20
