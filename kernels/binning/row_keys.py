"""Depth keys and tile counts of records that come from elsewhere than a projection.

A projection makes them on the way, of numbers that it has at hand. Records that were received,
moved or put together have them formed here, of their columns alone and to the same bits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.running_sum import scan_programs
from ..projection import N_COUNTS
from ..projection.ellipse import count_tiles, load_ellipse
from ..projection.ewa import CULLED_KEY
from ..projection.record import DEPTH, RECORD_SIZE
from ..projection.records import Projected, Records
from ..runtime.launch import empty, launch, zeros

BLOCK = 64  # rows per program, one per lane


class RowKeys(NamedTuple):
    """By what rows are sorted, and how many tiles and bins they touch; as in projection/."""

    depth_keys: Tensor  # [R] int32
    tile_counts: Tensor  # [3, R] int32
    workspace: Tensor  # int32, running sums at its end 0
    counts: Tensor  # [4] int32


@triton.jit(do_not_specialize=["R", "tiles_x", "tiles_y"])
def _row_keys_kernel(
    records_ptr,  # [R, 16]
    n_rows_ptr,  # [1], or None: R
    depth_keys_ptr,  # [R] out
    tile_counts_ptr,  # [3, R] out
    workspace_ptr,  # first out: rows
    R,
    tiles_x,
    tiles_y,
    BLOCK: tl.constexpr,
):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n_rows = R
    if n_rows_ptr is not None:
        n_rows = tl.load(n_rows_ptr)
    there = r < tl.minimum(n_rows, R)
    record_ptr = records_ptr + r.to(tl.int64) * RECORD_SIZE
    depth = tl.load(record_ptr + DEPTH, mask=there, other=0.0)
    # a row that a projection took and then culled has depth 0
    visible = (depth > 0.0) & (depth < float("inf"))
    mx, my, A, B, C, t2 = load_ellipse(record_ptr, visible)
    tiles, bins, widths = count_tiles(visible, mx, my, A, B, C, t2, tiles_x, tiles_y)
    inside = r < R
    key = tl.where(visible, depth.to(tl.int32, bitcast=True), CULLED_KEY)
    tl.store(depth_keys_ptr + r, key, mask=inside)
    tl.store(tile_counts_ptr + r, tl.where(visible, tiles, 0), mask=inside)
    tl.store(tile_counts_ptr + R + r, tl.where(visible, bins, 0), mask=inside)
    tl.store(tile_counts_ptr + 2 * R + r, tl.where(visible, widths, 0), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(workspace_ptr, n_rows)


def row_keys(records: Records) -> RowKeys:
    """What binning sorts and counts; formed anew unless a projection has just made the records."""
    values, R = records.values, records.values.shape[0]
    counts = empty((N_COUNTS,), torch.int32, values.device)
    workspace = zeros((N_COUNTS + 2 * scan_programs(R),), torch.int32, values.device)
    if isinstance(records, Projected):
        # its own running sums are used up by the first binning
        workspace[:N_COUNTS] = records.workspace[:N_COUNTS]
        return RowKeys(records.depth_keys, records.tile_counts, workspace, counts)
    depth_keys = empty((R,), torch.int32, values.device)
    tile_counts = empty((3, R), torch.int32, values.device)
    args = (values.detach(), records.n_rows, depth_keys, tile_counts, workspace)
    sizes = R, records.tiles_x, records.tiles_y
    launch(_row_keys_kernel, (-(-R // BLOCK),), *args, *sizes, BLOCK=BLOCK, num_warps=2)
    return RowKeys(depth_keys, tile_counts, workspace, counts)
