"""Projection alone, forward and backward, beside the bytes that it must move.

pytest bench/bench_projection.py              through pytest-benchmark, synchronised
python -m bench.bench_projection [NAME ...]   a table of GPU times, and of the host's time per call

`separate` keeps degree 0 and the other SH coefficients in two tensors, as the trainer does, with
raw parameters and masks sampled from logits; `joint` is what `kernels.rasterization` passes on.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton

from bench.scenes import NAMES, Workload, load
from kernels import RasterInputs, RenderSettings, project
from kernels.projection.records import Projected

BANDWIDTH = 4.3e12  # bytes per second, an H200's measured copy
REPEATS = 20


def prepare(w: Workload, layout: str) -> tuple[Callable[[], Projected], list[torch.Tensor]]:
    """The forward to time, and the tensors whose gradients count."""
    cameras = (w.viewmats, w.Ks)
    settings = RenderSettings(w.width, w.height, 0.2, sh_degree=3)
    if layout == "joint":
        leaves = list(w.parameters())
        means, quats, scales, opacities, sh = leaves
        inputs = RasterInputs(means, quats, scales, opacities, sh, *cameras)
        return lambda: project(inputs, settings), leaves
    raw = w._replace(scales=w.scales.log(), opacities=torch.logit(w.opacities, eps=1e-6))
    means, quats, scales, opacities, sh = raw.parameters()
    sh0 = sh[:, :1].detach().clone().requires_grad_()
    shN = sh[:, 1:].detach().clone().requires_grad_()
    logits = torch.randn(len(means), 2, device=means.device).requires_grad_()
    leaves = [means, quats, scales, opacities, sh0, shN, logits]
    inputs = RasterInputs(
        means,
        quats,
        scales,
        opacities,
        sh0,
        *cameras,
        shN,
        mask_logits=logits,
        mask_seed=2**40 + 1,
    )
    return lambda: project(inputs, settings._replace(raw=True)), leaves


def backward_of(out: Projected, leaves: list[torch.Tensor]) -> Callable[[], object]:
    """The backward alone."""
    outputs = (out.means2d, out.values)
    v_outputs = tuple(torch.randn_like(x) for x in outputs)
    return lambda: torch.autograd.grad(outputs, leaves, v_outputs, retain_graph=True)


def necessary_bytes(n: int, visible: int) -> tuple[int, int]:
    """Bytes of forward and backward: parameters and SH of the visible, records, dense gradients."""
    forward = n * (44 + 8 + 8 + 4) + visible * (192 + 64 + 4 + 4 + 4)
    backward = n * (4 + 44 + 192) + visible * (44 + 8 + 192 + 64 + 64)
    return forward, backward


@pytest.mark.parametrize("layout", ["joint", "separate"])
@pytest.mark.parametrize("workload", NAMES, indirect=True)
def test_forward(workload: Workload, timed: Callable[..., Any], layout: str) -> None:
    f, _ = prepare(workload, layout)
    with torch.no_grad():
        out = timed(f, N=len(workload.means))
    assert (out.radii > 0).any()


@pytest.mark.parametrize("layout", ["joint", "separate"])
@pytest.mark.parametrize("workload", NAMES, indirect=True)
def test_backward(workload: Workload, timed: Callable[..., Any], layout: str) -> None:
    f, leaves = prepare(workload, layout)
    gradients = timed(backward_of(f(), leaves), N=len(workload.means))
    assert all(torch.isfinite(v).all() for v in gradients)


def microseconds(f: Callable[[], object]) -> tuple[float, float]:
    """Median time on the GPU of 20 calls, and of the host alone."""
    for _ in range(5):
        f()
    gpu, host = [], []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        # The host is ahead, so that launches do not count.
        torch.cuda._sleep(2_000_000)
        start.record()
        begin = time.perf_counter()
        f()
        host.append(1e6 * (time.perf_counter() - begin))
        end.record()
        torch.cuda.synchronize()
        gpu.append(1e3 * start.elapsed_time(end))
    return sorted(gpu)[REPEATS // 2], sorted(host)[REPEATS // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    print(f"{'workload':12} {'layout':9} {'N':>8} {'seen':>5}  fwd us (limit, host)  bwd us")
    for name in arguments.names:
        w = load(name)
        for layout in ("joint", "separate"):
            f, leaves = prepare(w, layout)
            out = f()
            seen = int((out.radii > 0).all(-1).sum())
            limits = [1e6 * b / BANDWIDTH for b in necessary_bytes(len(w.means), seen)]
            forward, backward = microseconds(f), microseconds(backward_of(out, leaves))
            row = [
                f"{t:7.1f} ({m:6.1f}, {h:5.1f})"
                for (t, h), m in zip((forward, backward), limits, strict=True)
            ]
            print(f"{name:12} {layout:9} {len(w.means):8} {seen / len(w.means):5.2f}", *row)


if __name__ == "__main__":
    main()
