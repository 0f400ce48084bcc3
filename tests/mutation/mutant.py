"""One mutant, where its snippet is, and whether tests notice it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("kernels", "gs", "pruning", "splatrim", "train.py")
COPIED = (*PACKAGES, "tests", "pyproject.toml", "README.md")
TIMEOUT = 900  # seconds for the tests of one mutant; one that hangs is noticed
SURVIVED, CAUGHT = 0, 1  # exit status of pytest: all passed, some failed


class MutantError(Exception):
    """The table does not fit the code."""


class Mutant(NamedTuple):
    """A change of one place in the code that some test should notice."""

    name: str
    """Unique, in words that say what is wrong with it."""
    snippet: str
    """Text that occurs in one place of all packages; which file it is in does not matter."""
    replacement: str
    """What stands there instead."""
    tests: tuple[str, ...]
    """Arguments of pytest. Files by name alone: all of that name under tests/, or with ::test those
    that have it; "-k words" selects within them."""


def check(root: Path, mutants: Sequence[Mutant]) -> None:
    """Raise MutantError unless names are unique and every snippet and test file is there once."""
    names = [mutant.name for mutant in mutants]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [f"{name}: is in the table twice" for name in twice]
    for mutant in mutants:
        try:
            locate(root, mutant)
            selection(root, mutant.tests)
        except MutantError as error:
            problems.append(str(error))
    if problems:
        raise MutantError("\n".join(problems))


def locate(root: Path, mutant: Mutant) -> Path:
    """The file that the snippet is in. Raises MutantError unless it is in one place."""
    if mutant.snippet == mutant.replacement:
        raise MutantError(f"{mutant.name}: changes nothing")
    files = [
        path
        for pattern in PACKAGES
        for path in (root / pattern, *root.glob(f"{pattern}/**/*.py"))
        if path.is_file()
    ]
    counts = [(path, path.read_text("utf-8").count(mutant.snippet)) for path in files]
    found = [(path, count) for path, count in counts if count]
    if len(found) != 1 or found[0][1] != 1:
        places = ", ".join(f"{path.relative_to(root)} ({count})" for path, count in found)
        raise MutantError(f"{mutant.name}: its snippet is in {places or 'no file'}")
    return found[0][0]


def selection(root: Path, tests: Sequence[str]) -> list[str]:
    """Arguments of pytest with paths in place of the names of test files."""
    arguments: list[str] = []
    for test in tests:
        if test.startswith("-k "):
            arguments += ["-k", test.removeprefix("-k ")]
            continue
        name, colons, function = test.partition("::")
        paths = sorted((root / "tests").rglob(name))
        if colons:
            paths = [path for path in paths if f"def {function}(" in path.read_text("utf-8")]
        if not paths:
            raise MutantError(f"{test}: no such test")
        arguments += [f"{path.relative_to(root)}{colons}{function}" for path in paths]
    return arguments


def copy_tree(source: Path, target: Path) -> None:
    """What tests need, without caches."""
    ignored = shutil.ignore_patterns("__pycache__", ".pytest_cache", "mutation")
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=ignored)
        else:
            shutil.copy(source / name, target / name)


def is_noticed(root: Path, mutant: Mutant) -> tuple[bool, str]:
    """Whether the tests fail on `root`, a copy, with the mutant in it; and the test that did.

    Raises MutantError where pytest does not get as far as running tests.
    """
    path = locate(root, mutant)
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace(mutant.snippet, mutant.replacement), encoding="utf-8")
    try:
        status, output = run_tests(root, mutant.tests)
    finally:
        path.write_text(before, encoding="utf-8")
    if status not in (SURVIVED, CAUGHT):
        raise MutantError(f"{mutant.name}: pytest ended with {status}\n{output[-2000:]}")
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    by = failed[0].removeprefix("FAILED ").partition(" - ")[0] if failed else ""
    return status == CAUGHT, by


def run_tests(root: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Exit status and output of pytest; a run that does not end counts as failed."""
    # bytecode is checked by size and second of the source: a mutant may have both of its original
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    try:
        run = subprocess.run(
            [*command, *selection(root, tests)],
            cwd=root,
            env=environment,
            timeout=TIMEOUT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return CAUGHT, f"FAILED (no end within {TIMEOUT} s)"
    return run.returncode, run.stdout
