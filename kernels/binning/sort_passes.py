"""Kernels of the radix sort (sorting.py): a pass over all chunks, or a whole sort in a launch."""

import triton
import triton.language as tl

from ..device.grid_barrier import wait_for_all
from ..device.running_sum import OWN, RUNNING
from .sort_digits import DIGITS, count_digits, digit_mask, histograms, order_chunk, shared_memory


@triton.jit
def _valid(n_valid_ptr, n):
    """How many of n keys are sorted."""
    n_valid = n
    if n_valid_ptr is not None:
        n_valid = tl.minimum(tl.load(n_valid_ptr), n)
    return n_valid


@triton.jit
def _count_chunk(
    keys_ptr,
    first,
    n_valid,
    begin_bit,
    end_bit,
    width,
    digit_counts_ptr,
    shared,
    CHUNK: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Add a chunk's keys to the counts of digits of all passes."""
    i = first + tl.arange(0, CHUNK)
    key = tl.load(keys_ptr + i, mask=i < n_valid, other=0)
    histograms(key, i < n_valid, begin_bit, end_bit, width, digit_counts_ptr, shared, CHUNK, SHARED)


@triton.jit(do_not_specialize=["n", "begin_bit", "end_bit", "width"])
def histograms_kernel(
    keys_ptr,  # [n]
    n_valid_ptr,  # [1] or None
    digit_counts_ptr,  # [passes, 256] in and out
    n,
    begin_bit,
    end_bit,
    width,
    CHUNK: tl.constexpr,
    SHARED: tl.constexpr,
):
    n_valid = _valid(n_valid_ptr, n)
    first = tl.program_id(0) * CHUNK
    if first < n_valid:
        shared = shared_memory(SHARED)
        _count_chunk(
            keys_ptr,
            first,
            n_valid,
            begin_bit,
            end_bit,
            width,
            digit_counts_ptr,
            shared,
            CHUNK,
            SHARED,
        )


@triton.jit
def _sum_of_digits(words_ptr, chunk, WINDOW: tl.constexpr):
    """Keys of each digit in the chunks before this one, [256], once those have published theirs."""
    d = tl.arange(0, DIGITS)
    total = tl.zeros((DIGITS,), tl.int32)
    # of each digit, the nearest chunk that is not yet added
    at = tl.zeros((DIGITS,), tl.int32) + (chunk - 1)
    while tl.max(at, 0) >= 0:
        words = ()
        for w in tl.static_range(WINDOW):
            ptr = words_ptr + (at - w) * DIGITS + d
            words = words + (tl.load(ptr, mask=at >= w, other=0, volatile=True),)
        adding = at >= 0
        for w in tl.static_range(WINDOW):
            # a word that is not there yet ends this look, and the next begins with it
            kind = words[w] & 3
            adding = adding & (kind != 0)
            total += tl.where(adding, words[w] >> 2, 0)
            at = tl.where(adding, tl.where(kind == RUNNING, -1, at - 1), at)
            adding = adding & (kind == OWN)
    return total


@triton.jit
def _sweep_chunk(
    keys_ptr,
    values_ptr,
    chunk,
    n_valid,
    exchange_ptr,
    digit_counts_ptr,
    words_ptr,
    sorted_keys_ptr,
    sorted_values_ptr,
    shift,
    mask,
    places,
    shared,
    CHUNK: tl.constexpr,
    SHARED: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Move a chunk's keys and values to their places; values are the keys' with `places`."""
    first = chunk * CHUNK
    n_here = n_valid - first
    source = order_chunk(keys_ptr + first, shift, mask, n_here, exchange_ptr, shared, CHUNK, SHARED)
    p = tl.arange(0, CHUNK)
    there = p < n_here
    key = tl.gather(tl.load(keys_ptr + first + p, mask=there, other=0x7FFFFFFF), source, 0)
    digit = (key >> shift) & mask
    count = count_digits(digit, n_here, mask, shared, CHUNK, SHARED)
    d = tl.arange(0, DIGITS)
    word_ptr = words_ptr + chunk * DIGITS + d
    tl.atomic_xchg(word_ptr, (count << 2) | OWN, sem="relaxed")
    of_digit = tl.load(digit_counts_ptr + d)
    before = _sum_of_digits(words_ptr, chunk, WINDOW)
    tl.atomic_xchg(word_ptr, ((before + count) << 2) | RUNNING, sem="relaxed")
    # less the place of a digit's first key within the chunk
    base = tl.cumsum(of_digit - count, 0) - (of_digit - count) + before
    at = tl.gather(base, digit, 0) + p
    value = first + source
    if values_ptr is not None:
        given = tl.load(values_ptr + first + p, mask=there & (places == 0), other=0)
        value = tl.where(places != 0, value, tl.gather(given, source, 0))
    tl.store(sorted_keys_ptr + at, key, mask=there)
    tl.store(sorted_values_ptr + at, value, mask=there)


@triton.jit(do_not_specialize=["n", "shift", "mask"])
def sweep_kernel(
    keys_ptr,  # [n]
    values_ptr,  # [n], or None for places
    n_valid_ptr,  # [1] or None
    exchange_ptr,  # [n_chunks CHUNK], or None where memory is shared
    digit_counts_ptr,  # [256] of this pass
    words_ptr,  # [n_chunks, 256], 0 before
    sorted_keys_ptr,  # [n] out
    sorted_values_ptr,  # [n] out
    n,
    shift,
    mask,
    CHUNK: tl.constexpr,
    SHARED: tl.constexpr,
    WINDOW: tl.constexpr,
):
    chunk = tl.program_id(0)
    n_valid = _valid(n_valid_ptr, n)
    if chunk * CHUNK >= n_valid:
        return
    if not SHARED:
        exchange_ptr += chunk * CHUNK
    _sweep_chunk(
        keys_ptr,
        values_ptr,
        chunk,
        n_valid,
        exchange_ptr,
        digit_counts_ptr,
        words_ptr,
        sorted_keys_ptr,
        sorted_values_ptr,
        shift,
        mask,
        0,
        shared_memory(SHARED),
        CHUNK,
        SHARED,
        WINDOW,
    )


@triton.jit(do_not_specialize=["n", "begin_bit", "end_bit", "width", "n_passes"])
def sort_kernel(
    keys_ptr,  # [n]
    values_ptr,  # [n], or None for places
    n_valid_ptr,  # [1] or None
    exchange_ptr,  # [n_chunks CHUNK], or None where memory is shared
    words_ptr,  # [passes (n_chunks + 1), 256], 0 before: digits of all passes, then sums
    count_ptr,  # of device/grid_barrier.py
    keys_1_ptr,  # [n] out, by odd passes
    values_1_ptr,
    keys_2_ptr,  # [n] out, by even ones
    values_2_ptr,
    n,
    begin_bit,
    end_bit,
    width,
    n_passes,
    CHUNK: tl.constexpr,
    SHARED: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """A whole sort by all programs at once, each taking the chunks of its number.

    A chunk waits for smaller ones alone, so programs with several go through them upwards. Passes
    n_passes barriers. A kernel that goes on from here needs another to see the results.
    """
    pid = tl.program_id(0)
    n_programs = tl.num_programs(0)
    n_valid = _valid(n_valid_ptr, n)
    n_here = (n_valid + (CHUNK - 1)) // CHUNK
    n_chunks = (n + (CHUNK - 1)) // CHUNK  # that there is room for
    shared = shared_memory(SHARED)
    for chunk in range(pid, n_here, n_programs):
        _count_chunk(
            keys_ptr,
            chunk * CHUNK,
            n_valid,
            begin_bit,
            end_bit,
            width,
            words_ptr,
            shared,
            CHUNK,
            SHARED,
        )
        tl.debug_barrier()  # the next chunk takes the same shared memory
    places = 0
    if values_ptr is None:
        # Not read. values_1_ptr would do worse: Triton tells what a loop changes by identity.
        values_ptr = keys_ptr
        places = 1
    chain_ptr = words_ptr + n_passes * DIGITS
    for k in range(n_passes):
        wait_for_all(count_ptr, (k + 1) * n_programs)
        shift = begin_bit + k * width
        for chunk in range(pid, n_here, n_programs):
            at_ptr = exchange_ptr
            if not SHARED:
                at_ptr = exchange_ptr + chunk * CHUNK
            _sweep_chunk(
                keys_ptr,
                values_ptr,
                chunk,
                n_valid,
                at_ptr,
                words_ptr + k * DIGITS,
                chain_ptr + k * n_chunks * DIGITS,
                keys_1_ptr,
                values_1_ptr,
                shift,
                digit_mask(shift, end_bit, width),
                places,
                shared,
                CHUNK,
                SHARED,
                WINDOW,
            )
            tl.debug_barrier()
        places = 0
        keys_ptr = keys_1_ptr
        values_ptr = values_1_ptr
        keys_1_ptr = keys_2_ptr
        values_1_ptr = values_2_ptr
        keys_2_ptr = keys_ptr
        values_2_ptr = values_ptr
