r"""Depth-sorted lists of Gaussians per tile, by way of bins of 4x4 tiles.

Gaussians in depth order are expanded into entries (Gaussian, bin) (binning/coarse.py), these are
sorted by bin, stably, so that each bin stays in depth order (sorting/), and each entry is written
into the lists of those tiles of its bin that the Gaussian touches (binning/fine.py). An entry
stands for 4 to 7 tiles on garden and bonsai, and the sort has as much less to do. On an H200, depth
order and lists together take 0.15 ms on garden-x1 and 0.44 ms on garden-7x7, where one sort of all
pairs of Gaussian and tile took 0.28 and 1.02 ms; at the peak 8 bytes per pair, of 19
(bench_binning.py).

Lists live in buffers of a capacity chosen by the caller. Intersections past the capacity are
dropped, so the caller compares their number with the capacity and repeats with larger buffers.
There is room for a third as many entries of bins; if these need more, that counts as the number.

Tiles are handed out longest list first: programs that start last are then short ones. On a
trained bonsai at 800x533 (H200) this took blending from 0.18 + 0.30 to 0.12 + 0.22 ms (forward,
backward), on garden points by 5 %.

Gaussians appear as rows of projection/, R of them, of which those left over touch no tile.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.grid_barrier import wait_for_all
from ..device.running_sum import SCAN, chain, scan_programs
from ..projection.ellipse import SIDE
from ..runtime.launch import empty, launch, zeros
from ..runtime.packed import Layout
from ..runtime.recording import KINDS
from ..sorting import passes, plan_sort
from ..sorting.digits import THREADS
from ..sorting.passes import sort_kernel
from .coarse import BIN_TILES, BLOCK, expand_kernel
from .fine import CLASSES, LANES, count_chunks_kernel, place_kernel, scan_tiles_kernel

PARTS = 4  # of 32 entries per program that makes lists; at most 7
WINDOW = 8  # chunks looked at together
TILES = 128  # tiles per program that orders them
BIN_SHARE = tl.constexpr(3)  # entries of lists that make room for one of a bin
COUNT_BITS = tl.constexpr(30)  # of the number of bins in a word
COUNT_MASK = tl.constexpr((1 << 30) - 1)
KEY_BITS = 16  # of a key that hits leave to the bin


@triton.jit(do_not_specialize=["R", "first_word", "n_blocks"])
def _accumulate_kernel(
    order_ptr,  # [R]
    counts_ptr,  # [3, R] of tiles, of bins, of bins by row
    cumulative_ptr,  # [R] out, of tiles
    bins_ptr,  # [R] out, of bins
    n_bins_ptr,  # [1] out, its last
    block_ranks_ptr,  # [n_blocks] out: rank of every BLOCK-th entry of a bin
    workspace_ptr,  # of projection/
    counters_ptr,  # [4] out, or None
    answer_ptr,  # [1] int64 out, or None
    R,
    first_word,  # of this launch among the workspace's running sums
    n_blocks,
    SCAN: tl.constexpr,
    WINDOW: tl.constexpr,  # of device/running_sum.py
):
    """Inclusive sums of the tiles and bins of each Gaussian in depth order, SCAN per program."""
    pid = tl.program_id(0)
    rank = pid * SCAN + tl.arange(0, SCAN)
    there = rank < R
    row = tl.load(order_ptr + rank, mask=there, other=0)
    tiles = tl.load(counts_ptr + row, mask=there, other=0)
    bins = tl.load(counts_ptr + R + row, mask=there, other=0)
    both = (tiles.to(tl.int64) << COUNT_BITS) | bins
    words_ptr = workspace_ptr.to(tl.pointer_type(tl.int64)) + first_word
    total = tl.sum(both, 0)
    before = chain(words_ptr, pid, total, WINDOW)
    both = before + tl.cumsum(both, 0)
    end = (both & COUNT_MASK).to(tl.int32)
    tl.store(cumulative_ptr + rank, (both >> COUNT_BITS).to(tl.int32), mask=there)
    tl.store(bins_ptr + rank, end, mask=there)
    block = (end - bins + (BLOCK - 1)) // BLOCK
    starts = (block * BLOCK < end) & (block < n_blocks)
    while tl.max(starts.to(tl.int32), 0) > 0:
        tl.store(block_ranks_ptr + block, rank, mask=starts)
        block += 1
        starts = starts & (block * BLOCK < end) & (block < n_blocks)
    if pid == tl.num_programs(0) - 1:
        n_tiles = ((before + total) >> COUNT_BITS).to(tl.int32)
        n_bins = ((before + total) & COUNT_MASK).to(tl.int32)
        tl.store(n_bins_ptr, n_bins)
        needed = tl.maximum(n_tiles, n_bins * BIN_SHARE)
        tl.store(workspace_ptr + 1, needed)
        tl.store(workspace_ptr + 3, n_tiles)
        n_rows = tl.load(workspace_ptr)
        if counters_ptr is not None:
            tl.store(counters_ptr, n_rows)
            tl.store(counters_ptr + 1, needed)
            tl.store(counters_ptr + 2, tl.load(workspace_ptr + 2))
            tl.store(counters_ptr + 3, n_tiles)
        if answer_ptr is not None:
            tl.store(answer_ptr, (needed.to(tl.int64) << 32) | n_rows)


@triton.jit(
    do_not_specialize=["R", "begin_bit", "end_bit", "width", "n_passes", "first_word", "n_blocks"]
)
def _order_kernel(
    keys_ptr,  # [R]; what follows as in sort_kernel
    values_ptr,
    n_valid_ptr,  # None: all R
    exchange_ptr,
    words_ptr,
    count_ptr,
    keys_1_ptr,
    values_1_ptr,
    keys_2_ptr,
    values_2_ptr,
    R,
    begin_bit,
    end_bit,
    width,
    n_passes,
    order_ptr,  # where its results are; what follows as in _accumulate_kernel
    counts_ptr,
    cumulative_ptr,
    bins_ptr,
    n_bins_ptr,
    block_ranks_ptr,
    workspace_ptr,
    counters_ptr,
    answer_ptr,
    first_word,
    n_blocks,
    TILE: tl.constexpr,
    SHARED: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Depth order and its sums in one launch, of a program per tile."""
    sort_kernel(
        keys_ptr, values_ptr, n_valid_ptr, exchange_ptr, words_ptr, count_ptr, keys_1_ptr,
        values_1_ptr, keys_2_ptr, values_2_ptr, R, begin_bit, end_bit, width, n_passes, TILE,
        SHARED, WINDOW,
    )  # fmt: skip
    wait_for_all(count_ptr, (n_passes + 1) * tl.num_programs(0))
    _accumulate_kernel(
        order_ptr, counts_ptr, cumulative_ptr, bins_ptr, n_bins_ptr, block_ranks_ptr,
        workspace_ptr, counters_ptr, answer_ptr, R, first_word, n_blocks, TILE, THREADS,
    )  # fmt: skip


