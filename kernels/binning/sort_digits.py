r"""Device functions of the radix sort: a stable order of one chunk of keys by an 8-bit digit.

The digit is split by its low 4 bits, then by its high ones. Counting is done in packed lanes: a
thread owns 8 or 16 consecutive keys; their 16 counters of 4 bits fill one int64; the running sum
of 1 << 4 d ranks the keys within the thread. Spread over four int64 of 16-bit lanes (digit d: word
d & 3, lane d >> 2), the counters are then summed across threads. About 40 instructions per key.

Between the splits keys change threads. Triton gathers from registers, but does not scatter; so
they go through global memory of the program's own (exchange_ptr, [CHUNK]), or, with SHARED, through
shared memory that inline PTX declares, which spares the L2 cache scattered writes. The PTX is
elementwise, hence right in any layout; a second declaration in a kernel would fail to assemble.
"""

import triton
import triton.language as tl

THREADS = tl.constexpr(256)  # of a program; with more, two would look back for the same digit
# keys of a program: 4 GROUPS consecutive ones of each thread, GROUPS 2 or 4
CHUNK_SIZES = (2048, 4096)
DIGITS = tl.constexpr(256)
NIBBLES = tl.constexpr(0x000F000F000F000F)
PASSES = tl.constexpr(4)  # at most
COUNTERS = tl.constexpr(4 * 4096)  # bytes in shared memory before the counters of the digits


@triton.jit
def digit_mask(shift, end_bit, width):
    """Mask of the digit at `shift`, the last of which may have fewer bits than `width`."""
    return (1 << tl.minimum(width, end_bit - shift)) - 1


