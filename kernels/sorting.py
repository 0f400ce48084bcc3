r"""Stable least-significant-digit radix sort of (key, payload) pairs.

Keys are non-negative int32; only bits begin_bit to end_bit - 1 are compared. They are cut into
passes of at most 8 bits. For a pass with digit d(i) of key i,

    position(i) = #{j : d(j) < d(i)} + #{j < i : d(j) = d(i)}

is found in two launches, with one program per tile of TILE consecutive keys:

1. _sort_tiles_kernel orders each tile by its digit and counts its digits (radix.py). The last
   program of every group of tiles, known by a ticket, turns the counts of the group into exclusive
   prefixes, and the last of these programs does so for the groups: no program waits for another.
2. _place_tiles_kernel moves the runs of equal digits of a tile to their places, in whole sectors.

On an H200, against torch.sort (stable, int64 indices out; GPU time, bench/bench_sorting.py): tile
ids of 15 bits, 2.1M: 0.096 ms and 0.096 for int16 keys, before its gather of payloads; depths of
31 bits, 1.27M: 0.144 and 0.108 ms. A single cooperative launch with grid barriers was slower at
every size (0.115 and 0.194 ms), exchange through global memory in place of shared twice as slow.

    keys, values   [n] int32
    tile_keys, tile_values [n_tiles TILE] int32   ordered by digit within each tile; before, threads
                                  of a program exchange keys through tile_keys
    tile_counts    [n_tiles 256] int32      keys per digit
    tile_offsets   [n_tiles 256] int32      minus the first position of a digit in its tile; then
                                  plus the number of its keys in earlier tiles of the group
    group_offsets  [n_groups + 1, 256] int32   keys per digit in the group; then in earlier groups;
                                  last row: keys with smaller digits
    tickets        [n_groups + 2] int32     0: groups that are done, 2..: tiles that are
"""

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._checks import check
from .device import INTERPRET
from .launch import launch
from .radix import DIGITS, TILE, count_digits, order_tile, shared_memory

GROUP = tl.constexpr(16)  # tiles whose counts one program adds up
MAX_REGISTERS = 128  # lets two programs of 8 warps share an SM


@triton.jit
def _scan_groups(group_offsets_ptr, n_groups, last_row):
    """Replace counts per group by exclusive prefixes; into last_row go those over digits."""
    d = tl.arange(0, DIGITS)
    total = tl.zeros((DIGITS,), tl.int32)
    for g0 in range(0, n_groups, GROUP):
        g = g0 + tl.arange(0, GROUP)
        at = group_offsets_ptr + g[:, None] * DIGITS + d[None, :]
        there = g[:, None] < n_groups
        count = tl.load(at, mask=there, other=0)
        tl.store(at, tl.cumsum(count, 0) - count + total[None, :], mask=there)
        total += tl.sum(count, 0)
    tl.store(group_offsets_ptr + last_row * DIGITS + d, tl.cumsum(total, 0) - total)


@triton.jit
def _scan_counts(
    tile, tile_counts_ptr, tile_offsets_ptr, group_offsets_ptr, tickets_ptr, last_row, n_valid
):
    """Prefixes over the tiles of a group, by its last program; over groups, by the last of all."""
    n_tiles = tl.cdiv(n_valid, TILE)
    n_groups = tl.cdiv(n_tiles, GROUP)
    group = tile // GROUP
    in_group = tl.minimum(n_tiles - group * GROUP, GROUP)
    tl.debug_barrier()
    if tl.atomic_add(tickets_ptr + 2 + group, 1, sem="acq_rel") == in_group - 1:
        d = tl.arange(0, DIGITS)
        r = tl.arange(0, GROUP)
        at = (group * GROUP + r)[:, None] * DIGITS + d[None, :]
        there = r[:, None] < in_group
        count = tl.load(tile_counts_ptr + at, mask=there, other=0)
        offset = tl.load(tile_offsets_ptr + at, mask=there, other=0)
        tl.store(tile_offsets_ptr + at, offset + tl.cumsum(count, 0) - count, mask=there)
        tl.store(group_offsets_ptr + group * DIGITS + d, tl.sum(count, 0))
        tl.store(tickets_ptr + 2 + group, 0)
        tl.debug_barrier()
        if tl.atomic_add(tickets_ptr, 1, sem="acq_rel") == n_groups - 1:
            _scan_groups(group_offsets_ptr, n_groups, last_row)
            tl.store(tickets_ptr, 0)


