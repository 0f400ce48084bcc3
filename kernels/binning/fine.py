r"""Second level of binning: the list of every tile, from members sorted by bin.

The sorted members are cut into chunks, one for a program of one warp, and these into PARTS of 32.
A lane holds a member of each part, whose hits among the 16 tiles of its bin are 16 bits. Spread
over the bytes of two int64, the bits of all lanes are counted and ranked by one sum or cumulative
sum each:

1. count_chunks_kernel adds the hits of a chunk to the counts of tiles, and leaves those of its
   last bin in the words of the chunk.
2. scan_tiles_kernel turns the counts of tiles into offsets.
3. place_kernel adds up the words of the chunks before its own that hold the same bin, nearest
   first, until it meets one that knows the sum of all before itself (device/running_sum.py; here
   nothing is ever waited for, because every chunk's own counts are there from the first launch),
   and writes each member's row into the lists of the tiles it hits.

A bin of many members is as many chunks, so that long lists do not stall.

One launch for all three (device/grid_barrier.py) is slower: 2,112 programs of one warp wait long
for each other, and fewer have too few loads on their way. Lists of garden-x1, H200, from sorted
depths on: 0.084 ms instead of 0.072, of bonsai at 800x533 0.061 instead of 0.056.
"""

import triton
import triton.language as tl

from ..device.running_sum import OWN, RUNNING, chain
from ..projection.ellipse import SIDE
from .coarse import BIN_TILES

CLASSES = tl.constexpr(64)  # of list lengths
LANES = tl.constexpr(32)  # members of a part of a chunk: a warp
NEVER = tl.constexpr(2147483647)


@triton.jit
def _bytes_of(bits):
    """Bit k of 8 bits into byte k of an int64."""
    x = bits.to(tl.int64)
    x = (x | (x << 28)) & 0x0000000F0000000F
    x = (x | (x << 14)) & 0x0003000300030003
    return (x | (x << 7)) & 0x0101010101010101


@triton.jit
def _load_chunk(keys_ptr, values_ptr, hits_ptr, start, n, PARTS: tl.constexpr):
    """Bins, hits and values of sorted members in parts; NEVER and none past the end."""
    parts = ()
    for part in tl.static_range(PARTS):
        s = start + part * LANES + tl.arange(0, LANES)
        there = s < n
        key = tl.load(keys_ptr + s, mask=there, other=0)
        value = tl.load(values_ptr + s, mask=there, other=0)
        if hits_ptr is not None:
            bins = key
            hits = tl.load(hits_ptr + value, mask=there, other=0).to(tl.int32) & 0xFFFF
        else:
            bins = key & 0xFFFF
            hits = (key >> 16) & 0xFFFF
        parts = parts + ((tl.where(there, bins, NEVER), hits, value),)
    return parts


@triton.jit
def _next_bin(parts, b, PARTS: tl.constexpr):
    """The first bin after b; NEVER if there is none."""
    following = tl.full([LANES], 0, tl.int32) + NEVER
    for part in tl.static_range(PARTS):
        bins = parts[part][0]
        following = tl.minimum(following, tl.where(bins > b, bins, NEVER))
    return tl.min(following, 0)


@triton.jit
def _continues(keys_ptr, hits_ptr, start, b):
    """Whether the member before a chunk has bin b, too."""
    same = start < 0
    if start > 0:
        previous = tl.load(keys_ptr + start - 1)
        if hits_ptr is None:
            previous = previous & 0xFFFF
        same = previous == b
    return same


@triton.jit
def _bin_tiles(b, tiles_x, tiles_y):
    """First tile of a bin, and how many columns and rows of tiles it has."""
    bins_x = (tiles_x + (SIDE - 1)) // SIDE
    bins_y = (tiles_y + (SIDE - 1)) // SIDE
    row = b // bins_x
    x = (b - row * bins_x) * SIDE
    camera = row // bins_y
    y = (row - camera * bins_y) * SIDE
    return (camera * tiles_y + y) * tiles_x + x, tiles_x - x, tiles_y - y


@triton.jit
def _counts(words0, words1):
    """Sixteen bytes of two int64 as [16] int32."""
    k = tl.arange(0, BIN_TILES)
    word = tl.where(k < 8, words0, words1)
    return ((word >> ((k & 7) * 8).to(tl.int64)) & 255).to(tl.int32)


