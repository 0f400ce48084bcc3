"""kernels.binning.sorting against torch.sort, by design, number of keys and bits.

python -m bench.bench_sorting [--json FILE] [--designs ...]   a table, results checked
pytest bench/bench_sorting.py    some of its rows through pytest-benchmark
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

from kernels.binning.sorting import plan_sort

SIZES = (100_000, 500_000, 1_270_000, 2_100_000, 3_040_000, 5_840_000)
BITS = (13, 15, 17, 31)
WARMUPS, REPEATS = 3, 20
DESIGNS = {"triton": {"exchange": "shared"}, "triton, global": {"exchange": "global"}}


def make_keys(n: int, bits: int) -> Tensor:
    """Tile ids in depth order (13 to 17 bits), or bit patterns of depths (31)."""
    g = torch.Generator(device="cuda").manual_seed(n + bits)
    if bits == 31:
        depths = 1 + 20 * torch.rand(n, device="cuda", generator=g)
        return depths.masked_fill(depths < 3, float("inf")).view(torch.int32)
    # neighbours in a list are a few tiles of one Gaussian
    first = torch.randint(0, (1 << bits) - 4, (n // 4 + 1,), device="cuda", generator=g)
    return (first[:, None] + torch.arange(4, device="cuda")).reshape(-1)[:n].to(torch.int32)


def sort_of(design: str, keys: Tensor, bits: int) -> Callable[[], tuple[Tensor, Tensor]] | None:
    """The call to time; None where 16-bit keys do not hold the bits."""
    if design == "torch.sort int32":
        return lambda: tuple(torch.sort(keys, stable=True))  # pyright: ignore
    if design == "torch.sort int16":
        short = keys.to(torch.int16)
        return (lambda: tuple(torch.sort(short, stable=True))) if bits <= 15 else None  # pyright: ignore
    options: dict[str, Any] = DESIGNS[design]
    return lambda: plan_sort(keys, None, bits, **options).run()


def milliseconds(f: Callable[[], object]) -> tuple[float, float]:
    """Medians: time on the device by events around the call, and in a replayed CUDA graph."""
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
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        f()
    replayed = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        replayed.append(start.elapsed_time(end))
    return sorted(times)[REPEATS // 2], sorted(replayed)[REPEATS // 2]


def is_right(got: tuple[Tensor, Tensor], keys: Tensor) -> bool:
    want = torch.sort(keys, stable=True)
    return torch.equal(got[0], want[0]) and torch.equal(got[1].to(torch.int64), want[1])


def table(designs: list[str]) -> list[dict[str, Any]]:
    """Print the table, one design after the other, and return its rows.

    A design that fails says why and the next goes on.
    """
    results: list[dict[str, Any]] = []
    best: dict[tuple[int, int], float] = {}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    print(
        f"{'design':22} {'bits':>4} {'n':>9} {'call ms':>9} {'graph ms':>9} {'/ torch':>7}  check"
    )
    for design in designs:
        for bits in BITS:
            for n in SIZES:
                keys = make_keys(n, bits)
                f = sort_of(design, keys, bits)
                if f is None:
                    continue
                try:
                    right = design.startswith("torch") or is_right(f(), keys)
                    call, graph = milliseconds(f)
                except Exception as error:  # a benchmark reports and continues
                    print(f"{design:22} {bits:4} {n:9} {type(error).__name__}: {str(error)[:200]}")
                    continue
                if design.startswith("torch"):
                    best[bits, n] = min(graph, best.get((bits, n), graph))
                ratio = graph / best.get((bits, n), float("nan"))
                row = {"design": design, "bits": bits, "n": n, "ms": call, "graph_ms": graph}
                results.append({**row, "right": right})
                verdict = "ok" if right else "WRONG"
                print(
                    f"{design:22} {bits:4} {n:9} {call:9.4f} {graph:9.4f} {ratio:7.2f}  {verdict}",
                    flush=True,
                )
    return results


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("design", ["torch.sort int32", *DESIGNS])
@pytest.mark.parametrize("bits", [15, 31])
@pytest.mark.parametrize("n", [100_000, 1_270_000, 3_040_000])
def test_sorting(benchmark: Any, n: int, bits: int, design: str) -> None:
    keys = make_keys(n, bits)
    f = sort_of(design, keys, bits)
    assert f is not None

    def synchronised() -> tuple[Tensor, Tensor]:
        result = f()
        torch.cuda.synchronize()
        return result

    assert is_right(benchmark(synchronised), keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    names = ["torch.sort int32", "torch.sort int16", *DESIGNS]
    parser.add_argument("--designs", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    results = table(arguments.designs)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
