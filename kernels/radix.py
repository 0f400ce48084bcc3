r"""Device functions of the radix sort: a stable order of one tile of keys by an 8-bit digit.

The digit is split by its low 4 bits, then by its high ones. Counting is done in packed lanes: a
thread owns 16 consecutive keys, whose 16 counters of 4 bits fill one int64; the running sum of
1 << 4 d ranks the keys within the thread. Spread over four int64 of 16-bit lanes (digit d: word
d & 3, lane d >> 2), the counters are then summed across threads. About 40 instructions per key.

Between the splits keys change threads. Triton gathers from registers, but does not scatter; so
they go through global memory of the program's own (exchange_ptr, [TILE]), or, with SHARED, through
shared memory that inline PTX declares, which spares the L2 cache scattered writes. The PTX is
elementwise, hence right in any layout; a second declaration in a kernel would fail to assemble.
"""

import triton
import triton.language as tl

THREADS = tl.constexpr(256)  # of a program
KEYS_PER_THREAD = tl.constexpr(16)
TILE = tl.constexpr(256 * 16)
DIGITS = tl.constexpr(256)
NIBBLES = tl.constexpr(0x000F000F000F000F)
COUNTERS = tl.constexpr(4 * 256 * 16)  # bytes in shared memory before the counters of the digits


