"""Lean launches hand Triton's C function what its own launcher would."""

from types import SimpleNamespace
from typing import Any

import pytest
from triton.backends.nvidia.driver import CudaLauncher

from kernels.launch import _starter


def launcher(calls: list[tuple[Any, ...]], **needs: Any) -> Any:
    """Stands in for the launcher of a compiled kernel and records what reaches C."""
    attributes = {
        "num_ctas": 1, "global_scratch_size": 0, "global_scratch_align": 1,
        "profile_scratch_size": 0, "profile_scratch_align": 1, "launch_cooperative_grid": False,
        "launch_pdl": False, "launch": lambda *args: calls.append(args),
    }  # fmt: skip
    if "arg_annotations" in CudaLauncher.__call__.__code__.co_names:  # Triton 3.7
        attributes |= {"arg_annotations": ["annotation"], "kernel_signature": b"signature"}
    run = type("Run", (), {"__call__": CudaLauncher.__call__})()
    run.__dict__.update(attributes | needs)
    return run


def test_same_arguments() -> None:
    lean, own = [], []
    compiled = SimpleNamespace(run=launcher(lean), function=7, packed_metadata=(4, 1, 0))
    _starter(compiled, (64, True))(1, 2, 3, 99, [1024, None, 0.5])
    run = launcher(own)
    run(1, 2, 3, 99, 7, (4, 1, 0), None, None, None, 1024, None, 0.5, 64, True)
    assert len(lean) == 1 and lean == own


@pytest.mark.parametrize("name", ["global_scratch_size", "profile_scratch_size", "launch_pdl"])
def test_special_kernels_take_the_slow_way(name: str) -> None:
    calls: list[tuple[Any, ...]] = []
    run = launcher([], **{name: 1})
    type(run).__call__ = lambda self, *args: calls.append(args)
    compiled = SimpleNamespace(run=run, function=7, packed_metadata=(4, 1, 0))
    _starter(compiled, (64,))(1, 2, 3, 99, [1024])
    assert calls == [(1, 2, 3, 99, 7, (4, 1, 0), None, None, None, 1024, 64)]
