"""What is compiled from a rehearsal is found in the cache by the launch itself; no GPU is needed.

Run as a script, this file rehearses a few launches and compiles or launches them, in a process
where Triton does not interpret.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPO = Path(__file__).resolve().parents[3]


def launch_some() -> None:
    """A few cheap kernels: aligned and not, with None, with a limit of registers."""
    import torch

    from kernels import FusedAdam, add_gradient_norms
    from kernels.runtime.launch import zeros

    zeros((5,), torch.float32, torch.device("cpu"))
    v, radii, sums = torch.zeros(1, 128, 2), torch.ones(1, 128, 2).int(), torch.zeros(129)
    for first in (0, 1):
        out = sums[first : first + 128], sums[first : first + 128].clone()
        add_gradient_norms(
            v[:, :128].contiguous(), radii[:, :128].contiguous(), *out, width=8, height=8
        )
    p = torch.zeros(4, 3, requires_grad=True)
    p.grad = torch.zeros_like(p)
    FusedAdam([p]).apply(torch.zeros(1, 2), skip=torch.zeros(1, dtype=torch.int32))


def compile_in_processes() -> None:
    from kernels import Rehearsal, Target, compile_variants, rehearsing

    rehearsal = Rehearsal(target := Target(90, 132))
    with rehearsing(rehearsal):
        launch_some()
    done = compile_variants(rehearsal.launches, target, 2)
    print(json.dumps({one.label: one.error for one in done}))


def launch_here() -> None:
    """Every launch goes to Triton's own `kernel[grid]`, up to where it would ask the GPU to run."""
    import torch
    import triton
    from triton import knobs
    from triton.runtime.jit import JITFunction

    from kernels import backend
    from kernels.rehearsal import Target
    from kernels.runtime import launch
    from kernels.runtime.variants import _Driver

    found: dict[str, bool] = {}

    def compiled(*, src: Any, cache_hit: bool, **_: Any) -> None:
        found[f"{src.name} {len(found)}"] = cache_hit

    run = JITFunction.run

    def run_without_gpu(self: Any, *args: Any, **named: Any) -> Any:
        run(self, *args, **{**named, "warmup": True})
        # what it asks of a compiled kernel needs a GPU
        return type("Compiled", (), {"run": None, "function": None, "packed_metadata": None})

    JITFunction.run = run_without_gpu
    torch._C._cuda_getDevice = lambda: 0  # pyright: ignore
    triton.runtime.driver.set_active(_Driver(Target(90, 132)))  # pyright: ignore
    knobs.compilation.listener = compiled  # pyright: ignore
    backend.on_gpu = lambda _: True
    launch._starter = lambda *_: None  # pyright: ignore
    launch_some()
    print(json.dumps(found))


def run_script(what: str, cache: Path) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(REPO), "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, __file__, what], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_launch_finds_what_was_compiled_from_a_rehearsal(tmp_path: Path) -> None:
    done = run_script("compile", tmp_path)
    assert len(done) == 4 and not any(done.values()), done
    hits = run_script("launch", tmp_path)
    assert len(hits) == 4 and all(hits.values()), hits
    misses = run_script("launch", tmp_path / "empty")
    assert len(misses) == 4 and not any(misses.values()), misses


class Fake:
    """A kernel whose compilation does as it is told."""

    def __init__(self, does: Callable[[], None]) -> None:
        self.does = does

    def run(self, **_: Any) -> Any:
        self.does()
        return SimpleNamespace(src=SimpleNamespace(signature={}), metadata=SimpleNamespace())


def fails() -> None:
    raise ValueError("no such register")


def dies() -> None:
    os._exit(1)


def test_a_variant_that_fails_or_kills_its_process_stops_no_other() -> None:
    from kernels import Launch, Target, compile_variants

    target, n = Target(90, 132), 6
    deeds: dict[str, Callable[[], None]] = {f"sound {k}": lambda: None for k in range(n)}
    deeds |= {"order fails": fails, "project dies": dies}
    launches = {name: Launch(Fake(does), (), {}, {}) for name, does in deeds.items()}
    told: list[str] = []
    done = compile_variants(launches, target, 3, tell=lambda one: told.append(one.label))
    errors = {one.label: one.error for one in done}
    assert set(told) == set(errors) == set(deeds) - {"project dies"}
    assert errors["order fails"] == "ValueError: no such register"
    assert compile_variants(launches, target, 1, stops=lambda: True) == []


def test_what_is_needed_first_and_what_takes_longest_comes_first() -> None:
    from kernels import Launch, Target, compile_variants

    names = ("kernels.a.cheap(1)", "kernels.b._order_kernel(2)", "kernels.c.project_bwd(3)")
    launches = {name: Launch(Fake(lambda: None), (), {}, {}) for name in names}
    done = compile_variants(launches, Target(90, 132), 1, turns={names[0]: 1, names[2]: 1})
    assert [one.label for one in done] == [names[1], names[2], names[0]]


if __name__ == "__main__":
    compile_in_processes() if sys.argv[1] == "compile" else launch_here()
