"""One step of Adam over a model with masks, by implementation and number of Gaussians.

python -m bench.bench_adam [--json FILE] [--peak TB/s]   a table, results checked
pytest bench/bench_adam.py    its smaller rows through pytest-benchmark

"seen" is a step of some rows alone: all, or three in ten, which lie in runs of 1,000 as in a model
that is ordered along a curve, or at random; a rate is that of all rows' bytes.

A Gaussian has 61 parameters (SH of degree 3, mask logits), and each moves 28 bytes: value and both
moments are read and written, the gradient is read. The peak is that of an H200 unless told.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from kernels import FusedAdam

SHAPES = ((3,), (1, 3), (15, 3), (), (2,), (3,), (4,))
BYTES = 28 * sum(torch.Size(shape).numel() for shape in SHAPES)  # of a Gaussian
SIZES = (100_000, 1_000_000, 5_500_000)
BETAS, EPS = (0.9, 0.999), 1e-15
PEAK = 4.8  # TB/s
WARMUPS, REPEATS = 3, 20


def leaves(n: int) -> list[Tensor]:
    g = torch.Generator(device="cuda").manual_seed(n)
    params = [torch.randn(n, *shape, device="cuda", generator=g) for shape in SHAPES]
    for p in params:
        p.requires_grad_().grad = 1e-3 * torch.randn(p.shape, device="cuda", generator=g)
    return params


SHARE, RUN = 0.3, 1000  # of rows that are seen
SEEN = ("all rows", "runs of rows", "single rows")


def row_rates(design: str, n: int) -> Tensor:
    """What `FusedAdam.rows` has in steps of the rows that a design sees. [N, 2]"""
    g = torch.Generator().manual_seed(n)
    run = RUN if "runs" in design else 1
    seen = torch.rand(-(-n // run), generator=g) < (1.0 if "all" in design else SHARE)
    return seen.repeat_interleave(run)[:n, None].float().expand(n, 2).contiguous().cuda()


def build(design: str, params: list[Tensor]) -> torch.optim.Adam:
    if design.startswith("kernel"):
        optimizer = FusedAdam(params, lr=1e-3, betas=BETAS, eps=EPS)
        if design.endswith(SEEN):
            optimizer.rows = row_rates(design, len(params[0]))
            for group in optimizer.param_groups:
                group["by_row"] = True
        return optimizer
    return torch.optim.Adam(params, lr=1e-3, betas=BETAS, eps=EPS, **{design.split()[-1]: True})


def step_of(design: str, params: list[Tensor]) -> Callable[[], Any]:
    """The call to time: a step, or the replay of one."""
    optimizer = build(design, params)
    if not isinstance(optimizer, FusedAdam):
        return optimizer.step
    if design == "kernel":
        return optimizer.step
    rates = optimizer.rates_for().cuda()
    optimizer.apply(rates)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.apply(rates)

    alive = optimizer, rates  # the graph knows addresses alone

    def replay(alive: Any = alive) -> None:
        graph.replay()

    return replay


DESIGNS = ("torch foreach", "torch fused", "kernel", "kernel, graph")
DESIGNS += tuple(f"kernel, graph, seen {rows}" for rows in SEEN)


def milliseconds(f: Callable[[], object]) -> float:
    """Median time on the device, by events around the call."""
    for _ in range(WARMUPS):
        f()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        f()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[REPEATS // 2]


def is_right(n: int = 10_000, steps: int = 3) -> bool:
    """Whether the kernel's steps have the bits of torch's."""
    got, want = leaves(n), leaves(n)
    for design, params in (("kernel", got), ("torch foreach", want)):
        optimizer = build(design, params)
        for _ in range(steps):
            optimizer.step()
    return all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def table(peak: float, sizes: Sequence[int], designs: Sequence[str]) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    results: list[dict[str, Any]] = []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    print(f"kernel equals torch foreach bit for bit: {is_right()}")
    print(f"{'design':34} {'n':>9} {'ms':>9} {'GB/s':>7} {'of peak':>8}")
    for n in sizes:
        for design in designs:
            params = leaves(n)
            ms = milliseconds(step_of(design, params))
            rate = n * BYTES / ms * 1e-6
            print(f"{design:34} {n:9} {ms:9.4f} {rate:7.0f} {rate / peak / 10:7.1f}%", flush=True)
            results.append({"design": design, "n": n, "ms": ms, "gb_per_s": rate})
            del params
            torch.cuda.empty_cache()
    return results


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("n", SIZES[:2])
def test_adam(timed: Callable[..., Any], n: int, design: str) -> None:
    assert is_right()
    timed(step_of(design, leaves(n)), n=n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of Gaussians")
    parser.add_argument("--designs", nargs="+", default=DESIGNS)
    parser.add_argument("--peak", type=float, default=PEAK, help="memory bandwidth in TB/s")
    arguments = parser.parse_args()
    results = table(arguments.peak, arguments.sizes, arguments.designs)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
