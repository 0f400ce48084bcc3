"""Binning alone.

pytest bench/bench_binning.py              through pytest-benchmark, synchronised
python -m bench.bench_binning [NAME ...]   a table of GPU and host times, and of bytes per entry

`depth` sorts rows by depth and adds up their entries and members, `tiles` expands them into bins
and makes the list of every tile.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import triton

from bench.bench_projection import microseconds
from bench.scenes import NAMES, Workload, load
from kernels import Capacity, RasterInputs, RenderSettings, TileLists, bin_tiles, project
from kernels.binning import ListsLayout, isect_tiles
from kernels.binning.depth_order import DepthOrder, Members, depth_order
from kernels.runtime.capacity import SPARE


class Stages(NamedTuple):
    """Both stages of one workload, ready to call."""

    depth: Callable[[], tuple[DepthOrder, Members]]
    tiles: Callable[[], TileLists]
    n_rows: int
    n_entries: int


def prepare(w: Workload) -> Stages:
    """The stages behind a projection of the capacity that the pipeline takes."""

    inputs = RasterInputs(w.means, w.quats, w.scales, w.opacities, w.sh, w.viewmats, w.Ks)
    settings = RenderSettings(w.width, w.height, sh_degree=3)
    with torch.no_grad():
        n_rows = int(project(inputs, settings).workspace[0])
        p = project(inputs, settings, Capacity(int(SPARE * n_rows) + 1, 0))
    counts = bin_tiles(p).counts
    assert counts is not None
    n_entries, capacity = int(counts[3]), int(SPARE * int(counts[1])) + 1
    words = torch.zeros_like(p.workspace)

    def depth() -> tuple[DepthOrder, Members]:
        # the running sums begin at zero
        return depth_order(p.depth_keys, p.tile_counts, words.zero_(), capacity)

    order, members = depth()
    layout = ListsLayout(1, p.tiles_x, p.tiles_y, capacity, with_slots=False)
    return Stages(depth, lambda: isect_tiles(p, order, members, layout), n_rows, n_entries)


@pytest.mark.parametrize("workload", NAMES, indirect=True)
def test_depth(workload: Workload, timed: Callable[..., Any]) -> None:
    s = prepare(workload)
    order, _ = timed(s.depth, rows=s.n_rows)
    assert int(order.cumulative[-1]) == s.n_entries


@pytest.mark.parametrize("workload", NAMES, indirect=True)
def test_tiles(workload: Workload, timed: Callable[..., Any]) -> None:
    s = prepare(workload)
    lists = timed(s.tiles, entries=s.n_entries)
    assert int(lists.offsets[-1]) == s.n_entries


def peak_bytes(f: Callable[[], object]) -> int:
    """What a call allocates at its peak."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    f()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    print(f"{'workload':12} {'rows':>9} {'us, host':>15} {'entries':>9} {'us, host':>15}")
    for name in arguments.names:
        s = prepare(load(name))
        (depth, depth_host), (tiles, tiles_host) = microseconds(s.depth), microseconds(s.tiles)
        print(
            f"{name:12} {s.n_rows:9} {depth:7.1f} {depth_host:7.1f}"
            f" {s.n_entries:9} {tiles:7.1f} {tiles_host:7.1f}"
            f"   {peak_bytes(s.tiles) / s.n_entries:5.1f} bytes per entry"
        )


if __name__ == "__main__":
    main()
