r"""Depth-sorted lists of Gaussians per tile, by way of bins of 4x4 tiles.

An entry is a record in a tile's list; a member is a record in a bin. Records in depth order
(depth_order.py) are expanded into members (coarse.py), these are sorted by bin, stably, so that
each bin stays in depth order (sorting.py), and each member becomes an entry of those tiles of its
bin that its ellipse touches (fine.py). A member stands for 4 to 7 entries on garden and bonsai, and
the sort has as much less to do. On an H200, depth order and lists together take 0.15
ms on garden-x1 and 0.44 ms on garden-7x7, where one sort of all entries took 0.28 and 1.02 ms; at
the peak 8 bytes per entry, of 19 (bench_binning.py).

Lists lie in buffers of a capacity chosen by the caller. Entries past the capacity are dropped, so
the caller compares their number with the capacity and repeats with larger buffers. There is a third
as much capacity for members; if these need more, that counts as the number of entries.

Tiles are handed out longest list first: programs that start last are then short ones. On a
trained bonsai at 800x533 (H200) this took blending from 0.18 + 0.30 to 0.12 + 0.22 ms (forward,
backward), on garden points by 5 %.

A list holds rows of records, R of them, of which those left over touch no tile.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import Capacity
from ..device.running_sum import SCAN, scan_programs
from ..projection.ellipse import SIDE
from ..projection.records import Projected, Records
from ..runtime.cache import caches
from ..runtime.launch import empty, launch, zeros
from ..runtime.packed import Layout
from .coarse import BIN_TILES, BLOCK, expand_kernel
from .depth_order import MEMBER_SHARE, DepthOrder, Members, depth_order, member_capacity
from .fine import CLASSES, LANES, count_chunks_kernel, place_kernel, scan_tiles_kernel
from .row_keys import RowKeys, row_keys
from .sorting import passes, plan_sort

PARTS = 4  # of 32 members per program that makes lists; at most 7
LIST_WINDOW = 8  # chunks looked back at together
TILES = 128  # tiles per program that orders them
KEY_BITS = 16  # of a key that hits leave to the bin


class TileLists(NamedTuple):
    """Tile lists in depth order; list t is flatten_ids[offsets[t] : offsets[t + 1]]."""

    flatten_ids: Tensor  # [capacity] int32, rows
    slots: Tensor | None  # [capacity] int32, where each entry stands in the order of rows
    offsets: Tensor  # [C TH TW + 1] int32
    tile_order: Tensor  # [C TH TW] int32, longest lists first
    buffer: Tensor  # int32, in which the others lie
    layout: "ListsLayout"
    depth: DepthOrder | None = None
    counts: Tensor | None = None  # [4] int32: rows, entries needed, -, entries


class ListsLayout(NamedTuple):
    """Where the lists of all cameras' tiles lie in one buffer."""

    n_cameras: int
    tiles_x: int
    tiles_y: int
    capacity: int  # of entries
    with_slots: bool

    @property
    def n_tiles(self) -> int:
        return self.n_cameras * self.tiles_x * self.tiles_y

    def parts(self) -> Layout:
        """Slots, offsets, order of tiles, and the lists, or what is sorted where they come."""
        return _parts(self.n_tiles, self.capacity, self.with_slots)

    def lists_in(self, buffer: Tensor, depth: DepthOrder | None = None) -> TileLists:
        """The lists that a buffer holds."""
        parts = self.parts()
        slots = parts.part(buffer, 0) if self.with_slots else None
        offsets, tile_order, flatten_ids = (parts.part(buffer, k) for k in (1, 2, 3))
        ids = flatten_ids[: self.capacity]
        return TileLists(ids, slots, offsets, tile_order, buffer, self, depth)


@caches.remembered
def _parts(n_tiles: int, capacity: int, with_slots: bool) -> Layout:
    slots = (capacity,) if with_slots else None
    sorted_or_lists = (max(capacity, 2 * member_capacity(capacity)),)
    return Layout(slots, (n_tiles + 1,), (n_tiles,), sorted_or_lists)


def bin_tiles(
    records: Records, capacity: Capacity | None = None, *, deterministic: bool = False
) -> TileLists:
    """List the records of every 8x8 tile from front to back: the second stage of a rendering.

    Args:
        records: Of `project`, or from elsewhere: then depth keys and tile counts are formed anew.
        capacity: Entries to make room for; None: as many as there are, which waits for the device.
        deterministic: Also make what deterministic gradients need.

    Returns:
        Tile lists, integers without gradients. Where `counts`[1] is above the capacity, entries
        are missing. Elements of flatten_ids beyond the last list are unspecified.
    """
    keys = row_keys(records)
    if capacity is None:
        entries, members = keys.tile_counts[:2].sum(1).tolist()
        capacity = Capacity(0, max(entries, MEMBER_SHARE.value * members, 1))
    size = records.tiles_x, records.tiles_y
    layout = ListsLayout(records.n_cameras, *size, capacity.entries, deterministic)
    return list_tiles(records, keys, layout)


