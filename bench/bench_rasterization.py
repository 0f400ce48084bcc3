"""`rasterization`, forward and forward + backward, beside gsplat where it is installed.

pytest bench/bench_rasterization.py                 through pytest-benchmark, synchronised
python -m bench.bench_rasterization [--json FILE]   CUDA events around the public call: the table
python -m bench.bench_rasterization --first_call garden-x1      seconds of a process's first calls

Degree-3 spherical harmonics, near plane 0.01, one random image gradient, no graph capture; gsplat
with packed=False. Variants take turns, so that whatever disturbs a machine disturbs all of them,
each with calls before those that are measured; "masks" are ones and "sampled" is drawn from logits
of 8, both with gradients. `single_thread` has autograd in the caller's thread, where it need not
wake another (torch.autograd.set_multithreading_enabled(False), as training does); `busy` is the
time in which the GPU runs kernels; `memory` what a forward and backward allocate at their peak
beyond parameters, their gradients and the image's.
"""

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.scenes import NAMES, Workload, load
from kernels import rasterization

WARMUPS, REPEATS, TURNS = 20, 20, 5
SETTLING = 450  # calls: buffers shrink after at most twice 200 (kernels/pipeline.py)
VARIANTS: dict[str, dict[str, Any]] = {
    "splatrim": {},
    "splatrim, masks": {"masks": 1.0},
    "splatrim, sampled": {"mask_logits": 8.0, "mask_seed": 3},
    "splatrim, exact": {"precision": "exact"},
    "splatrim, deterministic": {"deterministic": True},
}


def calls(w: Workload, variant: str) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """Forward, and forward + backward."""
    parameters = w.parameters()
    leaves = [*parameters]
    v_image = torch.rand(1, w.height, w.width, 3, device="cuda")
    camera = (w.viewmats, w.Ks, w.width, w.height)
    if variant == "gsplat":
        gsplat = importlib.import_module("gsplat")  # it need not be there

        def forward() -> Tensor:
            return gsplat.rasterization(*parameters, *camera, sh_degree=3, packed=False)[0]
    else:
        options = dict(VARIANTS[variant])
        for name in {"masks", "mask_logits"} & options.keys():
            options[name] = torch.full((len(w.means),), options[name], device="cuda")
            leaves.append(options[name].requires_grad_())

        def forward() -> Tensor:
            return rasterization(*parameters, *camera, sh_degree=3, **options)[0]

    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        forward().backward(v_image)

    return forward, both


def settle(forward: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        for _ in range(SETTLING):  # until buffers have shrunk to this workload
            forward()


def times_ms(f: Callable[[], Any]) -> list[float]:
    times = []
    for i in range(WARMUPS + REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        f()
        end.record()
        torch.cuda.synchronize()
        if i >= WARMUPS:
            times.append(start.elapsed_time(end))
    return times


class Times(NamedTuple):
    median: float
    tenth: float  # a tenth of calls took less: those that nothing disturbed


def in_turns_ms(calls: dict[str, Callable[[], Any]]) -> dict[str, Times]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, f in calls.items():
            times[name] += times_ms(f)
    return {
        name: Times(statistics.median(each), statistics.quantiles(each, n=10)[0])
        for name, each in times.items()
    }


def busy_ms(f: Callable[[], Any], calls: int = 5) -> float:
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(calls):
            f()
        torch.cuda.synchronize()
    return sum(e.self_device_time_total for e in trace.key_averages()) / calls / 1e3


def memory_mb(f: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    f()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(w: Workload, variants: list[str]) -> list[dict[str, Any]]:
    forwards, boths = {}, {}
    for variant in variants:
        forwards[variant], boths[variant] = calls(w, variant)
        settle(forwards[variant])
    forward, both = in_turns_ms(forwards), in_turns_ms(boths)
    with torch.autograd.set_multithreading_enabled(False):
        single_thread = in_turns_ms(boths)
    return [
        {
            "workload": w.name,
            "n": len(w.means),
            "variant": name,
            "forward_ms": forward[name].median,
            "both_ms": both[name].median,
            "single_thread_ms": single_thread[name].median,
            "both_tenth_ms": both[name].tenth,
            "single_thread_tenth_ms": single_thread[name].tenth,
            "memory_mb": memory_mb(boths[name]),
        }
        for name in variants
    ]


def first_calls(w: Workload) -> list[float]:
    """Seconds of the first forwards + backwards of a process that has done nothing but load."""
    parameters, camera = w.parameters(), (w.viewmats, w.Ks, w.width, w.height)
    torch.cuda.synchronize()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        image = rasterization(*parameters, *camera, sh_degree=3)[0]
        image.sum().backward()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--first_call", action="store_true")
    parser.add_argument("--rivals", nargs="*", default=["gsplat"])
    arguments = parser.parse_args()
    if arguments.first_call:
        print([round(seconds, 3) for seconds in first_calls(load(arguments.names[0]))])
        return
    rows, variants = [], [*arguments.rivals, *VARIANTS]
    for name in arguments.names:
        rows += measure(load(name), variants)
        torch.cuda.empty_cache()
    # Last of all: once a profiler has run, launches take longer for the rest of the process.
    for name in arguments.names:
        w = load(name)
        for row in rows:
            if row["workload"] == name:
                forward, both = calls(w, row["variant"])
                settle(forward)
                row["busy_ms"] = busy_ms(both)
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    about = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "calls": TURNS * REPEATS,
        "command": "python -m bench.bench_rasterization",
    }
    if arguments.json:
        arguments.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1))


@pytest.mark.parametrize("variant", ["gsplat", *VARIANTS])
@pytest.mark.parametrize("workload", NAMES, indirect=True)
@pytest.mark.parametrize("step", ["forward", "both"])
def bench_rasterization(
    step: str, workload: Workload, variant: str, timed: Callable[..., Any]
) -> None:
    if variant == "gsplat":
        pytest.importorskip("gsplat")
    forward, both = calls(workload, variant)
    timed(forward if step == "forward" else both, n=len(workload.means), variant=variant)


if __name__ == "__main__":
    main()
