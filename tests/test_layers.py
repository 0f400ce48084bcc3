"""Imports point one way: train.py -> pruning -> gs -> kernels -> torch, triton."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernels

OWN = {"train", "pruning", "gs", "kernels", "bench", "tests"}
MAY_IMPORT = {"kernels": set(), "gs": {"kernels"}, "pruning": {"gs", "kernels"}}


def _imports(path: Path) -> Iterator[tuple[int, int, str, list[str]]]:
    """Line, number of leading dots, module and imported names of every import in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.lineno, node.level, node.module or "", [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name, []) for alias in node.names)


def _package_imports(repo: Path, package: str) -> Iterator[tuple[str, int, int, str, list[str]]]:
    """Place and depth of every import of a package: 1 for a file directly in its folder."""
    files = sorted((repo / package).rglob("*.py"))
    assert files, f"{package} has no files"
    for path in files:
        relative = path.relative_to(repo)
        for line, level, module, names in _imports(path):
            yield f"{relative}:{line}", len(relative.parts) - 1, level, module, names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_downwards(repo: Path, package: str) -> None:
    wrong = [
        f"{place} imports {module}"
        for place, _, level, module, _ in _package_imports(repo, package)
        if level == 0 and module.split(".")[0] in OWN - MAY_IMPORT[package]
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_relative_imports_stay_in_their_package(repo: Path, package: str) -> None:
    wrong = [
        place for place, depth, level, _, _ in _package_imports(repo, package) if level > depth
    ]
    assert not wrong, wrong


def test_kernels_need_torch_and_triton_only(repo: Path) -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    wrong = [
        f"{place} imports {module}"
        for place, _, level, module, _ in _package_imports(repo, "kernels")
        if level == 0 and module.split(".")[0] not in allowed
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", ["gs", "pruning"])
def test_kernels_are_used_by_public_name(repo: Path, package: str) -> None:
    wrong = [
        f"{place} imports {', '.join(names) or module} from {module}"
        for place, _, level, module, names in _package_imports(repo, package)
        if level == 0
        and module.split(".")[0] == "kernels"
        and (module != "kernels" or not names or not set(names) <= set(kernels.__all__))
    ]
    assert not wrong, wrong


def test_nothing_imports_train(repo: Path) -> None:
    wrong = [
        f"{path.relative_to(repo)}:{line}"
        for folder in (*MAY_IMPORT, "bench")
        for path in sorted((repo / folder).rglob("*.py"))
        for line, _, module, _ in _imports(path)
        if module.split(".")[0] == "train"
    ]
    assert not wrong, wrong
