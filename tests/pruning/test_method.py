"""Methods are found by the NAME of their settings, wherever their file is beside the others."""

import importlib.util
import sys
from pathlib import Path

import pytest

from pruning import METHODS

MINE = """
from pruning.method import NoPruning

class Mine(NoPruning):
    NAME = "mine"

class Base(NoPruning):
    pass
"""


def test_names() -> None:
    assert next(iter(METHODS)) == "mask-gaussian"  # what train.py takes by default
    others = {"lp-3dgs", "3dgs", "radsplat", "mini-splatting", "light-gaussian", "opacity"}
    others |= {"natural-selection", "merging", "polarized"}
    assert set(METHODS) == {"mask-gaussian", *others}
    assert all(config.NAME == name for name, config in METHODS.items())


def test_one_more_file_is_one_more_method(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    package = repo / "pruning"
    spec = importlib.util.spec_from_file_location(
        "pruning", package / "__init__.py", submodule_search_locations=[str(package), str(tmp_path)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for name in [name for name in sys.modules if name.split(".")[0] == "pruning"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pruning", module)
    spec.loader.exec_module(module)
    assert set(module.METHODS) == {*METHODS, "mine"}
    for name in [name for name in sys.modules if name.split(".")[0] == "pruning"]:
        monkeypatch.delitem(sys.modules, name)
