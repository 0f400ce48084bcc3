r"""Depth-sorted lists of Gaussians per tile.

Given the Gaussians in depth order and the number of tiles each one touches, entry s of the
(Gaussian, tile) list belongs to the first rank r with cumulative[r] > s, and to the j-th tile of
that Gaussian, j = s - cumulative[r - 1], counted along its rows. Every lane of the expansion
finds its own entry, so one huge Gaussian costs no more than as many small ones, and all writes
are contiguous. A stable sort by tile then leaves each tile's list in depth order.

Lists live in buffers of a capacity chosen by the caller: entries past the number of intersections
carry a tile past the last one and sort to the end. Intersections past the capacity are dropped,
so the caller compares `n_isects` with the capacity and repeats with larger buffers.

    order [C N] int64, cumulative [C N] int32, tile_ids [I] int16 or int32, gaussian_ids [I] int32
    flatten_ids [I] int32, slots [I] int64 (place before the sort), offsets [C TH TW + 1] int32
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .ellipse import row_range, row_span

BLOCK = 128  # entries per program of the expansion, one warp
GATHER = 1024


@triton.jit(do_not_specialize=["M", "steps", "capacity", "empty"])
def _expand_kernel(
    records_ptr,  # [C N, 16]
    order_ptr,  # [C N] int64
    cumulative_ptr,  # [C N]
    tile_ids_ptr,  # [capacity] out
    gaussian_ids_ptr,  # [capacity] out
    M,  # C N
    N,
    steps,  # ceil(log2(M + 1))
    capacity,
    empty,  # tile id of entries that do not exist
    tiles_x,
    tiles_y,
    SHIFT: tl.constexpr,  # stored ids are tile - SHIFT
    BLOCK: tl.constexpr,
):
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stored = s < capacity
    n = tl.load(cumulative_ptr + M - 1)
    exists = stored & (s < n)
    # first rank whose cumulative count exceeds s
    low = tl.zeros([BLOCK], tl.int32)
    high = tl.full([BLOCK], 0, tl.int32) + (M - 1)
    for _ in range(steps):
        middle = (low + high) >> 1
        after = tl.load(cumulative_ptr + middle, mask=exists, other=0) > s
        high = tl.where(after, middle, high)
        low = tl.where(after, low, tl.minimum(middle + 1, high))
    rank = high
    j = s - tl.load(cumulative_ptr + rank - 1, mask=exists & (rank > 0), other=0)
    gaussian = tl.load(order_ptr + rank, mask=exists, other=0)
    row_ptr = records_ptr + gaussian * 16
    mx = tl.load(row_ptr + 0, mask=exists, other=0.0)
    my = tl.load(row_ptr + 1, mask=exists, other=0.0)
    A = tl.load(row_ptr + 2, mask=exists, other=1.0)
    B = tl.load(row_ptr + 3, mask=exists, other=0.0)
    C = tl.load(row_ptr + 4, mask=exists, other=1.0)
    t2 = tl.load(row_ptr + 12, mask=exists, other=0.0)
    y_max = tl.sqrt(t2 * A / tl.maximum(A * C - B * B, 1e-20))
    row, last = row_range(my, y_max, tiles_y)
    camera = (gaussian // N).to(tl.int32)
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
    tl.store(tile_ids_ptr + s, (tile - SHIFT).to(tile_ids_ptr.dtype.element_ty), mask=stored)
    tl.store(gaussian_ids_ptr + s, gaussian.to(tl.int32), mask=stored)


@triton.jit(do_not_specialize=["capacity", "n_tiles", "steps", "n_gather"])
def _lists_kernel(
    sorted_ids_ptr,  # [capacity] sorted tile ids
    slots_ptr,  # [capacity] int64
    gaussian_ids_ptr,  # [capacity]
    flatten_ids_ptr,  # [capacity] out
    offsets_ptr,  # [n_tiles + 1] out
    capacity,
    n_tiles,
    steps,  # ceil(log2(capacity + 1))
    n_gather,  # programs that gather; the others search
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    if pid < n_gather:
        i = pid * BLOCK + tl.arange(0, BLOCK)
        mask = i < capacity
        slot = tl.load(slots_ptr + i, mask=mask, other=0)
        ids = tl.load(gaussian_ids_ptr + slot, mask=mask, other=0)
        tl.store(flatten_ids_ptr + i, ids, mask=mask)
    else:
        tile = (pid - n_gather) * BLOCK + tl.arange(0, BLOCK)
        mask = tile <= n_tiles
        low = tl.zeros([BLOCK], tl.int32)
        high = tl.full([BLOCK], 0, tl.int32) + capacity
        for _ in range(steps):
            middle = (low + high) >> 1
            inside = mask & (middle < capacity)
            at = tl.load(sorted_ids_ptr + middle, mask=inside, other=32767).to(tl.int32) + SHIFT
            after = (at >= tile) | (middle >= capacity)
            high = tl.where(after, middle, high)
            low = tl.where(after, low, tl.minimum(middle + 1, high))
        tl.store(offsets_ptr + tile, high, mask=mask)


class DepthOrder(NamedTuple):
    """Gaussians of all cameras from front to back; ties in ascending index."""

    order: Tensor  # [C N] int64
    cumulative: Tensor  # [C N] int32, inclusive sum of tiles touched


class TileLists(NamedTuple):
    """Tile lists in depth order; list t is flatten_ids[offsets[t] : offsets[t + 1]]."""

    flatten_ids: Tensor  # [capacity] int32, camera * N + Gaussian
    slots: Tensor  # [capacity] int64, where each entry stood before the sort
    offsets: Tensor  # [C TH TW + 1] int32


def depth_order(depth_keys: Tensor, tiles_per_gauss: Tensor) -> DepthOrder:
    """Sort by depth and accumulate the tile counts in that order."""
    order = torch.sort(depth_keys.view(-1), stable=True)[1]
    counts = tiles_per_gauss.view(-1)[order]
    return DepthOrder(order, torch.cumsum(counts, 0, dtype=torch.int32))


def isect_tiles(
    records: Tensor,  # [C, N, 16] float32
    depth: DepthOrder,
    capacity: int,
    tiles_x: int,
    tiles_y: int,
) -> TileLists:
    """Expand Gaussians into the tiles they touch and sort the entries by tile.

    Args:
        records: Packed rows of projection.py.
        depth: Depth order and cumulative tile counts.
        capacity: Entries to make room for; the true number is `depth.cumulative[-1]`.
        tiles_x: Tiles in a row of the image.
        tiles_y: Rows of tiles.

    Returns:
        Tile lists. Entries beyond the last list are unspecified ids of existing Gaussians.
    """
    C, N, _ = records.shape
    M, n_tiles, device = C * N, C * tiles_x * tiles_y, records.device
    # 16-bit ids sort in half the passes
    narrow = n_tiles < 65535
    shift = 32768 if narrow else 0
    tile_ids = torch.empty(capacity, dtype=torch.int16 if narrow else torch.int32, device=device)
    gaussian_ids = torch.empty(capacity, dtype=torch.int32, device=device)
    _expand_kernel[(triton.cdiv(capacity, BLOCK),)](
        records,
        depth.order,
        depth.cumulative,
        tile_ids,
        gaussian_ids,
        M,
        N,
        M.bit_length(),
        capacity,
        n_tiles,
        tiles_x,
        tiles_y,
        SHIFT=shift,
        BLOCK=BLOCK,
        num_warps=1,
    )
    sorted_ids, slots = torch.sort(tile_ids, stable=True)
    flatten_ids = torch.empty(capacity, dtype=torch.int32, device=device)
    offsets = torch.empty(n_tiles + 1, dtype=torch.int32, device=device)
    n_gather = triton.cdiv(capacity, GATHER)
    _lists_kernel[(n_gather + triton.cdiv(n_tiles + 1, GATHER),)](
        sorted_ids,
        slots,
        gaussian_ids,
        flatten_ids,
        offsets,
        capacity,
        n_tiles,
        capacity.bit_length(),
        n_gather,
        SHIFT=shift,
        BLOCK=GATHER,
    )
    return TileLists(flatten_ids, slots, offsets)
