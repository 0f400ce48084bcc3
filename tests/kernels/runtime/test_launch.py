"""Lean launches hand Triton's C function what its own launcher would."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.backends.nvidia.driver import CudaLauncher

from kernels.runtime import launch
from kernels.runtime.launch import _starter


def launcher(calls: list[tuple[Any, ...]], **needs: Any) -> Any:
    """Stands in for the launcher of a compiled kernel and records what reaches C."""
    attributes = {
        "num_ctas": 1,
        "global_scratch_size": 0,
        "global_scratch_align": 1,
        "profile_scratch_size": 0,
        "profile_scratch_align": 1,
        "launch_cooperative_grid": False,
        "launch_pdl": False,
        "launch": lambda *args: calls.append(args),
    }
    if "arg_annotations" in CudaLauncher.__call__.__code__.co_names:  # Triton 3.7
        attributes |= {"arg_annotations": ["annotation"], "kernel_signature": b"signature"}
    own = type("Run", (SimpleNamespace,), {"__call__": CudaLauncher.__call__})
    return own(**(attributes | needs))


def start(how: launch.Start, *args: Any) -> None:
    how.call(1, 2, 3, 99, *how.before, *args, *how.after)


@pytest.mark.parametrize("cooperative", [False, True])
def test_same_arguments(cooperative: bool) -> None:
    lean, own = [], []
    needs = {"launch_cooperative_grid": cooperative}
    compiled = SimpleNamespace(run=launcher(lean, **needs), function=7, packed_metadata=(4, 1, 0))
    start(_starter(compiled, (64, True)), 1024, None, 0.5)
    run = launcher(own, **needs)
    run(1, 2, 3, 99, 7, (4, 1, 0), None, None, None, 1024, None, 0.5, 64, True)
    assert len(lean) == 1 and lean == own


@pytest.mark.parametrize("name", ["global_scratch_size", "profile_scratch_size", "launch_pdl"])
def test_special_kernels_take_the_slow_way(name: str) -> None:
    calls: list[tuple[Any, ...]] = []
    run = launcher([], **{name: 1})
    type(run).__call__ = lambda self, *args: calls.append(args)
    compiled = SimpleNamespace(run=run, function=7, packed_metadata=(4, 1, 0))
    start(_starter(compiled, (64,)), 1024)
    assert calls == [(1, 2, 3, 99, 7, (4, 1, 0), None, None, None, 1024, 64)]


def test_one_compilation_per_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel is compiled for where its arguments lie, and then found again."""
    compiled, started = [], []

    class Kernel:
        fn, params = staticmethod(launcher), ()  # some function's name

        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **_: compiled.append(args)

    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(launch, "INTERPRET", False)
    note = launch.Start(lambda x, y, z, stream, *args: started.append([*args]), (), ())
    monkeypatch.setattr(launch, "_starter", lambda *_: note)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, raising=False)
    x = torch.zeros(64)
    assert x.data_ptr() % 16 == 0
    patterns = [(x, None), (x[1:], None), (None, x), (None, x[1:]), (x[1:], x[1:]), (x, x)]
    for _ in range(3):
        for pattern in patterns:
            launch.launch(Kernel(), (1,), *pattern, 3)
    assert len(compiled) == len(patterns) and len(started) == 2 * len(patterns)
    for pattern, plain in zip(patterns, started, strict=False):
        assert plain == [None if t is None else t.data_ptr() for t in pattern] + [3]
