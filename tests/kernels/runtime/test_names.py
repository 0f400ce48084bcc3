"""Triton's names of kernels do not depend on what a process has done before.

Run as a script, this file names every kernel, in a process where Triton does not interpret.
"""

import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[3]


def name_all(*, settles: bool) -> None:
    """Names by kernel, worked out from the first to the last and from the last to the first."""
    from triton.language import constexpr
    from triton.runtime.jit import JITFunction

    import kernels
    from kernels.runtime.names import settle_name

    found = dict[str, Any]()
    for file in pkgutil.walk_packages(kernels.__path__, "kernels."):
        for name, x in vars(import_module(file.name)).items():
            if isinstance(x, JITFunction) and x.fn.__module__ == file.name:
                found[f"{file.name}.{name}"] = x

    def named(order: list[str]) -> dict[str, str]:
        kernels.caches.clear()
        for kernel in found.values():
            kernel.hash, kernel.used_global_vals = None, {}
        for name in order:
            if settles:
                settle_name(found[name])
            else:
                _ = found[name].cache_key
        return {name: kernel.cache_key for name, kernel in found.items()}

    one, other = named([*found]), named([*reversed(found)])
    ambiguous = set[str]()
    for kernel in found.values():
        values = dict[str, set[str]]()
        for (name, _), (value, _) in kernel.used_global_vals.items():
            if isinstance(value, constexpr):
                values.setdefault(name, set()).add(str(value))
        ambiguous |= {name for name in values if len(values[name]) > 1}
    report = {
        "kernels": len(found),
        "differ": [name for name in found if one[name] != other[name]],
        "ambiguous": sorted(ambiguous),
    }
    print(json.dumps(report))


def report_of(what: str) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, __file__, what], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_names_do_not_depend_on_the_order_of_kernels() -> None:
    report = report_of("settled")
    assert report["kernels"] > 200 and report["differ"] == []
    # of two constants of a name, the one that lies lower in memory would come first
    assert report["ambiguous"] == []


def test_a_callee_is_named_before_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels.runtime import names

    asked: list[str] = []

    class Named:
        def __init__(self, fn: Callable[..., Any]) -> None:
            self.fn = fn

        @property
        def cache_key(self) -> str:
            asked.append(self.fn.__name__)
            return ""

    def caller() -> None:
        callee_of_test()  # type: ignore[name-defined]  # noqa: F821
        module_of_test.callee()  # type: ignore[name-defined]  # noqa: F821

    def direct() -> None: ...

    def callee() -> None: ...

    monkeypatch.setitem(globals(), "callee_of_test", Named(direct))
    module = ModuleType("module_of_test")
    vars(module)["callee"] = Named(callee)
    monkeypatch.setitem(globals(), module.__name__, module)
    kernel = Named(caller)
    names.settle_name(kernel)
    names.settle_name(kernel)
    assert asked == ["direct", "callee", "caller"]


if __name__ == "__main__":
    name_all(settles=sys.argv[1] == "settled")