class DepthOrder(NamedTuple):
    """Rows of all cameras from front to back; ties in ascending row."""

    order: Tensor  # [R] int32
    cumulative: Tensor  # [R] int32, inclusive sum of tiles touched


class BinCounts(NamedTuple):
    """Bins touched by rows from front to back."""

    cumulative: Tensor  # [R] int32, inclusive sum
    total: Tensor  # [1] int32
    block_ranks: Tensor  # [blocks] int32, rank of every BLOCK-th entry of a bin
    by_row: Tensor  # tile_counts of projection/


class TileLists(NamedTuple):
    """Tile lists in depth order; list t is flatten_ids[offsets[t] : offsets[t + 1]]."""

    flatten_ids: Tensor  # [capacity] int32, rows
    slots: Tensor | None  # [capacity] int32, where each entry stands in Gaussian order
    offsets: Tensor  # [C TH TW + 1] int32
    tile_order: Tensor  # [C TH TW] int32, longest lists first
    buffer: Tensor  # int32, in which the others lie: lists_in


@functools.lru_cache(KINDS)
def _lists_layout(n_tiles: int, capacity: int, with_slots: bool) -> Layout:
    """Slots, offsets, order of tiles, and the lists, or what is sorted where they come to lie."""
    slots = (capacity,) if with_slots else None
    return Layout(slots, (n_tiles + 1,), (n_tiles,), (max(capacity, 2 * _room(capacity)),))


def lists_in(buffer: Tensor, n_tiles: int, capacity: int, with_slots: bool) -> TileLists:
    """Lists of n_tiles tiles in all cameras; `capacity` and `with_slots` as in isect_tiles."""
    layout = _lists_layout(n_tiles, capacity, with_slots)
    slots = layout.part(buffer, 0) if with_slots else None
    offsets, tile_order, flatten_ids = (layout.part(buffer, k) for k in (1, 2, 3))
    return TileLists(flatten_ids[:capacity], slots, offsets, tile_order, buffer)