@triton.jit
def _sort_tile(
    tile, keys_ptr, values_ptr, values_are_indices, tile_keys_ptr, tile_values_ptr,
    tile_counts_ptr, tile_offsets_ptr, shift, mask, n_valid, shared, SHARED: tl.constexpr
):  # fmt: skip
    first = tile * TILE
    n_here = n_valid - first
    source = order_tile(
        keys_ptr + first, shift, mask, n_here, tile_keys_ptr + first, shared, SHARED
    )
    p = tl.arange(0, TILE)
    there = p < n_here
    key = tl.gather(tl.load(keys_ptr + first + p, mask=there, other=0x7FFFFFFF), source, 0)
    tl.store(tile_keys_ptr + first + p, key)
    if values_are_indices:
        tl.store(tile_values_ptr + first + p, first + source)
    else:
        value = tl.load(values_ptr + first + p, mask=there, other=0)
        tl.store(tile_values_ptr + first + p, tl.gather(value, source, 0))
    row = tile * DIGITS
    digit = (key >> shift) & mask
    count_digits(digit, n_here, tile_counts_ptr + row, tile_offsets_ptr + row, shared, SHARED)


@triton.jit
def _place_tile(
    tile, tile_keys_ptr, tile_values_ptr, tile_offsets_ptr, group_offsets_ptr,
    sorted_keys_ptr, sorted_values_ptr, last_row, shift, mask, n_valid
):  # fmt: skip
    d = tl.arange(0, DIGITS)
    base = tl.load(tile_offsets_ptr + tile * DIGITS + d)
    base += tl.load(group_offsets_ptr + tile // GROUP * DIGITS + d)
    base += tl.load(group_offsets_ptr + last_row * DIGITS + d)
    p = tl.arange(0, TILE)
    i = tile * TILE + p
    there = i < n_valid
    key = tl.load(tile_keys_ptr + i, mask=there, other=0)
    value = tl.load(tile_values_ptr + i, mask=there, other=0)
    at = tl.gather(base, (key >> shift) & mask, 0) + p
    tl.store(sorted_keys_ptr + at, key, mask=there)
    tl.store(sorted_values_ptr + at, value, mask=there)


@triton.jit(do_not_specialize=["n", "shift", "mask", "last_row"])
def _sort_tiles_kernel(
    keys_ptr,  # [n]
    values_ptr,  # [n]; unused if VALUES_ARE_INDICES
    n_valid_ptr,  # [1]; unused without HAS_N_VALID
    tile_keys_ptr,  # [n_tiles TILE] out
    tile_values_ptr,  # [n_tiles TILE] out
    tile_counts_ptr,  # [n_tiles 256] out
    tile_offsets_ptr,  # [n_tiles 256] out
    group_offsets_ptr,  # [n_groups + 1, 256] out
    tickets_ptr,  # [n_groups + 2], zeros before and after
    n,
    shift,
    mask,
    last_row,
    VALUES_ARE_INDICES: tl.constexpr,
    HAS_N_VALID: tl.constexpr,
    SHARED: tl.constexpr,
):
    tile = tl.program_id(0)
    n_valid = n
    if HAS_N_VALID:
        n_valid = tl.minimum(tl.load(n_valid_ptr), n)
    if tile * TILE < n_valid:
        _sort_tile(
            tile, keys_ptr, values_ptr, VALUES_ARE_INDICES, tile_keys_ptr, tile_values_ptr,
            tile_counts_ptr, tile_offsets_ptr, shift, mask, n_valid, shared_memory(SHARED), SHARED
        )  # fmt: skip
        _scan_counts(
            tile, tile_counts_ptr, tile_offsets_ptr, group_offsets_ptr, tickets_ptr, last_row,
            n_valid
        )  # fmt: skip


@triton.jit(do_not_specialize=["n", "shift", "mask", "last_row"])
def _place_tiles_kernel(
    tile_keys_ptr,  # [n_tiles TILE]
    tile_values_ptr,  # [n_tiles TILE]
    n_valid_ptr,  # [1]; unused without HAS_N_VALID
    tile_offsets_ptr,  # [n_tiles 256]
    group_offsets_ptr,  # [n_groups + 1, 256]
    sorted_keys_ptr,  # [n] out
    sorted_values_ptr,  # [n] out
    n,
    shift,
    mask,
    last_row,
    HAS_N_VALID: tl.constexpr,
):
    tile = tl.program_id(0)
    n_valid = n
    if HAS_N_VALID:
        n_valid = tl.minimum(tl.load(n_valid_ptr), n)
    if tile * TILE < n_valid:
        _place_tile(
            tile, tile_keys_ptr, tile_values_ptr, tile_offsets_ptr, group_offsets_ptr,
            sorted_keys_ptr, sorted_values_ptr, last_row, shift, mask, n_valid
        )  # fmt: skip


def sort_keys(
    keys: Tensor,  # [n]
    values: Tensor | None,  # [n]
    end_bit: int,
    n_valid: Tensor | None = None,  # [1]
    *,
    begin_bit: int = 0,
    exchange: str = "shared",
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    """`sort_pairs` by the Triton kernels, for callers that need no checks.

    Args:
        overwrite: Sort within `keys` and `values` (not None), which saves 8 bytes per key.
    """
    n = keys.shape[0]
    if overwrite:
        assert values is not None
        sorted_keys, sorted_values = keys, values
    else:
        sorted_keys, sorted_values = torch.empty_like(keys), torch.empty_like(keys)
    if n == 0:
        return sorted_keys, sorted_values
    tile, group = int(TILE.value), int(GROUP.value)
    n_tiles = -(-n // tile)
    n_groups = -(-n_tiles // group)
    like: dict[str, Any] = {"dtype": keys.dtype, "device": keys.device}
    tile_keys, tile_values = torch.empty(2, n_tiles * tile, **like)
    rows = torch.empty(2 * n_tiles + n_groups + 1, int(DIGITS.value), **like)
    tile_counts, tile_offsets, group_offsets = rows.split([n_tiles, n_tiles, n_groups + 1])
    tickets = torch.zeros(n_groups + 2, **like)
    scratch = (tile_keys, tile_values, tile_counts, tile_offsets, group_offsets, tickets)
    n_passes = -(-(end_bit - begin_bit) // 8)
    width = -(-(end_bit - begin_bit) // n_passes)
    source = (keys, keys if values is None else values)
    constants = {
        "HAS_N_VALID": n_valid is not None,
        "SHARED": exchange == "shared" and not INTERPRET.value,
    }
    for shift in range(begin_bit, end_bit, width):
        mask = (1 << min(width, end_bit - shift)) - 1
        launch(
            _sort_tiles_kernel, (n_tiles,), *source, n_valid, *scratch, n, shift, mask, n_groups,
            VALUES_ARE_INDICES=values is None and shift == begin_bit, **constants,
            num_warps=8, maxnreg=MAX_REGISTERS,
        )  # fmt: skip
        launch(
            _place_tiles_kernel, (n_tiles,), tile_keys, tile_values, n_valid, tile_offsets,
            group_offsets, sorted_keys, sorted_values, n, shift, mask, n_groups,
            HAS_N_VALID=n_valid is not None, num_warps=8,
        )  # fmt: skip
        source = (sorted_keys, sorted_values)
    return sorted_keys, sorted_values


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
    return sort_keys(
        keys, values, end_bit, n_valid, begin_bit=begin_bit, exchange=exchange
    )