@triton.jit
def shared_memory(SHARED: tl.constexpr):
    """Address of CHUNK + 256 + 1 words of shared memory; 0 without SHARED. Once per kernel."""
    base = tl.zeros((THREADS,), tl.int32)
    if SHARED:
        base = tl.inline_asm_elementwise(
            ".shared .align 16 .b8 sort_exchange[17424];\n\tmov.u32 $0, sort_exchange;",
            "=r,r",
            [base],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    return tl.max(base, 0)


@triton.jit
def _swizzle(p):
    """Spread words that threads own, and consecutive words, over all banks."""
    return p ^ ((p >> 5) & 15)


@triton.jit
def _write_shared(address, value):
    tl.inline_asm_elementwise(
        "st.shared.b32 [$1], $2;\n\tmov.u32 $0, 0;",
        "=r,r,r",
        [address, value],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _add_shared(address, value):
    tl.inline_asm_elementwise(
        "red.shared.add.u32 [$1], $2;\n\tmov.u32 $0, 0;",
        "=r,r,r",
        [address, value],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _read_shared(address, like):
    """Words at addresses, in the layout of `like`."""
    return tl.inline_asm_elementwise(
        "ld.shared.b32 $0, [$1];",
        "=r,r,r",
        [address, like],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


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
def _rank_by_nibble(ds, GROUPS: tl.constexpr):
    """Stable positions in the chunk of keys with digits ds[j] [THREADS, 4] in 0..15.

    Thread t owns keys 4 (GROUPS t + j) + 0..3 of the chunk.
    """
    one = tl.full((THREADS, 4), 1, tl.int64)
    seen = tl.zeros((THREADS,), tl.int64)
    twelve = tl.zeros((THREADS,), tl.int64)
    before = ()
    for j in tl.static_range(GROUPS):
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
    for j in tl.static_range(GROUPS):
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
def order_chunk(
    keys_ptr, shift, mask, n_here, exchange_ptr, shared, CHUNK: tl.constexpr, SHARED: tl.constexpr
):
    """Source in its chunk of the p-th smallest key by (key >> shift) & mask, [CHUNK]; stable.

    Keys past n_here count as largest, so they end behind all others. With SHARED, counts the
    digits of the others at shared + COUNTERS.
    """
    GROUPS: tl.constexpr = CHUNK // (4 * THREADS)
    if SHARED:
        d = tl.arange(0, DIGITS)
        _write_shared(shared + COUNTERS + 4 * d, tl.zeros((DIGITS,), tl.int32))
        tl.debug_barrier()
    own = tl.arange(0, THREADS)[:, None] * (4 * GROUPS) + tl.arange(0, 4)[None, :]
    low = ()
    words = ()
    for j in tl.static_range(GROUPS):
        i = own + 4 * j
        key = tl.load(keys_ptr + i, mask=i < n_here, other=0x7FFFFFFF)
        digit = (key >> shift) & mask
        if SHARED:
            counter = tl.where(i < n_here, digit, DIGITS)
            _add_shared(shared + COUNTERS + 4 * counter, tl.full((THREADS, 4), 1, tl.int32))
        low = low + (digit & 15,)
        words = words + ((digit >> 4) * CHUNK + i,)
    p = _rank_by_nibble(low, GROUPS)
    for j in tl.static_range(GROUPS):
        _scatter(exchange_ptr, shared, p[j], words[j], SHARED)
    tl.debug_barrier()
    high = ()
    sources = ()
    for j in tl.static_range(GROUPS):
        word = _fetch(exchange_ptr, shared, own + 4 * j, words[j], SHARED)
        high = high + (word // CHUNK,)
        sources = sources + (word % CHUNK,)
    p = _rank_by_nibble(high, GROUPS)
    tl.debug_barrier()
    for j in tl.static_range(GROUPS):
        _scatter(exchange_ptr, shared, p[j], sources[j], SHARED)
    tl.debug_barrier()
    every = tl.arange(0, CHUNK)
    source = _fetch(exchange_ptr, shared, every, every, SHARED)
    tl.debug_barrier()
    return source


@triton.jit
def count_digits(digit, n_here, mask, shared, CHUNK: tl.constexpr, SHARED: tl.constexpr):
    """Keys per digit of a chunk [256], from `digit` [CHUNK], of which those past n_here are `mask`.

    With SHARED, order_chunk has counted them.
    """
    d = tl.arange(0, DIGITS)
    if SHARED:
        return _read_shared(shared + COUNTERS + 4 * d, tl.zeros((DIGITS,), tl.int32))
    else:
        count = tl.histogram(digit, DIGITS)
        return count - tl.where(d == mask, tl.maximum(-n_here + CHUNK, 0), 0)


@triton.jit
def histograms(
    key,
    there,
    begin_bit,
    end_bit,
    width,
    counts_ptr,
    shared,
    CHUNK: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Add the keys of a chunk [CHUNK] to the counts [passes, 256] of their digits in every pass."""
    d = tl.arange(0, DIGITS)
    if SHARED:
        for k in tl.static_range(PASSES):
            _write_shared(shared + 4 * (k * DIGITS + d), tl.zeros((DIGITS,), tl.int32))
        tl.debug_barrier()
        one = tl.full((CHUNK,), 1, tl.int32)
        for k in tl.static_range(PASSES):
            shift = begin_bit + k * width
            if shift < end_bit:
                digit = (key >> shift) & digit_mask(shift, end_bit, width)
                _add_shared(shared + 4 * tl.where(there, k * DIGITS + digit, PASSES * DIGITS), one)
        tl.debug_barrier()
    for k in tl.static_range(PASSES):
        shift = begin_bit + k * width
        if shift < end_bit:
            if SHARED:
                count = _read_shared(shared + 4 * (k * DIGITS + d), tl.zeros((DIGITS,), tl.int32))
            else:
                mask = digit_mask(shift, end_bit, width)
                count = tl.histogram(tl.where(there, (key >> shift) & mask, mask), DIGITS)
                count -= tl.where(d == mask, tl.sum((there == 0).to(tl.int32), 0), 0)
            tl.atomic_add(counts_ptr + k * DIGITS + d, count, mask=count > 0, sem="relaxed")
