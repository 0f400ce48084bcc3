r"""Records on their way between ranks: rows into a send buffer by task, received rows as records.

A task is a window of one camera's image, rows of pixels top to bottom - 1. A Gaussian goes to every
task whose window its extent meets:

    my + ry > top,   my - ry < bottom        (mx, my) mean, ry half extent (radii)

    table [T 5] int32       camera, top, bottom, base, capacity of each task
    send buffer [S 12]      for every task, from row base on: a header, and `capacity` rows
    header                  column 0: how many rows meet the window, as int32; more than the
                            capacity, where the others are missing
    row                     the first 12 columns of a record, but that my is counted from the
                            window's top, and column 11, the depth once more, is the id as int32

Rows keep their order: each program counts its members of every task, the counts are summed, and
each program finds its places. The way back finds them again, by the same sums, instead of storing
them: a row's gradient is the sum over the tasks that it went to, without atomics. Rows ascend by
camera, so that most programs see one camera, and pass over the tasks of others.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..projection.record import (
    COLOR,
    CONIC,
    DEPTH,
    LOG2_OPACITY,
    MASK,
    MEAN,
    RECORD_SIZE,
    store_record,
)
from ..runtime.launch import empty, launch

COLUMNS = tl.constexpr(12)
ID = tl.constexpr(11)
TABLE = tl.constexpr(5)  # columns
BLOCK = tl.constexpr(128)  # rows per program
WARPS = 4


class Sent(NamedTuple):
    """Where the rows of a projection stand in a send buffer."""

    values: Tensor  # [R, 16]
    gaussian_ids: Tensor  # [R]
    radii: Tensor  # [C, N, 2]
    n_rows: Tensor  # [1]
    table: Tensor  # [T, 5]
    ends: Tensor  # [T, programs] int32: members up to and with those of a program


@triton.jit
def _load_rows(values_ptr, gaussian_ids_ptr, radii_ptr, n_rows_ptr, R, N):
    """A program's rows, whether they are there, their cameras, my and extents, and Gaussians."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = r < tl.minimum(tl.load(n_rows_ptr), R)
    row_ptr = values_ptr + r.to(tl.int64) * RECORD_SIZE
    # a row that a projection took and then culled has depth 0
    there = there & (tl.load(row_ptr + DEPTH, mask=there, other=0.0) > 0.0)
    my = tl.load(row_ptr + MEAN + 1, mask=there, other=0.0)
    name = tl.load(gaussian_ids_ptr + r, mask=there, other=0)
    reach = tl.load(radii_ptr + name.to(tl.int64) * 2 + 1, mask=there, other=0).to(tl.float32)
    camera = name // N
    return r, there, camera, my, reach, name - camera * N


@triton.jit
def _cameras(there, camera):
    """The first and the last camera of a program's rows; none: the first comes after the last."""
    first = tl.min(tl.where(there, camera, 0x7FFFFFFF), 0)
    return first, tl.max(tl.where(there, camera, -1), 0)


@triton.jit
def _meets(task_ptr, there, camera, my, reach):
    """Which rows go to a task."""
    top = tl.load(task_ptr + 1).to(tl.float32)
    bottom = tl.load(task_ptr + 2).to(tl.float32)
    meets = there & (camera == tl.load(task_ptr))
    return meets & (my + reach > top) & (my - reach < bottom)


@triton.jit(do_not_specialize=["R", "N", "T", "n_programs"])
def _count_kernel(
    values_ptr,  # [R, 16]
    gaussian_ids_ptr,  # [R]
    radii_ptr,  # [C, N, 2]
    n_rows_ptr,  # [1]
    table_ptr,  # [T, 5]
    counts_ptr,  # [T, programs] out
    R,
    N,
    T,
    n_programs,
):
    rows = _load_rows(values_ptr, gaussian_ids_ptr, radii_ptr, n_rows_ptr, R, N)
    _, there, camera, my, reach, _ = rows
    first, last = _cameras(there, camera)
    for t in range(T):
        task_ptr = table_ptr + t * TABLE
        count = 0
        of_task = tl.load(task_ptr)
        if (of_task >= first) & (of_task <= last):
            count = tl.sum(_meets(task_ptr, there, camera, my, reach).to(tl.int32), 0)
        tl.store(counts_ptr + t * n_programs + tl.program_id(0), count)


@triton.jit
def _places(ends_ptr, task_ptr, meets, t, n_programs):
    """Rows of the buffer that members of a task take, and which of them fit."""
    member = meets.to(tl.int32)
    end = tl.load(ends_ptr + t * n_programs + tl.program_id(0))
    k = end - tl.sum(member, 0) + tl.cumsum(member, 0) - 1
    base = tl.load(task_ptr + 3).to(tl.int64)
    return base + 1 + k, meets & (k < tl.load(task_ptr + 4))


