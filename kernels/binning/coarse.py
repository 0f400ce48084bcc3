r"""First level of binning: records in depth order become members of bins of 4x4 tiles.

In each row of bins a record is a member of every bin from the first to the last in which it
touches a tile, as projection counted them. Member s belongs to the first rank r with
cumulative[r] > s, and to the j-th bin of that record, j = s - cumulative[r - 1], counted along its
rows of bins. Every lane finds its own member, so one huge Gaussian costs no more than as many small
ones, and all writes are contiguous. With the row of the bin it knows the spans of its four rows of
tiles, and notes which of the bin's tiles are touched in 16 bits, tile (x, y) of the bin in bit
4 y + x. (A bin between touched ones may have none: a needle can pass between the centres of two
rows of pixels.)

    keys [members] int32: bin, and without tables the hits from bit 16 on
    rows [members] int32: what is sorted with them; with tables that is the place s, by which rows,
    hits and first_slots [members] are then found
"""

import triton
import triton.language as tl

from ..projection.ellipse import (
    SIDE,
    SIDE_BITS,
    half_height,
    load_ellipse,
    no_bins,
    row_range,
    row_span,
    with_span,
)
from ..projection.record import RECORD_SIZE

BIN_TILES = tl.constexpr(16)
BLOCK = tl.constexpr(64)  # members per program


@triton.jit(do_not_specialize=["R", "N", "members", "tiles_x", "tiles_y"])
def expand_kernel(
    records_ptr,  # [R, 16]
    gaussian_ids_ptr,  # [R], or None with one camera
    order_ptr,  # [R]
    cumulative_ptr,  # [R] of members
    n_members_ptr,  # [1], its last
    block_ranks_ptr,  # [blocks] rank of each program's first member
    counts_ptr,  # [3, R]; last row: bins in the first four rows of bins, in bytes
    entry_cumulative_ptr,  # [R], with tables
    keys_ptr,  # [members] out
    rows_ptr,  # [members] out
    hits_ptr,  # [members] out, with tables
    first_slots_ptr,  # [members] out, with tables: slot of the member's first entry
    R,
    N,
    members,  # capacity
    tiles_x,
    tiles_y,
    TABLES: tl.constexpr,
):
    n = tl.minimum(tl.load(n_members_ptr), members)
    start = tl.program_id(0) * BLOCK
    if start >= n:
        return
    s = start + tl.arange(0, BLOCK)
    exists = s < n
    first = tl.load(block_ranks_ptr + tl.program_id(0))
    last = R - 1
    if start + BLOCK < n:
        last = tl.load(block_ranks_ptr + tl.program_id(0) + 1)
    low = tl.zeros([BLOCK], tl.int32) + first
    high = tl.zeros([BLOCK], tl.int32) + last
    span = last - first
    while span > 0:
        middle = (low + high) >> 1
        after = tl.load(cumulative_ptr + middle, mask=exists, other=0) > s
        high = tl.where(after, middle, high)
        low = tl.where(after, low, tl.minimum(middle + 1, high))
        span = span >> 1
    rank = high
    j = s - tl.load(cumulative_ptr + rank - 1, mask=exists & (rank > 0), other=0)
    row = tl.load(order_ptr + rank, mask=exists, other=0)
    mx, my, A, B, C, t2 = load_ellipse(records_ptr + row.to(tl.int64) * RECORD_SIZE, exists)
    first_row, last_row = row_range(my, half_height(A, B, C, t2), tiles_y)
    bin_x = tl.zeros([BLOCK], tl.int32)
    bin_y = tl.zeros([BLOCK], tl.int32)
    hits = tl.zeros([BLOCK], tl.int32)
    before = tl.zeros([BLOCK], tl.int32)  # entries of the record before those of the member
    y = first_row >> SIDE_BITS
    if not TABLES:
        # most find their row of bins without a look at those before it
        widths = tl.load(counts_ptr + 2 * R + row, mask=exists, other=0)
        passing = exists
        for k in tl.static_range(4):
            width = (widths >> (8 * k)) & 255
            passing = passing & (j >= width) & (width < 255)
            j -= tl.where(passing, width, 0)
            y += tl.where(passing, 1, 0)
    searching = exists & (first_row <= last_row)
    while tl.max(searching.to(tl.int32), 0) > 0:
        left, right = no_bins(y)
        spans = ()
        for k in tl.static_range(4):
            tile_row = y * SIDE + k
            x0, x1 = row_span(tile_row, mx, my, A, B, C, t2, tiles_x)
            x1 = tl.where((tile_row >= first_row) & (tile_row <= last_row), x1, x0 - 1)
            left, right = with_span(left, right, x0, x1)
            spans = spans + ((x0, x1),)
        width = tl.maximum(right - left + 1, 0)
        here = searching & (j < width)
        bin_x = tl.where(here, left + j, bin_x)
        bin_y = tl.where(here, y, bin_y)
        edge = (left + j) * SIDE
        for k in tl.static_range(4):
            x0, x1 = spans[k]
            a = tl.maximum(x0 - edge, 0)
            b = tl.minimum(x1 - edge, SIDE - 1)
            # shifts stay small where the bits are not used
            bits = (2 << (b & 3)) - (1 << (a & 3))
            hits = hits | (tl.where(here & (a <= b), bits, 0) << (SIDE * k))
            if TABLES:
                passed = tl.where(here, tl.minimum(x1, edge - 1), x1)
                before += tl.where(searching, tl.maximum(passed - x0 + 1, 0), 0)
        j -= width
        y += 1
        searching = searching & (j >= 0) & (y * SIDE <= last_row)
    camera = tl.zeros([BLOCK], tl.int32)
    if gaussian_ids_ptr is not None:
        camera = tl.load(gaussian_ids_ptr + row, mask=exists, other=0) // N
    bins_x = (tiles_x + (SIDE - 1)) // SIDE
    bins_y = (tiles_y + (SIDE - 1)) // SIDE
    key = (camera * bins_y + bin_y) * bins_x + bin_x
    if TABLES:
        before += tl.load(entry_cumulative_ptr + rank - 1, mask=exists & (rank > 0), other=0)
        tl.store(hits_ptr + s, hits.to(tl.int16), mask=exists)
        tl.store(first_slots_ptr + s, before, mask=exists)
    else:
        key = key | (hits << 16)
    tl.store(keys_ptr + s, key, mask=exists)
    tl.store(rows_ptr + s, row, mask=exists)
