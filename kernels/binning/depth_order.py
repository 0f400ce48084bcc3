"""Depth order: records from front to back, and sums of their entries and members in that order.

A sort of the bits of the depths (sorting.py), then a running sum over the counts that projection
has made, in one launch where that is quicker. The sums say where coarse.py finds the members of a
rank, and how many rows, members and entries there are.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.grid_barrier import wait_for_all
from ..device.running_sum import SCAN, chain, scan_programs
from ..runtime.launch import empty, launch
from .coarse import BLOCK
from .sort_digits import THREADS
from .sort_passes import sort_kernel
from .sorting import plan_sort

MEMBER_SHARE = tl.constexpr(3)  # entries of lists for whose capacity there is one of a member
COUNT_BITS = tl.constexpr(30)  # of the number of members in a word
COUNT_MASK = tl.constexpr((1 << 30) - 1)


@triton.jit(do_not_specialize=["R", "first_word", "n_blocks"])
def _accumulate_kernel(
    order_ptr,  # [R]
    tile_counts_ptr,  # [3, R] of tiles, of bins, of bins by row of bins
    cumulative_ptr,  # [R] out, of tiles
    members_ptr,  # [R] out, of members
    n_members_ptr,  # [1] out, its last
    block_ranks_ptr,  # [n_blocks] out: rank of every BLOCK-th member
    workspace_ptr,  # of projection/
    counts_ptr,  # [4] out, or None
    host_counts_ptr,  # [1] int64 out, or None
    R,
    first_word,  # of this launch among the workspace's running sums
    n_blocks,
    SCAN: tl.constexpr,
    WINDOW: tl.constexpr,  # of device/running_sum.py
):
    """Inclusive sums of the entries and members of each row in depth order, SCAN per program."""
    pid = tl.program_id(0)
    rank = pid * SCAN + tl.arange(0, SCAN)
    there = rank < R
    row = tl.load(order_ptr + rank, mask=there, other=0)
    entries = tl.load(tile_counts_ptr + row, mask=there, other=0)
    members = tl.load(tile_counts_ptr + R + row, mask=there, other=0)
    both = (entries.to(tl.int64) << COUNT_BITS) | members
    words_ptr = workspace_ptr.to(tl.pointer_type(tl.int64)) + first_word
    total = tl.sum(both, 0)
    before = chain(words_ptr, pid, total, WINDOW)
    both = before + tl.cumsum(both, 0)
    end = (both & COUNT_MASK).to(tl.int32)
    tl.store(cumulative_ptr + rank, (both >> COUNT_BITS).to(tl.int32), mask=there)
    tl.store(members_ptr + rank, end, mask=there)
    block = (end - members + (BLOCK - 1)) // BLOCK
    starts = (block * BLOCK < end) & (block < n_blocks)
    while tl.max(starts.to(tl.int32), 0) > 0:
        tl.store(block_ranks_ptr + block, rank, mask=starts)
        block += 1
        starts = starts & (block * BLOCK < end) & (block < n_blocks)
    if pid == tl.num_programs(0) - 1:
        n_entries = ((before + total) >> COUNT_BITS).to(tl.int32)
        n_members = ((before + total) & COUNT_MASK).to(tl.int32)
        tl.store(n_members_ptr, n_members)
        needed = tl.maximum(n_entries, n_members * MEMBER_SHARE)
        tl.store(workspace_ptr + 1, needed)
        tl.store(workspace_ptr + 3, n_entries)
        n_rows = tl.load(workspace_ptr)
        if counts_ptr is not None:
            tl.store(counts_ptr, n_rows)
            tl.store(counts_ptr + 1, needed)
            tl.store(counts_ptr + 2, tl.load(workspace_ptr + 2))
            tl.store(counts_ptr + 3, n_entries)
        if host_counts_ptr is not None:
            tl.store(host_counts_ptr, (needed.to(tl.int64) << 32) | n_rows)


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
    tile_counts_ptr,
    cumulative_ptr,
    members_ptr,
    n_members_ptr,
    block_ranks_ptr,
    workspace_ptr,
    counts_ptr,
    host_counts_ptr,
    first_word,
    n_blocks,
    CHUNK: tl.constexpr,
    SHARED: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Depth order and its sums in one launch, of a program per chunk."""
    sort_kernel(
        keys_ptr,
        values_ptr,
        n_valid_ptr,
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
        CHUNK,
        SHARED,
        WINDOW,
    )
    wait_for_all(count_ptr, (n_passes + 1) * tl.num_programs(0))
    _accumulate_kernel(
        order_ptr,
        tile_counts_ptr,
        cumulative_ptr,
        members_ptr,
        n_members_ptr,
        block_ranks_ptr,
        workspace_ptr,
        counts_ptr,
        host_counts_ptr,
        R,
        first_word,
        n_blocks,
        CHUNK,
        THREADS,
    )


class DepthOrder(NamedTuple):
    """Rows of all cameras from front to back; ties in ascending row."""

    order: Tensor  # [R] int32
    cumulative: Tensor  # [R] int32, inclusive sum of entries


class Members(NamedTuple):
    """Members of bins by rows from front to back."""

    cumulative: Tensor  # [R] int32, inclusive sum
    total: Tensor  # [1] int32
    block_ranks: Tensor  # [blocks] int32, rank of every BLOCK-th member
    by_row: Tensor  # [3, R], tile_counts of projection/


def member_capacity(capacity: int) -> int:
    """Members for entries of that capacity; multiples of 8 keep buffers aligned to 16 bytes."""
    return -(-capacity // (8 * MEMBER_SHARE.value)) * 8


def depth_order(
    depth_keys: Tensor,  # [R] int32
    tile_counts: Tensor,  # [3, R] int32
    workspace: Tensor,  # int32
    capacity: int,
    counts: Tensor | None = None,  # [4] int32
    host_counts: Tensor | None = None,  # [1] int64
) -> tuple[DepthOrder, Members]:
    """Sort by depth and accumulate the counts of tiles and bins in that order.

    Args:
        depth_keys: Bits of depths.
        tile_counts: Tiles and bins that each row touches, of projection/.
        workspace: Of projection/. Its last words are used; workspace[1] becomes the number of
            entries that the lists need, workspace[3] the number that there are.
        capacity: Of entries, as the lists are going to have.
        counts: Gets a copy of the workspace's first four.
        host_counts: Gets the first two: rows, and entries in the high half. In the host's memory.
    """
    R, device = depth_keys.shape[0], depth_keys.device
    n_blocks, n_programs = -(-member_capacity(capacity) // BLOCK.value), scan_programs(R)
    cumulative, members, total, block_ranks = (
        empty((n,), torch.int32, device) for n in (R, R, 1, n_blocks)
    )
    first_word = workspace.shape[0] // 2 - n_programs
    sums = (tile_counts, cumulative, members, total, block_ranks, workspace, counts, host_counts)
    sort = plan_sort(depth_keys, None, 31)
    if sort.together:
        order, grid = sort.results[1], (sort.n_programs,)
        args = (*sort.arguments, order, *sums, first_word, n_blocks)
        launch(_order_kernel, grid, *args, **sort.constants, cooperative=True)
    else:
        order = sort.run()[1]
        args = (order, *sums, R, first_word, n_blocks)
        launch(_accumulate_kernel, (n_programs,), *args, SCAN=SCAN, WINDOW=128)
    return DepthOrder(order, cumulative), Members(members, total, block_ranks, tile_counts)