@triton.jit(do_not_specialize=["R", "N", "T", "n_programs"])
def _pack_kernel(
    values_ptr,  # [R, 16]
    values_bits_ptr,  # the same as int32
    gaussian_ids_ptr,  # [R]
    radii_ptr,  # [C, N, 2]
    n_rows_ptr,  # [1]
    ids_ptr,  # [N]
    table_ptr,  # [T, 5]
    ends_ptr,  # [T, programs]
    out_ptr,  # [S, 12] int32, out
    R,
    N,
    T,
    n_programs,
):
    rows = _load_rows(values_ptr, gaussian_ids_ptr, radii_ptr, n_rows_ptr, R, N)
    r, there, camera, my, reach, gaussian = rows
    column = tl.arange(0, RECORD_SIZE)[None, :]
    at = r.to(tl.int64)[:, None] * RECORD_SIZE + column
    bits = tl.load(values_bits_ptr + at, mask=there[:, None] & (column < ID), other=0)
    id = tl.load(ids_ptr + gaussian, mask=there, other=0)
    bits = tl.where(column == ID, id[:, None], bits)
    first, last = _cameras(there, camera)
    for t in range(T):
        task_ptr = table_ptr + t * TABLE
        of_task = tl.load(task_ptr)
        if (of_task >= first) & (of_task <= last):
            meets = _meets(task_ptr, there, camera, my, reach)
            place, fits = _places(ends_ptr, task_ptr, meets, t, n_programs)
            shifted = my - tl.load(task_ptr + 1).to(tl.float32)
            moved = tl.where(column == MEAN + 1, shifted.to(tl.int32, bitcast=True)[:, None], bits)
            inside = fits[:, None] & (column < COLUMNS)
            tl.store(out_ptr + place[:, None] * COLUMNS + column, moved, mask=inside)
        if tl.program_id(0) == n_programs - 1:
            head_ptr = out_ptr + tl.load(task_ptr + 3).to(tl.int64) * COLUMNS
            total = tl.load(ends_ptr + t * n_programs + n_programs - 1)
            k = tl.arange(0, RECORD_SIZE)
            tl.store(head_ptr + k, tl.where(k == 0, total, 0), mask=k < COLUMNS)


@triton.jit(do_not_specialize=["n", "capacity", "stride"])
def _unpack_kernel(
    buffer_ptr,  # [W, 1 + capacity, 12], sources `stride` rows apart
    buffer_bits_ptr,  # the same as int32
    values_ptr,  # [n, 16] out
    ids_ptr,  # [n] out
    n,
    capacity,
    stride,
):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = r < n
    source = r // capacity
    k = r - source * capacity
    head = source.to(tl.int64) * stride
    there = inside & (k < tl.load(buffer_bits_ptr + head * COLUMNS, mask=inside, other=0))
    at = (head + 1 + k) * COLUMNS
    x_ptr = buffer_ptr + at
    mx = tl.load(x_ptr + MEAN, mask=there, other=0.0)
    my = tl.load(x_ptr + MEAN + 1, mask=there, other=0.0)
    A = tl.load(x_ptr + CONIC, mask=there, other=0.0)
    B = tl.load(x_ptr + CONIC + 1, mask=there, other=0.0)
    C = tl.load(x_ptr + CONIC + 2, mask=there, other=0.0)
    log_o = tl.load(x_ptr + LOG2_OPACITY, mask=there, other=0.0)
    mask = tl.load(x_ptr + MASK, mask=there, other=0.0)
    depth = tl.load(x_ptr + DEPTH, mask=there, other=0.0)
    red = tl.load(x_ptr + COLOR, mask=there, other=0.0)
    green = tl.load(x_ptr + COLOR + 1, mask=there, other=0.0)
    blue = tl.load(x_ptr + COLOR + 2, mask=there, other=0.0)
    store_record(values_ptr, r, mx, my, A, B, C, log_o, mask, depth, red, green, blue, inside)
    id = tl.load(buffer_bits_ptr + at + ID, mask=there, other=0x7FFFFFFF)
    tl.store(ids_ptr + r, id, mask=inside)


