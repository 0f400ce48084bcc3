"""`rasterization`, forward and forward + backward, beside gsplat where it is installed.

pytest bench/bench_rasterization.py                 through pytest-benchmark, synchronised
python -m bench.bench_rasterization [--json FILE]   CUDA events around the public call: the table

Degree-3 spherical harmonics, near plane 0.01, one random image gradient, no graph capture; gsplat
with packed=False. `single_thread` has autograd in the caller's thread, where it need not wake
another (torch.autograd.set_multithreading_enabled(False), as training does); `busy` is the time in
which the GPU runs kernels; `memory` what a forward and backward allocate at their peak beyond
parameters and image.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.scenes import NAMES, Workload, load
from kernels import rasterization

WARMUPS, REPEATS = 8, 30
SETTLING = 450  # calls: buffers shrink after at most twice 200 (kernels/pipeline.py)
VARIANTS: dict[str, dict[str, Any]] = {
    "splatrim": {},
    "splatrim, masks": {"masks": True},
    "splatrim, exact": {"precision": "exact"},
    "splatrim, deterministic": {"deterministic": True},
}


def calls(w: Workload, variant: str) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """Forward, and forward + backward."""
    leaves = w.parameters()
    v_image = torch.rand(1, w.height, w.width, 3, device="cuda")
    camera = (w.viewmats, w.Ks, w.width, w.height)
    if variant == "gsplat":
        import gsplat

        def forward() -> Tensor:
            return gsplat.rasterization(*leaves, *camera, sh_degree=3, packed=False)[0]
    else:
        options = dict(VARIANTS[variant])
        if options.pop("masks", False):
            options["masks"] = torch.ones(len(w.means), device="cuda").requires_grad_()

        def forward() -> Tensor:
            return rasterization(*leaves, *camera, sh_degree=3, **options)[0]

    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        forward().backward(v_image)

    return forward, both


def median_ms(f: Callable[[], Any]) -> float:
    times = []
    for i in range(WARMUPS + REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        f()
        end.record()
        torch.cuda.synchronize()
        if i >= WARMUPS:
            times.append(start.elapsed_time(end))
    return sorted(times)[REPEATS // 2]


def busy_ms(f: Callable[[], Any], calls: int = 5) -> float:
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(calls):
            f()
        torch.cuda.synchronize()
    return sum(e.self_device_time_total for e in trace.key_averages()) / calls / 1e3


def measure(w: Workload, variant: str) -> dict[str, Any]:
    forward, both = calls(w, variant)
    with torch.no_grad():
        for _ in range(SETTLING):  # until buffers have shrunk to this workload
            forward()
        result = {"workload": w.name, "variant": variant, "forward_ms": median_ms(forward)}
    result["both_ms"] = median_ms(both)
    with torch.autograd.set_multithreading_enabled(False):
        result["single_thread_ms"] = median_ms(both)
    result["busy_ms"] = busy_ms(both)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    result["memory_mb"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rivals", nargs="*", default=["gsplat"])
    arguments = parser.parse_args()
    rows = []
    for name in arguments.names or NAMES:
        w = load(name)
        for variant in (*arguments.rivals, *VARIANTS):
            rows.append(measure(w, variant) | {"n": len(w.means)})
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()})
            torch.cuda.empty_cache()
    about = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
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