@triton.jit
def shared_memory(SHARED: tl.constexpr):
    """Address of TILE + 256 + 1 words of shared memory; 0 without SHARED. Once per kernel."""
    base = tl.zeros((THREADS,), tl.int32)
    if SHARED:
        base = tl.inline_asm_elementwise(
            ".shared .align 16 .b8 sort_exchange[17424];\n\tmov.u32 $0, sort_exchange;",
            "=r,r", [base], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    return tl.max(base, 0)


@triton.jit
def _swizzle(p):
    """Spread words that threads own, and consecutive words, over all banks."""
    return p ^ ((p >> 5) & 15)


@triton.jit
def _write_shared(address, value):
    tl.inline_asm_elementwise(
        "st.shared.b32 [$1], $2;\n\tmov.u32 $0, 0;",
        "=r,r,r", [address, value], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _add_shared(address, value):
    tl.inline_asm_elementwise(
        "red.shared.add.u32 [$1], $2;\n\tmov.u32 $0, 0;",
        "=r,r,r", [address, value], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _read_shared(address, like):
    """Words at addresses, in the layout of `like`."""
    return tl.inline_asm_elementwise(
        "ld.shared.b32 $0, [$1];",
        "=r,r,r", [address, like], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _scatter(exchange_ptr, shared, p, word, SHARED: tl.constexpr):
    if SHARED:
        _write_shared(shared + 4 * _swizzle(p), word)
    else:
        tl.store(exchange_ptr + p, word)


@triton.jit
def _fetch(exchange_ptr, shared, p, like, SHARED: tl.constexpr):
    if SHARED:
        word = _read_shared(shared + 4 * _swizzle(p), like)
    else:
        word = tl.load(exchange_ptr + p)
    return word


@triton.jit
def _rank_by_nibble(ds):
    """Stable positions in the tile of keys with digits ds[j] [THREADS, 4] in 0..15.

    Thread t owns keys 16 t + 4 j + 0..3 of the tile, j = 0..3.
    """
    one = tl.full((THREADS, 4), 1, tl.int64)
    seen = tl.zeros((THREADS,), tl.int64)
    twelve = tl.zeros((THREADS,), tl.int64)
    before = ()
    for j in tl.static_range(4):
        hot = one << (ds[j] * 4).to(tl.int64)
        before = before + (tl.cumsum(hot, 1) - hot + seen[:, None],)
        if j == 3:
            twelve = seen
        seen += tl.sum(hot, 1)
    # sixteen equal digits overflow a lane of `seen`: widen the counts of 12 and of 4 keys
    four = seen - twelve
    w0 = (twelve & NIBBLES) + (four & NIBBLES)
    w1 = ((twelve >> 4) & NIBBLES) + ((four >> 4) & NIBBLES)
    w2 = ((twelve >> 8) & NIBBLES) + ((four >> 8) & NIBBLES)
    w3 = ((twelve >> 12) & NIBBLES) + ((four >> 12) & NIBBLES)
    sums = tl.cumsum(tl.join(tl.join(w0, w1), tl.join(w2, w3)), 0)
    even, odd = tl.split(sums)
    c0, c1 = tl.split(even)
    c2, c3 = tl.split(odd)
    last = tl.full((THREADS,), THREADS - 1, tl.int32)
    t0 = tl.gather(c0, last, 0)
    t1 = tl.gather(c1, last, 0)
    t2 = tl.gather(c2, last, 0)
    t3 = tl.gather(c3, last, 0)
    # the product sums lanes below: keys with smaller d >> 2
    smaller = (t0 + t1 + t2 + t3) * 0x0001000100010000
    x0 = c0 - w0 + smaller
    x1 = c1 - w1 + smaller + t0
    x2 = c2 - w2 + smaller + t0 + t1
    x3 = c3 - w3 + smaller + t0 + t1 + t2
    positions = ()
    for j in tl.static_range(4):
        d = ds[j]
        is_odd = (d & 1) != 0
        low = tl.where(is_odd, x1[:, None], x0[:, None])
        high = tl.where(is_odd, x3[:, None], x2[:, None])
        word = tl.where((d & 2) != 0, high, low)
        across = (word >> ((d & 12) * 4).to(tl.int64)).to(tl.int32) & 0xFFFF
        within = (before[j] >> (d * 4).to(tl.int64)).to(tl.int32) & 15
        positions = positions + (across + within,)
    return positions


@triton.jit
def order_tile(keys_ptr, shift, mask, n_here, exchange_ptr, shared, SHARED: tl.constexpr):
    """Source in its tile of the p-th smallest key by (key >> shift) & mask, [TILE]; stable.

    Keys past n_here count as largest, so they end behind all others. With SHARED, counts the
    digits of the others at shared + COUNTERS.
    """
    if SHARED:
        d = tl.arange(0, DIGITS)
        _write_shared(shared + COUNTERS + 4 * d, tl.zeros((DIGITS,), tl.int32))
        tl.debug_barrier()
    own = tl.arange(0, THREADS)[:, None] * KEYS_PER_THREAD + tl.arange(0, 4)[None, :]
    low = ()
    words = ()
    for j in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]
        i = own + 4 * j
        key = tl.load(keys_ptr + i, mask=i < n_here, other=0x7FFFFFFF)
        digit = (key >> shift) & mask
        if SHARED:
            counter = tl.where(i < n_here, digit, DIGITS)
            _add_shared(shared + COUNTERS + 4 * counter, tl.full((THREADS, 4), 1, tl.int32))
        low = low + (digit & 15,)
        words = words + ((digit >> 4) * TILE + i,)
    p = _rank_by_nibble(low)
    for j in tl.static_range(4):
        _scatter(exchange_ptr, shared, p[j], words[j], SHARED)
    tl.debug_barrier()
    high = ()
    sources = ()
    for j in tl.static_range(4):
        word = _fetch(exchange_ptr, shared, own + 4 * j, words[j], SHARED)
        high = high + (word // TILE,)
        sources = sources + (word % TILE,)
    p = _rank_by_nibble(high)
    tl.debug_barrier()
    for j in tl.static_range(4):
        _scatter(exchange_ptr, shared, p[j], sources[j], SHARED)
    tl.debug_barrier()
    every = tl.arange(0, TILE)
    source = _fetch(exchange_ptr, shared, every, every, SHARED)
    tl.debug_barrier()
    return source


@triton.jit
def count_digits(digit, n_here, counts_ptr, offsets_ptr, shared, SHARED: tl.constexpr):
    """Keys per digit of the tile, and minus the position of the first, [256] each, from `digit`
    [TILE] in ascending order."""
    d = tl.arange(0, DIGITS)
    zero = tl.zeros((DIGITS,), tl.int32)
    if SHARED:
        count = _read_shared(shared + COUNTERS + 4 * d, zero)
        tl.store(counts_ptr + d, count)
        tl.store(offsets_ptr + d, count - tl.cumsum(count, 0))
    else:
        # where a run of equal digits ends, the next begins; the others keep zeros
        tl.store(counts_ptr + d, zero)
        tl.store(offsets_ptr + d, zero)
        tl.debug_barrier()
        p = tl.arange(0, TILE)
        following = tl.gather(digit, tl.minimum(p + 1, TILE - 1), 0)
        more = p + 1 < n_here
        ends = (p < n_here) & ((p == TILE - 1) | ~more | (digit != following))
        tl.store(counts_ptr + digit, p + 1, mask=ends)
        tl.store(offsets_ptr + following, -1 - p, mask=ends & more & (p < TILE - 1))
        tl.debug_barrier()
        tl.store(counts_ptr + d, tl.load(counts_ptr + d) + tl.load(offsets_ptr + d))