@triton.jit(do_not_specialize=["n", "capacity", "stride"])
def _pack_gradients_kernel(
    v_values_ptr,  # [W capacity, 16]
    out_ptr,  # [W, 1 + capacity, 12] out, sources `stride` rows apart
    n,  # W (1 + capacity)
    capacity,
    stride,
):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source = r // (1 + capacity)
    k = r - source * (1 + capacity)
    column = tl.arange(0, RECORD_SIZE)[None, :]
    inside = (r < n)[:, None] & (column < COLUMNS)
    row = source.to(tl.int64) * capacity + k - 1
    at = row[:, None] * RECORD_SIZE + column
    v = tl.load(v_values_ptr + at, mask=inside & (k > 0)[:, None], other=0.0)
    place = source.to(tl.int64) * stride + k
    tl.store(out_ptr + place[:, None] * COLUMNS + column, v, mask=inside)


@triton.jit(do_not_specialize=["R", "N", "T", "n_programs"])
def _unpack_gradients_kernel(
    values_ptr,  # [R, 16]
    gaussian_ids_ptr,  # [R]
    radii_ptr,  # [C, N, 2]
    n_rows_ptr,  # [1]
    table_ptr,  # [T, 5]
    ends_ptr,  # [T, programs]
    buffer_ptr,  # [S, 12]
    v_values_ptr,  # [R, 16] out
    R,
    N,
    T,
    n_programs,
):
    rows = _load_rows(values_ptr, gaussian_ids_ptr, radii_ptr, n_rows_ptr, R, N)
    r, there, camera, my, reach, _ = rows
    column = tl.arange(0, RECORD_SIZE)[None, :]
    v = tl.zeros([BLOCK, RECORD_SIZE], tl.float32)
    first, last = _cameras(there, camera)
    for t in range(T):
        task_ptr = table_ptr + t * TABLE
        of_task = tl.load(task_ptr)
        if (of_task >= first) & (of_task <= last):
            meets = _meets(task_ptr, there, camera, my, reach)
            place, fits = _places(ends_ptr, task_ptr, meets, t, n_programs)
            inside = fits[:, None] & (column < COLUMNS)
            v += tl.load(buffer_ptr + place[:, None] * COLUMNS + column, mask=inside, other=0.0)
    at = r.to(tl.int64)[:, None] * RECORD_SIZE + column
    tl.store(v_values_ptr + at, v, mask=(r < R)[:, None])


def _programs(n: int) -> int:
    return -(-n // BLOCK.value)


def pack_records(
    values: Tensor,  # [R, 16]
    gaussian_ids: Tensor,  # [R]
    radii: Tensor,  # [C, N, 2]
    n_rows: Tensor,  # [1]
    ids: Tensor,  # [N]
    table: Tensor,  # [T, 5]
    out: Tensor,  # [S, 12]
) -> tuple[Tensor, Sent]:  # [T] int32
    """kernels.exchange.pack_records of detached, contiguous tensors."""
    R, N, T, n = len(values), radii.shape[1], len(table), _programs(len(values))
    counts = empty((T, n), torch.int32, values.device)
    args, sizes = (values, gaussian_ids, radii, n_rows), (R, N, T, n)
    launch(_count_kernel, (n,), *args, table, counts, *sizes, num_warps=WARPS)
    ends = counts.cumsum(1, dtype=torch.int32)
    rest = (gaussian_ids, radii, n_rows, ids, table, ends, out.view(torch.int32))
    bits = values.view(torch.int32)
    launch(_pack_kernel, (n,), values, bits, *rest, *sizes, num_warps=WARPS)
    return ends[:, -1], Sent(values, gaussian_ids, radii, n_rows, table, ends)


def unpack_records(buffer: Tensor) -> tuple[Tensor, Tensor]:
    """kernels.exchange.unpack_records."""
    W, rows, _ = buffer.shape
    capacity, n = rows - 1, W * (rows - 1)
    values = empty((n, RECORD_SIZE.value), torch.float32, buffer.device)
    ids = empty((n,), torch.int32, buffer.device)
    stride = buffer.stride(0) // COLUMNS.value
    args = (buffer, buffer.view(torch.int32), values, ids, n, capacity, stride)
    launch(_unpack_kernel, (_programs(n),), *args, num_warps=WARPS)
    return values, ids


def pack_gradients(v_values: Tensor, out: Tensor) -> None:
    """kernels.exchange.pack_gradients."""
    W, rows, _ = out.shape
    n, stride = W * rows, out.stride(0) // COLUMNS.value
    args = (v_values, out, n, rows - 1, stride)
    launch(_pack_gradients_kernel, (_programs(n),), *args, num_warps=WARPS)


def unpack_gradients(buffer: Tensor, sent: Sent, v_values: Tensor) -> None:
    """kernels.exchange.unpack_gradients."""
    R, N, T, n = len(sent.values), sent.radii.shape[1], len(sent.table), sent.ends.shape[1]
    launch(_unpack_gradients_kernel, (n,), *sent, buffer, v_values, R, N, T, n, num_warps=WARPS)