def depth_order(
    depth_keys: Tensor,  # [R] int32
    tile_counts: Tensor,  # [3, R] int32
    workspace: Tensor,  # int32
    capacity: int,
    counters: Tensor | None = None,  # [4] int32
    answer: Tensor | None = None,  # [1] int64
) -> tuple[DepthOrder, BinCounts]:
    """Sort by depth and accumulate the counts of tiles and bins in that order.

    Args:
        depth_keys: Bits of depths.
        tile_counts: Tiles and bins that each row touches, of projection/.
        workspace: Of projection/. Its last words are used; workspace[1] becomes the capacity
            that is needed, workspace[3] the number of intersections of Gaussians and tiles.
        capacity: That isect_tiles is going to have.
        counters: Gets a copy of the workspace's first four.
        answer: Gets the first two: rows, and entries in the high half. In the host's memory.
    """
    R, device = depth_keys.shape[0], depth_keys.device
    n_blocks, n_programs = -(-_room(capacity) // BLOCK.value), scan_programs(R)
    cumulative, bins, total, block_ranks = (
        empty((n,), torch.int32, device) for n in (R, R, 1, n_blocks)
    )
    first_word = workspace.shape[0] // 2 - n_programs
    sums = (tile_counts, cumulative, bins, total, block_ranks, workspace, counters, answer)
    plan = plan_sort(depth_keys, None, 31)
    if plan.together:
        order = plan.results[1]
        launch(
            _order_kernel, (plan.n_programs,), *plan.arguments, order, *sums, first_word, n_blocks,
            **plan.constants, cooperative=True,
        )  # fmt: skip
    else:
        order = plan.run()[1]
        launch(
            _accumulate_kernel, (n_programs,), order, *sums, R, first_word, n_blocks,
            SCAN=SCAN, WINDOW=128,
        )  # fmt: skip
    return DepthOrder(order, cumulative), BinCounts(bins, total, block_ranks, tile_counts)


def _room(capacity: int) -> int:
    """Entries of bins; multiples of 8 keep all buffers aligned to 16 bytes."""
    return -(-capacity // (8 * BIN_SHARE.value)) * 8


def _bins(tiles: int) -> int:
    return -(-tiles // SIDE.value)


def _pair(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    return x[:n], x[n : 2 * n]


def isect_tiles(
    records: Tensor,  # [R, 16] float32
    gaussian_ids: Tensor | None,  # [R] int32
    depth: DepthOrder,
    bins: BinCounts,
    capacity: int,
    C: int,
    N: int,
    tiles_x: int,
    tiles_y: int,
    with_slots: bool = True,
) -> TileLists:
    """Expand Gaussians into the tiles they touch and sort the entries by tile.

    Args:
        records: Of projection.
        gaussian_ids: Camera N + Gaussian of each row; may be None with one camera.
        depth: Depth order and cumulative counts of tiles.
        bins: Counts of bins.
        capacity: Entries to make room for, as in depth_order, which tells how many are needed.
        C: Cameras.
        N: Gaussians.
        tiles_x: Tiles in a row of the image.
        tiles_y: Rows of tiles.
        with_slots: Make `slots`, which deterministic gradients need.

    Returns:
        Tile lists. Entries beyond the last list are unspecified.
    """
    R, n_tiles, device = records.shape[0], C * tiles_x * tiles_y, records.device
    n_bins = C * _bins(tiles_x) * _bins(tiles_y)
    bits = max((n_bins - 1).bit_length(), 1)
    room = _room(capacity)

    def new(n: int) -> Tensor:
        return empty((n,), torch.int32, device)

    tables = with_slots or bits > KEY_BITS
    n_scan = scan_programs(n_tiles)
    # counts of classes and of tiles, words of the running sum
    sizes = [2 * CLASSES.value, -(-n_tiles // 4) * 4, 2 * n_scan]
    class_counts, tile_counts, chain_words = zeros((sum(sizes),), torch.int32, device).split(sizes)
    # The passes of the sort go to and fro between two pairs of buffers, of which one lies where
    # the lists come to lie afterwards.
    layout = _lists_layout(n_tiles, capacity, with_slots)
    lists = lists_in(layout.make(device), n_tiles, capacity, with_slots)
    flatten_ids = layout.part(lists.buffer, 3)
    pairs = [_pair(new(2 * room), room), _pair(flatten_ids, room)]
    (keys, values), between = pairs if passes(bits) % 2 == 0 else pairs[::-1]
    rows, hits, first_slots = values, None, None
    if tables:
        rows, first_slots = new(room), new(room)
        hits = empty((room,), torch.int16, device)
    launch(
        expand_kernel, (-(-room // BLOCK.value),),
        records, gaussian_ids if C > 1 else None, depth.order, bins.cumulative, bins.total,
        bins.block_ranks, bins.by_row, depth.cumulative if tables else None,
        keys, rows, hits, first_slots,
        R, N, room, tiles_x, tiles_y,
        TABLES=tables, num_warps=BLOCK.value // 32,
    )  # fmt: skip
    keys, values = plan_sort(
        keys, None if tables else values, bits, bins.total, buffers=(between, (keys, values))
    ).run()
    n_chunks = -(-room // (PARTS * LANES.value))
    words = new(n_chunks * BIN_TILES.value)
    launch(
        count_chunks_kernel, (n_chunks,), keys, values, hits, bins.total, tile_counts, words,
        room, tiles_x, tiles_y, PARTS=PARTS, num_warps=1,
    )  # fmt: skip
    launch(
        scan_tiles_kernel, (n_scan,), tile_counts, chain_words.view(torch.int64), class_counts,
        lists.offsets, n_tiles, capacity, SCAN=SCAN,
    )  # fmt: skip
    n_order = -(-n_tiles // TILES)
    launch(
        place_kernel, (n_order + n_chunks,), keys, values, hits, rows if tables else None,
        first_slots if with_slots else None, bins.total, words, lists.offsets, class_counts,
        flatten_ids, lists.slots, lists.tile_order, room, capacity, n_tiles, n_order,
        tiles_x, tiles_y, PARTS=PARTS, TILES=TILES, WINDOW=WINDOW, num_warps=1,
    )  # fmt: skip
    return lists