@triton.jit(do_not_specialize=["members", "tiles_x", "tiles_y"])
def count_chunks_kernel(
    keys_ptr,  # [members] sorted
    values_ptr,  # [members]
    hits_ptr,  # [members] by value, or None where keys hold the hits
    n_members_ptr,  # [1]
    tile_counts_ptr,  # [n_tiles] in and out
    words_ptr,  # [n_chunks, 16] out
    members,  # capacity
    tiles_x,
    tiles_y,
    PARTS: tl.constexpr,
):
    n = tl.minimum(tl.load(n_members_ptr), members)
    start = tl.program_id(0) * (PARTS * LANES)
    if start >= n:
        return
    parts = _load_chunk(keys_ptr, values_ptr, hits_ptr, start, n, PARTS)
    k = tl.arange(0, BIN_TILES)
    following = _next_bin(parts, -1, PARTS)
    kind = tl.where(_continues(keys_ptr, hits_ptr, start, following), OWN, RUNNING)
    counts = tl.zeros([BIN_TILES], tl.int32)
    while following != NEVER:
        b = following
        low = tl.zeros([LANES], tl.int64)
        high = tl.zeros([LANES], tl.int64)
        for part in tl.static_range(PARTS):
            hits = tl.where(parts[part][0] == b, parts[part][1], 0)
            low += _bytes_of(hits & 255)
            high += _bytes_of(hits >> 8)
        counts = _counts(tl.sum(low, 0), tl.sum(high, 0))
        tile, _columns, _rows = _bin_tiles(b, tiles_x, tiles_y)
        at = tile_counts_ptr + tile + (k // SIDE) * tiles_x + k % SIDE
        tl.atomic_add(at, counts, mask=counts > 0, sem="relaxed")
        following = _next_bin(parts, b, PARTS)
        kind = tl.where(following != NEVER, RUNNING, kind)
    tl.store(words_ptr + tl.program_id(0) * BIN_TILES + k, (counts << 2) | kind)


@triton.jit
def _length_class(length):
    """0 for the longest lists; four classes per doubling of the length."""
    size = (tl.log2(length.to(tl.float32) + 1.0) * 4.0).to(tl.int32)
    return tl.maximum(-size + (CLASSES - 1), 0)


@triton.jit(do_not_specialize=["n_tiles", "capacity"])
def scan_tiles_kernel(
    tile_counts_ptr,  # [n_tiles]
    chain_ptr,  # [programs] int64, 0 before
    class_counts_ptr,  # [2, CLASSES] 0 before; first row out
    offsets_ptr,  # [n_tiles + 1] out
    n_tiles,
    capacity,  # of all lists; what is beyond is dropped
    SCAN: tl.constexpr,
):
    pid = tl.program_id(0)
    tile = pid * SCAN + tl.arange(0, SCAN)
    mask = tile < n_tiles
    count = tl.load(tile_counts_ptr + tile, mask=mask, other=0)
    before = chain(chain_ptr, pid, tl.sum(count, 0), 128).to(tl.int32)
    end = before + tl.cumsum(count, 0)
    start = tl.minimum(end - count, capacity)
    end = tl.minimum(end, capacity)
    tl.store(offsets_ptr + tile, start, mask=mask)
    tl.store(offsets_ptr + tile + 1, end, mask=tile == n_tiles - 1)
    classes = tl.where(mask, _length_class(end - start), CLASSES - 1)
    counts = tl.histogram(classes, CLASSES)
    tl.atomic_add(class_counts_ptr + tl.arange(0, CLASSES), counts, sem="relaxed")


@triton.jit
def _order_tiles(offsets_ptr, class_counts_ptr, tile_order_ptr, tile, n_tiles):
    """Tiles by class of list length, longest first; any order within a class."""
    mask = tile < n_tiles
    start = tl.load(offsets_ptr + tile, mask=mask, other=0)
    end = tl.load(offsets_ptr + tile + 1, mask=mask, other=0)
    length_class = _length_class(end - start)
    counts = tl.load(class_counts_ptr + tl.arange(0, CLASSES))
    first = tl.gather(tl.cumsum(counts, 0) - counts, length_class, 0)
    one = tl.full(tile.shape, 1, tl.int32)
    taken = tl.atomic_add(class_counts_ptr + CLASSES + length_class, one, mask=mask, sem="relaxed")
    tl.store(tile_order_ptr + first + taken, tile, mask=mask)


@triton.jit
def _sum_of_bin(words_ptr, chunk, WINDOW: tl.constexpr):
    """Counts [16] of the chunks before this one that hold its first bin."""
    k = tl.arange(0, BIN_TILES)[None, :]
    lane = tl.arange(0, WINDOW)[:, None]
    total = tl.zeros([BIN_TILES], tl.int32)
    open_ = tl.full([BIN_TILES], 1, tl.int32)
    end = chunk
    while end > 0:
        at = end - 1 - lane
        word = tl.load(words_ptr + at * BIN_TILES + k, mask=at >= 0, other=RUNNING, volatile=True)
        # of each tile: the nearest chunk that knows the sum before itself
        known = tl.min(tl.where((word & 3) == RUNNING, lane, WINDOW), 0)
        total += tl.sum(tl.where(lane <= known[None, :], word >> 2, 0), 0) * open_
        open_ = tl.where(known < WINDOW, 0, open_)
        end = tl.where(tl.max(open_, 0) > 0, end - WINDOW, 0)
    return total


@triton.jit
def _popcount16(x):
    x = x - ((x >> 1) & 0x5555)
    x = (x & 0x3333) + ((x >> 2) & 0x3333)
    x = (x + (x >> 4)) & 0x0F0F
    return (x + (x >> 8)) & 31


@triton.jit
def _place_part(
    hits, value, low, high, bases, rows_ptr, first_slots_ptr, flatten_ids_ptr, slots_ptr, capacity
):
    """Write the entries of a part's members of one bin.

    low and high hold the counts of the parts before it in bytes; returns them with its own.
    """
    own_low = _bytes_of(hits & 255)
    own_high = _bytes_of(hits >> 8)
    rank_low = low + tl.cumsum(own_low, 0) - own_low
    rank_high = high + tl.cumsum(own_high, 0) - own_high
    touched = hits != 0
    row = value
    if rows_ptr is not None:
        row = tl.load(rows_ptr + value, mask=touched, other=0)
    if slots_ptr is not None:
        slot = tl.load(first_slots_ptr + value, mask=touched, other=0)
    for t in tl.static_range(16):
        ranks = rank_low if t < 8 else rank_high
        place = ((ranks >> ((t & 7) * 8)) & 255).to(tl.int32) + bases[t]
        hit = ((hits >> t) & 1 != 0) & (place < capacity)
        tl.store(flatten_ids_ptr + place, row, mask=hit)
        if slots_ptr is not None:
            at_slot = slot + _popcount16(hits & ((1 << t) - 1))
            tl.store(slots_ptr + place, tl.minimum(at_slot, capacity - 1), mask=hit)
    return low + tl.sum(own_low, 0), high + tl.sum(own_high, 0)


@triton.jit(do_not_specialize=["members", "capacity", "n_tiles", "n_order", "tiles_x", "tiles_y"])
def place_kernel(
    keys_ptr,  # [members] sorted
    values_ptr,  # [members]
    hits_ptr,  # [members] by value, or None where keys hold the hits
    rows_ptr,  # [members] by value, or None where values are rows
    first_slots_ptr,  # [members] by value, or None
    n_members_ptr,  # [1]
    words_ptr,  # [n_chunks, 16] in and out
    offsets_ptr,  # [n_tiles + 1]
    class_counts_ptr,  # [2, CLASSES] tiles of each class; places taken, 0 before
    flatten_ids_ptr,  # [capacity] out
    slots_ptr,  # [capacity] out, or None
    tile_order_ptr,  # [n_tiles] out
    members,  # capacities: of members
    capacity,  # and of entries
    n_tiles,
    n_order,  # programs that order tiles; the others place members
    tiles_x,
    tiles_y,
    PARTS: tl.constexpr,
    TILES: tl.constexpr,
    WINDOW: tl.constexpr,
):
    pid = tl.program_id(0)
    if pid < n_order:
        tile = pid * TILES + tl.arange(0, TILES)
        _order_tiles(offsets_ptr, class_counts_ptr, tile_order_ptr, tile, n_tiles)
        return
    chunk = pid - n_order
    n = tl.minimum(tl.load(n_members_ptr), members)
    start = chunk * (PARTS * LANES)
    if start >= n:
        return
    parts = _load_chunk(keys_ptr, values_ptr, hits_ptr, start, n, PARTS)
    k = tl.arange(0, BIN_TILES)
    following = _next_bin(parts, -1, PARTS)
    before = tl.zeros([BIN_TILES], tl.int32)
    if _continues(keys_ptr, hits_ptr, start, following):
        before = _sum_of_bin(words_ptr, chunk, WINDOW)
        own = tl.load(words_ptr + chunk * BIN_TILES + k)
        running = tl.where((own & 3) == OWN, (before << 2) + own + (RUNNING - OWN), own)
        tl.atomic_xchg(words_ptr + chunk * BIN_TILES + k, running, sem="relaxed")
    while following != NEVER:
        b = following
        tile, columns, rows = _bin_tiles(b, tiles_x, tiles_y)
        inside = (k % SIDE < columns) & (k // SIDE < rows)
        at = offsets_ptr + tile + (k // SIDE) * tiles_x + k % SIDE
        base = tl.load(at, mask=inside, other=0) + before
        bases = ()
        for t in tl.static_range(16):
            bases = bases + (tl.sum(tl.where(k == t, base, 0), 0),)
        low = tl.full([], 0, tl.int64)
        high = tl.full([], 0, tl.int64)
        for part in tl.static_range(PARTS):
            bins, hits, value = parts[part]
            here = bins == b
            if tl.max(here.to(tl.int32), 0) > 0:
                low, high = _place_part(
                    tl.where(here, hits, 0),
                    value,
                    low,
                    high,
                    bases,
                    rows_ptr,
                    first_slots_ptr,
                    flatten_ids_ptr,
                    slots_ptr,
                    capacity,
                )
        before = tl.zeros([BIN_TILES], tl.int32)
        following = _next_bin(parts, b, PARTS)
