r"""Stable least-significant-digit radix sort of (key, payload) pairs.

Keys are int32; only bits begin_bit to end_bit - 1 are compared, as an unsigned number. They are
cut into passes of at most 8 bits. For a pass with digit d(i) of key i,

    position(i) = #{j : d(j) < d(i)} + #{j < i : d(j) = d(i)}

The first term comes from one count of the digits of all passes, since a pass only reorders keys.
Each pass is then one launch with one program per tile of consecutive keys: it orders its tile by
the digit (radix.py), tells how many keys of each digit it has, adds up what the tiles before it
have told (lookback.py, here for 256 sums at once), and moves the runs of equal digits to their
places, in whole sectors. (Adinets and Merrill, Onesweep, 2022.)

On an H200, against torch.sort (stable, int64 indices out; GPU time): depths of 31 bits, 70 thousand
0.041 and 0.061 ms, 300 thousand 0.056 and 0.073, 1.27 million 0.108 and 0.118 ms, with 18 bytes of
memory per key and 32. Two launches per pass, counts and prefixes first, took 0.074, 0.076 and
0.150 ms; tiles of 1024 keys, 128 threads or at most 80 registers were no faster at any size.

    keys, values   [n] int32
    words          [passes, n_tiles, 256] int32   keys per digit in a tile, or up to its end, times
                                  4, plus which of both; 0 before the tile tells
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._checks import check
from .device import INTERPRET
from .launch import empty, launch, zeros
from .lookback import OWN, RUNNING
from .radix import (
    DIGITS,
    THREADS,
    TILES,
    count_digits,
    histograms,
    order_tile,
    shared_memory,
)

MAX_REGISTERS = 128  # lets two programs of 8 warps share an SM
WARPS = THREADS.value // 32
SMALL = 150_000  # so many keys are sorted in smaller tiles: there are programs enough for few
WINDOW = 16  # tiles looked at together


@triton.jit(do_not_specialize=["n", "begin_bit", "end_bit", "width"])
def _histograms_kernel(
    keys_ptr,  # [n]
    n_valid_ptr,  # [1] or None
    digit_counts_ptr,  # [passes, 256] in and out
    n,
    begin_bit,
    end_bit,
    width,
    TILE: tl.constexpr,
    SHARED: tl.constexpr,
):
    n_valid = n
    if n_valid_ptr is not None:
        n_valid = tl.minimum(tl.load(n_valid_ptr), n)
    first = tl.program_id(0) * TILE
    if first < n_valid:
        i = first + tl.arange(0, TILE)
        key = tl.load(keys_ptr + i, mask=i < n_valid, other=0)
        shared = shared_memory(SHARED)
        histograms(
            key, i < n_valid, begin_bit, end_bit, width, digit_counts_ptr, shared, TILE, SHARED
        )  # fmt: skip


@triton.jit
def _sum_of_digits(words_ptr, tile, WINDOW: tl.constexpr):
    """Keys of each digit in the tiles before this one, [256], once those have told theirs."""
    d = tl.arange(0, DIGITS)
    total = tl.zeros((DIGITS,), tl.int32)
    # of each digit, the nearest tile that is not yet added
    at = tl.zeros((DIGITS,), tl.int32) + (tile - 1)
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


@triton.jit(do_not_specialize=["n", "shift", "mask"])
def _sweep_kernel(
    keys_ptr,  # [n]
    values_ptr,  # [n], or None for places
    n_valid_ptr,  # [1] or None
    exchange_ptr,  # [n_tiles TILE], or None where memory is shared
    digit_counts_ptr,  # [256] of this pass
    words_ptr,  # [n_tiles, 256], 0 before
    sorted_keys_ptr,  # [n] out
    sorted_values_ptr,  # [n] out
    n,
    shift,
    mask,
    TILE: tl.constexpr,
    SHARED: tl.constexpr,
    WINDOW: tl.constexpr,
):
    tile = tl.program_id(0)
    n_valid = n
    if n_valid_ptr is not None:
        n_valid = tl.minimum(tl.load(n_valid_ptr), n)
    first = tile * TILE
    if first >= n_valid:
        return
    n_here = n_valid - first
    shared = shared_memory(SHARED)
    if not SHARED:
        exchange_ptr += first
    source = order_tile(
        keys_ptr + first, shift, mask, n_here, exchange_ptr, shared, TILE, SHARED
    )  # fmt: skip
    p = tl.arange(0, TILE)
    there = p < n_here
    key = tl.gather(tl.load(keys_ptr + first + p, mask=there, other=0x7FFFFFFF), source, 0)
    digit = (key >> shift) & mask
    count = count_digits(digit, n_here, mask, shared, TILE, SHARED)
    d = tl.arange(0, DIGITS)
    word_ptr = words_ptr + tile * DIGITS + d
    tl.atomic_xchg(word_ptr, (count << 2) | OWN, sem="relaxed")
    of_digit = tl.load(digit_counts_ptr + d)
    before = _sum_of_digits(words_ptr, tile, WINDOW)
    tl.atomic_xchg(word_ptr, ((before + count) << 2) | RUNNING, sem="relaxed")
    # less the place of a digit's first key within the tile
    base = tl.cumsum(of_digit - count, 0) - (of_digit - count) + before
    at = tl.gather(base, digit, 0) + p
    if values_ptr is None:
        value = first + source
    else:
        value = tl.gather(tl.load(values_ptr + first + p, mask=there, other=0), source, 0)
    tl.store(sorted_keys_ptr + at, key, mask=there)
    tl.store(sorted_values_ptr + at, value, mask=there)


def passes(bits: int) -> int:
    """Passes of a sort by so many bits."""
    return -(-bits // 8)


def sort_keys(
    keys: Tensor,  # [n]
    values: Tensor | None,  # [n]
    end_bit: int,
    n_valid: Tensor | None = None,  # [1]
    *,
    begin_bit: int = 0,
    exchange: str = "shared",
    buffers: tuple[tuple[Tensor, Tensor], ...] = (),
) -> tuple[Tensor, Tensor]:
    """`sort_pairs` by the Triton kernels, for callers that need no checks.

    Args:
        buffers: Up to two pairs [n] that odd and even passes write. The second may be keys and
            values themselves. What is missing is allocated.
    """
    n, device = keys.shape[0], keys.device
    n_passes = passes(end_bit - begin_bit)
    for _ in range(len(buffers), min(n_passes, 2)):
        pair = empty((n,), torch.int32, device), empty((n,), torch.int32, device)
        buffers = (*buffers, pair)
    if n == 0:
        return buffers[0]
    tile, digits = TILES[n > SMALL], int(DIGITS.value)
    n_tiles = -(-n // tile)
    width = -(-(end_bit - begin_bit) // n_passes)
    words = zeros((n_passes * (n_tiles + 1), digits), torch.int32, device)
    shared = exchange == "shared" and not INTERPRET.value
    exchanged = None if shared else empty((n_tiles * tile,), torch.int32, device)
    launch(
        _histograms_kernel, (n_tiles,), keys, n_valid, words, n, begin_bit, end_bit, width,
        TILE=tile, SHARED=shared, num_warps=WARPS,
    )  # fmt: skip
    source, target = (keys, values), buffers[0]
    for k in range(n_passes):
        shift, target = begin_bit + k * width, buffers[k % 2]
        launch(
            _sweep_kernel, (n_tiles,), *source, n_valid, exchanged, words[k],
            words[n_passes + k * n_tiles :], *target, n, shift,
            (1 << min(width, end_bit - shift)) - 1,
            TILE=tile, SHARED=shared, WINDOW=WINDOW, num_warps=WARPS, maxnreg=MAX_REGISTERS,
        )  # fmt: skip
        source = target
    return target


def _sort_torch(
    keys: Tensor, values: Tensor | None, begin_bit: int, end_bit: int, n_valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    largest = (1 << (end_bit - begin_bit)) - 1
    compared = (keys >> begin_bit) & largest
    if n_valid is not None:
        # padding compares equal to the largest key at most, and stands behind it
        there = torch.arange(keys.shape[0], device=keys.device) < n_valid
        compared = compared.where(there, largest)
    if largest < 1 << 15:
        compared = compared.to(torch.int16)
    order = torch.sort(compared, stable=True).indices
    return keys[order], order.to(torch.int32) if values is None else values[order]


def sort_pairs(
    keys: Tensor,  # [n]
    values: Tensor | None = None,  # [n]
    *,
    begin_bit: int = 0,
    end_bit: int,
    n_valid: Tensor | None = None,  # [1]
    backend: Literal["triton", "torch"] = "triton",
    exchange: Literal["global", "shared"] = "shared",
) -> tuple[Tensor, Tensor]:
    """Sort keys by their bits begin_bit to end_bit - 1, and values with them; stable.

    Never waits for the device, and can be captured in a CUDA graph.

    Args:
        keys: [n] int32, non-negative.
        values: [n] int32; None stands for 0..n-1.
        begin_bit: First bit that is compared, 0..30.
        end_bit: One past the last bit that is compared, begin_bit+1..32.
        n_valid: [1] int32 on the device of the keys; only the first n_valid entries are sorted, and
            entries of the results past them are unspecified. None: all n.
        backend: "triton", or "torch" for torch.sort.
        exchange: Memory through which the threads of a program exchange keys; "shared" is inline
            PTX and falls back to "global" in the interpreter.

    Returns:
        Sorted keys [n] int32 and the values [n] int32 in their order.

    Raises:
        ValueError: a shape, dtype, device, bit range or name is wrong.
    """
    n = check(keys=(keys, "n"))["n"]
    tensors = {"keys": keys}
    if values is not None:
        check({"n": n}, values=(values, "n"))
        tensors["values"] = values
    if n_valid is not None:
        check(n_valid=(n_valid, "1"))
        tensors["n_valid"] = n_valid
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int32 or tensor.device != keys.device:
            raise ValueError(
                f"{name}: expected int32 on {keys.device}, got {tensor.dtype} on {tensor.device}"
            )
    if not 0 <= begin_bit < min(end_bit, 31) or end_bit > 32:
        raise ValueError(f"end_bit: expected bits within 0..31, got {begin_bit} to {end_bit}")
    end_bit = min(end_bit, 31)
    keys = keys.contiguous()
    values = None if values is None else values.contiguous()
    if backend == "torch":
        return _sort_torch(keys, values, begin_bit, end_bit, n_valid)
    if backend != "triton":
        raise ValueError(f'backend: expected "triton" or "torch", got {backend!r}')
    if not keys.is_cuda and not INTERPRET.value:
        raise ValueError("keys: the Triton sort needs a CUDA device or TRITON_INTERPRET=1")
    return sort_keys(keys, values, end_bit, n_valid, begin_bit=begin_bit, exchange=exchange)
