r"""Depth-sorted lists of Gaussians per tile.

Given the Gaussians in depth order and the number of tiles each one touches, entry s of the
(Gaussian, tile) list belongs to the first rank r with cumulative[r] > s, and to the j-th tile of
that Gaussian, j = s - cumulative[r - 1], counted along its rows. Every lane of the expansion
finds its own entry, so one huge Gaussian costs no more than as many small ones, and all writes
are contiguous. A stable sort by tile then leaves each tile's list in depth order.

Lists live in buffers of a capacity chosen by the caller. Intersections past the capacity are
dropped, so the caller compares their number with the capacity and repeats with larger buffers.

Tiles are handed out longest list first: programs that start last are then short ones. On a
trained bonsai at 800x533 (H200) this took blending from 0.18 + 0.30 to 0.12 + 0.22 ms (forward,
backward), on garden points by 5 %; ordering costs 7 us.

Gaussians appear as rows of projection.py, R of them, of which those left over touch no tile.

    order, cumulative [R], tile_ids, entry_rows, flatten_ids, slots [I] (place before the sort),
    offsets [C TH TW + 1]: int32, or int64 where torch.sort made them

Depths are sorted by torch.sort and tiles by sorting.py ("mixed"). For two passes over tiles that
takes the host no longer than torch.sort, which with its int64 indices and their copies needs 34
bytes per entry where 16 do. The eight launches over depths would take 0.1 ms more of the host.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .ellipse import cutoff, row_range, row_span
from .launch import launch
from .lookback import SCAN, chain, scan_programs
from .sorting import sort_keys

BLOCK = 32  # entries per program of the expansion: one warp
GATHER = 1024  # entries per program that gathers ids
TILES = 256  # tiles per program
CLASSES = tl.constexpr(64)  # of list lengths
NARROW_SHIFT = tl.constexpr(32768)
FANOUT = tl.constexpr(32)  # of the search for a program's first and last Gaussian


@triton.jit(do_not_specialize=["R", "first_word"])
def _accumulate_kernel(
    order_ptr,  # [R]
    tile_counts_ptr,  # [R]
    cumulative_ptr,  # [R] out
    workspace_ptr,  # of projection.py
    R,
    first_word,  # of this launch among the workspace's running sums
    WIDE_ORDER: tl.constexpr,  # order is int64
    SCAN: tl.constexpr,
):
    """Inclusive sums of the tile counts in depth order."""
    pid = tl.program_id(0)
    rank = pid * SCAN + tl.arange(0, SCAN)
    there = rank < R
    row = tl.load(order_ptr + rank, mask=there, other=0)
    count = tl.load(tile_counts_ptr + row, mask=there, other=0)
    words_ptr = workspace_ptr.to(tl.pointer_type(tl.int64)) + first_word
    total = tl.sum(count, 0)
    before = chain(words_ptr, pid, total).to(tl.int32)
    tl.store(cumulative_ptr + rank, before + tl.cumsum(count, 0), mask=there)
    if pid == tl.num_programs(0) - 1:
        tl.store(workspace_ptr + 1, before + total)


@triton.jit
def _rank_of(cumulative_ptr, s, R, top):
    """First rank whose cumulative count exceeds the two entries s, FANOUT probes at a time."""
    probe = tl.arange(0, FANOUT)[None, :] + 1
    low = tl.zeros([2], tl.int32)
    stride = top
    while stride > 0:
        i = low[:, None] + probe * stride - 1
        count = tl.load(cumulative_ptr + i, mask=i < R, other=2147483647)
        low += tl.sum((count <= s[:, None]).to(tl.int32), 1) * stride
        stride = stride // FANOUT
    return tl.minimum(low, R - 1)


@triton.jit(do_not_specialize=["R", "N", "top", "capacity", "empty", "tiles_x", "tiles_y"])
def _expand_kernel(
    records_ptr,  # [R, 16]
    gaussian_ids_ptr,  # [R], or None with one camera
    order_ptr,  # [R]
    cumulative_ptr,  # [R]
    tile_ids_ptr,  # [capacity] out
    entry_rows_ptr,  # [capacity] out
    class_counts_ptr,  # [2, CLASSES] out: 0
    R,
    N,
    top,  # largest power of FANOUT below R, or 1
    capacity,
    empty,  # tile id of entries that do not exist
    tiles_x,
    tiles_y,
    NARROW: tl.constexpr,  # ids are stored as int16, less NARROW_SHIFT
    WIDE_ORDER: tl.constexpr,  # order is int64
    BLOCK: tl.constexpr,
):
    if tl.program_id(0) == 0:
        tl.store(class_counts_ptr + tl.arange(0, 2 * CLASSES), tl.zeros([2 * CLASSES], tl.int32))
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stored = s < capacity
    exists = stored & (s < tl.load(cumulative_ptr + R - 1))
    ends = tl.program_id(0) * BLOCK + tl.arange(0, 2) * (BLOCK - 1)
    ranks = _rank_of(cumulative_ptr, ends, R, top)
    first = tl.min(ranks, 0)
    low = tl.zeros([BLOCK], tl.int32) + first
    high = tl.zeros([BLOCK], tl.int32) + tl.max(ranks, 0)
    span = tl.max(ranks, 0) - first
    while span > 0:
        middle = (low + high) >> 1
        after = tl.load(cumulative_ptr + middle, mask=exists, other=0) > s
        high = tl.where(after, middle, high)
        low = tl.where(after, low, tl.minimum(middle + 1, high))
        span = span >> 1
    rank = high
    j = s - tl.load(cumulative_ptr + rank - 1, mask=exists & (rank > 0), other=0)
    entry_row = tl.load(order_ptr + rank, mask=exists, other=0).to(tl.int64)
    record_ptr = records_ptr + entry_row * 16
    mx = tl.load(record_ptr + 0, mask=exists, other=0.0)
    my = tl.load(record_ptr + 1, mask=exists, other=0.0)
    A = tl.load(record_ptr + 2, mask=exists, other=1.0)
    B = tl.load(record_ptr + 3, mask=exists, other=0.0)
    C = tl.load(record_ptr + 4, mask=exists, other=1.0)
    t2 = cutoff(tl.load(record_ptr + 5, mask=exists, other=0.0))
    y_max = tl.sqrt(t2 * A / tl.maximum(A * C - B * B, 1e-20))
    row, last = row_range(my, y_max, tiles_y)
    camera = tl.zeros([BLOCK], tl.int32)
    if gaussian_ids_ptr is not None:
        camera = tl.load(gaussian_ids_ptr + entry_row, mask=exists, other=0) // N
    tile = tl.full([BLOCK], 0, tl.int32) + empty
    searching = exists & (row <= last)
    while tl.max(searching.to(tl.int32), 0) > 0:
        x0, x1 = row_span(row, mx, my, A, B, C, t2, tiles_x)
        width = tl.maximum(x1 - x0 + 1, 0)
        here = searching & (j < width)
        tile = tl.where(here, (camera * tiles_y + row) * tiles_x + x0 + j, tile)
        j -= width
        row += 1
        searching = searching & (j >= 0) & (row <= last)
    if NARROW:
        tl.store(tile_ids_ptr + s, (tile - NARROW_SHIFT).to(tl.int16), mask=stored)
    else:
        tl.store(tile_ids_ptr + s, tile, mask=stored)
    tl.store(entry_rows_ptr + s, entry_row.to(tl.int32), mask=stored)


@triton.jit
def _lower_bound(sorted_ids_ptr, tile, mask, n, steps, NARROW: tl.constexpr):
    """First place in n sorted ids that holds `tile` or more."""
    low = tl.zeros_like(tile)
    high = low + n
    for _ in range(steps):
        middle = (low + high) >> 1
        inside = mask & (middle < n)
        at = tl.load(sorted_ids_ptr + middle, mask=inside, other=0).to(tl.int32)
        if NARROW:
            at += NARROW_SHIFT
        after = (at >= tile) | (middle >= n)
        high = tl.where(after, middle, high)
        low = tl.where(after, low, tl.minimum(middle + 1, high))
    return high


@triton.jit
def _length_class(length):
    """0 for the longest lists; four classes per doubling of the length."""
    size = (tl.log2(length.to(tl.float32) + 1.0) * 4.0).to(tl.int32)
    return tl.maximum(-size + (CLASSES - 1), 0)


@triton.jit(do_not_specialize=["R", "capacity", "n_tiles", "steps", "n_search"])
def _lists_kernel(
    sorted_ids_ptr,  # [capacity] sorted tile ids
    cumulative_ptr,  # [R]
    slots_ptr,  # [capacity], or None where flatten_ids are sorted already
    entry_rows_ptr,  # [capacity]
    flatten_ids_ptr,  # [capacity] out with slots
    offsets_ptr,  # [n_tiles + 1] out
    class_counts_ptr,  # [2, CLASSES] 0 before; first row out
    R,
    capacity,
    n_tiles,
    steps,  # ceil(log2(capacity + 1))
    n_search,  # programs that search list ends; the others gather
    NARROW: tl.constexpr,
    WIDE_SLOTS: tl.constexpr,  # slots are int64
    TILES: tl.constexpr,
    GATHER: tl.constexpr,
):
    pid = tl.program_id(0)
    n = tl.minimum(tl.load(cumulative_ptr + R - 1), capacity)
    if pid >= n_search:
        if slots_ptr is not None:
            i = (pid - n_search) * GATHER + tl.arange(0, GATHER)
            there = i < n
            slot = tl.load(slots_ptr + i, mask=there, other=0)
            ids = tl.load(entry_rows_ptr + slot, mask=there, other=0)
            tl.store(flatten_ids_ptr + i, ids, mask=there)
    else:
        tile = pid * TILES + tl.arange(0, TILES)
        mask = tile < n_tiles
        start = _lower_bound(sorted_ids_ptr, tile, mask, n, steps, NARROW)
        end = _lower_bound(sorted_ids_ptr, tile + 1, mask, n, steps, NARROW)
        tl.store(offsets_ptr + tile, start, mask=mask)
        tl.store(offsets_ptr + tile + 1, end, mask=tile == n_tiles - 1)
        classes = tl.where(mask, _length_class(end - start), CLASSES - 1)
        counts = tl.histogram(classes, CLASSES)
        tl.atomic_add(class_counts_ptr + tl.arange(0, CLASSES), counts, sem="relaxed")


@triton.jit(do_not_specialize=["n_tiles"])
def _tile_order_kernel(
    offsets_ptr,  # [n_tiles + 1]
    class_counts_ptr,  # [2, CLASSES] tiles of each class; places taken, 0 before
    tile_order_ptr,  # [n_tiles] out
    n_tiles,
    TILES: tl.constexpr,
):
    """Tiles by class of list length, longest first; any order within a class."""
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    mask = tile < n_tiles
    start = tl.load(offsets_ptr + tile, mask=mask, other=0)
    end = tl.load(offsets_ptr + tile + 1, mask=mask, other=0)
    k = tl.arange(0, CLASSES)
    one_hot = ((_length_class(end - start)[:, None] == k[None, :]) & mask[:, None]).to(tl.int32)
    before = tl.cumsum(one_hot, 0) - one_hot
    counts = tl.load(class_counts_ptr + k)
    taken = tl.atomic_add(class_counts_ptr + CLASSES + k, tl.sum(one_hot, 0), sem="relaxed")
    place = tl.cumsum(counts, 0) - counts + taken
    place = tl.sum(one_hot * (place[None, :] + before), 1)
    tl.store(tile_order_ptr + place, tile, mask=mask)


class DepthOrder(NamedTuple):
    """Rows of all cameras from front to back; ties in ascending row."""

    order: Tensor  # [R] int64 or int32
    cumulative: Tensor  # [R] int32, inclusive sum of tiles touched
    n_isects: Tensor  # [1] int32, its last


class TileLists(NamedTuple):
    """Tile lists in depth order; list t is flatten_ids[offsets[t] : offsets[t + 1]]."""

    flatten_ids: Tensor  # [capacity] int32, rows
    slots: Tensor | None  # [capacity] int64 or int32, where each entry stood before the sort
    offsets: Tensor  # [C TH TW + 1] int32
    tile_order: Tensor  # [C TH TW] int32, longest lists first


def depth_order(
    depth_keys: Tensor,  # [R] int32
    tile_counts: Tensor,  # [R] int32
    workspace: Tensor,  # int32
    sort: str = "mixed",
) -> DepthOrder:
    """Sort by depth and accumulate the tile counts in that order.

    Args:
        depth_keys: Bits of depths.
        tile_counts: Tiles that each row touches.
        workspace: Of projection.py. Its last words are used; workspace[1] becomes the number of
            intersections.
        sort: As in isect_tiles.
    """
    R = depth_keys.shape[0]
    if sort != "triton":
        order = torch.sort(depth_keys, stable=True)[1]
    else:
        order = sort_keys(depth_keys, None, 31)[1]
    cumulative = torch.empty_like(tile_counts)
    n_programs = scan_programs(R)
    launch(
        _accumulate_kernel, (n_programs,), order, tile_counts, cumulative, workspace,
        R, workspace.shape[0] // 2 - n_programs, WIDE_ORDER=sort != "triton", SCAN=SCAN,
    )  # fmt: skip
    return DepthOrder(order, cumulative, workspace[1:2])


def isect_tiles(
    records: Tensor,  # [R, 16] float32
    gaussian_ids: Tensor | None,  # [R] int32
    depth: DepthOrder,
    capacity: int,
    C: int,
    N: int,
    tiles_x: int,
    tiles_y: int,
    sort: str = "mixed",
    with_slots: bool = True,
) -> TileLists:
    """Expand Gaussians into the tiles they touch and sort the entries by tile.

    Args:
        records: Packed rows of projection.py.
        gaussian_ids: Camera N + Gaussian of each row; may be None with one camera.
        depth: Depth order and cumulative tile counts.
        capacity: Entries to make room for; the true number is `depth.cumulative[-1]`.
        C: Cameras.
        N: Gaussians.
        tiles_x: Tiles in a row of the image.
        tiles_y: Rows of tiles.
        sort: "torch" for torch.sort, "triton" for sorting.py, "mixed" for depths by the former and
            tiles by the latter.
        with_slots: Keep `slots`, which deterministic gradients need.

    Returns:
        Tile lists. Entries beyond the last list are unspecified.
    """
    R, n_tiles, device = records.shape[0], C * tiles_x * tiles_y, records.device
    # 16-bit ids sort in half the passes
    narrow = sort == "torch" and n_tiles < 65535
    tile_ids = torch.empty(capacity, dtype=torch.int16 if narrow else torch.int32, device=device)
    entry_rows = torch.empty(capacity, dtype=torch.int32, device=device)
    class_counts = torch.empty(2, CLASSES.value, dtype=torch.int32, device=device)
    top = 1
    while top * FANOUT.value < R:
        top *= FANOUT.value
    wide_order = depth.order.dtype == torch.int64
    launch(
        _expand_kernel, (-(-capacity // BLOCK),),
        records, gaussian_ids if C > 1 else None, depth.order, depth.cumulative, tile_ids,
        entry_rows, class_counts, R, N, top, capacity, n_tiles, tiles_x, tiles_y,
        NARROW=narrow, WIDE_ORDER=wide_order, BLOCK=BLOCK, num_warps=1,
    )  # fmt: skip
    flatten_ids, slots, n_gather, bits = entry_rows, None, 0, n_tiles.bit_length()
    if sort == "torch":
        sorted_ids, slots = torch.sort(tile_ids, stable=True)
    elif with_slots:
        sorted_ids, slots = sort_keys(tile_ids, None, bits, depth.n_isects)
    else:
        sorted_ids, _ = sort_keys(tile_ids, entry_rows, bits, depth.n_isects, overwrite=True)
    if slots is not None:
        flatten_ids = torch.empty(capacity, dtype=torch.int32, device=device)
        n_gather = -(-capacity // GATHER)
    offsets = torch.empty(n_tiles + 1, dtype=torch.int32, device=device)
    tile_order = torch.empty(n_tiles, dtype=torch.int32, device=device)
    n_search = -(-n_tiles // TILES)
    launch(
        _lists_kernel, (n_search + n_gather,),
        sorted_ids, depth.cumulative, slots, entry_rows, flatten_ids, offsets, class_counts,
        R, capacity, n_tiles, capacity.bit_length(), n_search,
        NARROW=narrow, WIDE_SLOTS=sort == "torch", TILES=TILES, GATHER=GATHER,
    )  # fmt: skip
    launch(
        _tile_order_kernel, (n_search,), offsets, class_counts, tile_order, n_tiles,
        TILES=TILES, num_warps=8,
    )  # fmt: skip
    return TileLists(flatten_ids, slots if with_slots else None, offsets, tile_order)