def list_tiles(
    records: Records,
    keys: RowKeys | Projected,
    layout: ListsLayout,
    host_counts: Tensor | None = None,  # [1] int64
) -> TileLists:
    """As `bin_tiles`, from keys of which the workspace is used up.

    Args:
        records: Of projection.
        keys: Depth keys, tile counts and workspace.
        layout: Of the lists, with their capacity.
        host_counts: Gets rows, and entries needed in the high half. In the host's memory.
    """
    depth, members = depth_order(
        keys.depth_keys, keys.tile_counts, keys.workspace, layout.capacity, keys.counts, host_counts
    )
    return isect_tiles(records, depth, members, layout)._replace(counts=keys.counts)


def _bins(tiles: int) -> int:
    return -(-tiles // SIDE.value)


def _pair(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    return x[:n], x[n : 2 * n]


def isect_tiles(
    records: Records, depth: DepthOrder, members: Members, layout: ListsLayout
) -> TileLists:
    """Expand records into members of bins, sort these by bin and write the tiles' lists.

    Args:
        records: Of projection.
        depth: Depth order and cumulative counts of entries.
        members: Counts of members.
        layout: Of the lists; of the capacity that depth_order was given.
    """
    n_tiles, device, C = layout.n_tiles, records.values.device, layout.n_cameras
    values, R, N = records.values.detach(), records.values.shape[0], records.n_gaussians
    tiles_x, tiles_y, capacity = layout.tiles_x, layout.tiles_y, layout.capacity
    n_bins = C * _bins(tiles_x) * _bins(tiles_y)
    bits = max((n_bins - 1).bit_length(), 1)
    n_members = member_capacity(capacity)

    def new(n: int) -> Tensor:
        return empty((n,), torch.int32, device)

    tables = layout.with_slots or bits > KEY_BITS
    n_scan = scan_programs(n_tiles)
    # counts of classes and of tiles, words of the running sum
    sizes = [2 * CLASSES.value, -(-n_tiles // 4) * 4, 2 * n_scan]
    class_counts, tile_counts, chain_words = zeros((sum(sizes),), torch.int32, device).split(sizes)
    # The passes of the sort go to and fro between two pairs of buffers, of which one lies where
    # the lists come to lie afterwards.
    parts = layout.parts()
    lists = layout.lists_in(parts.make(device), depth)
    flatten_ids = parts.part(lists.buffer, 3)
    pairs = [_pair(new(2 * n_members), n_members), _pair(flatten_ids, n_members)]
    (keys, payload), between = pairs if passes(bits) % 2 == 0 else pairs[::-1]
    rows, hits, first_slots = payload, None, None
    if tables:
        rows, first_slots = new(n_members), new(n_members)
        hits = empty((n_members,), torch.int16, device)
    launch(
        expand_kernel, (-(-n_members // BLOCK.value),),
        values, records.gaussian_ids if C > 1 else None, depth.order, members.cumulative,
        members.total, members.block_ranks, members.by_row, depth.cumulative if tables else None,
        keys, rows, hits, first_slots,
        R, N, n_members, tiles_x, tiles_y,
        TABLES=tables, num_warps=BLOCK.value // 32,
    )  # fmt: skip
    sort = plan_sort(
        keys, None if tables else payload, bits, members.total, buffers=(between, (keys, payload))
    )
    keys, payload = sort.run()
    n_chunks = -(-n_members // (PARTS * LANES.value))
    words = new(n_chunks * BIN_TILES.value)
    args = (keys, payload, hits, members.total, tile_counts, words, n_members, tiles_x, tiles_y)
    launch(count_chunks_kernel, (n_chunks,), *args, PARTS=PARTS, num_warps=1)
    args = (tile_counts, chain_words.view(torch.int64), class_counts, lists.offsets)
    launch(scan_tiles_kernel, (n_scan,), *args, n_tiles, capacity, SCAN=SCAN)
    n_order = -(-n_tiles // TILES)
    launch(
        place_kernel, (n_order + n_chunks,), keys, payload, hits, rows if tables else None,
        first_slots if layout.with_slots else None, members.total, words, lists.offsets,
        class_counts, flatten_ids, lists.slots, lists.tile_order, n_members, capacity, n_tiles,
        n_order, tiles_x, tiles_y, PARTS=PARTS, TILES=TILES, WINDOW=LIST_WINDOW, num_warps=1,
    )  # fmt: skip
    return lists
