"""What a captured step tells of itself: whether it fits its buffers, and its losses.

    report = rows, entries, missing, serial        skip = rows > R or entries > E or missing > 0
    sums[k] += losses[k],  sums[3] += n_images     unless skip

of capacities R and E. A launch each, in place of ten that PyTorch makes of it: every one takes as
long as a kernel can.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..runtime.launch import launch


@triton.jit
def _report_kernel(
    counts_ptr,  # [2]
    limits_ptr,  # [2]
    missing_ptr,  # [1] or None
    serial_ptr,  # [1]
    report_ptr,  # [4] out
    skip_ptr,  # [1] out
):
    rows, entries = tl.load(counts_ptr), tl.load(counts_ptr + 1)
    skip = (rows > tl.load(limits_ptr)) | (entries > tl.load(limits_ptr + 1))
    missing = 0
    if missing_ptr is not None:
        missing = tl.load(missing_ptr)
        skip = skip | (missing > 0)
    tl.store(report_ptr, rows)
    tl.store(report_ptr + 1, entries)
    tl.store(report_ptr + 2, missing)
    tl.store(report_ptr + 3, tl.load(serial_ptr))
    tl.store(skip_ptr, skip.to(tl.int32))


@triton.jit(do_not_specialize=["n_images"])
def _add_losses_kernel(
    loss_ptr,  # [1]
    others_ptr,  # [2]
    skip_ptr,  # [1] or None
    sums_ptr,  # [4] in and out
    n_images,
):
    counts = True
    if skip_ptr is not None:
        counts = tl.load(skip_ptr) == 0
    if counts:
        tl.store(sums_ptr, tl.load(sums_ptr) + tl.load(loss_ptr))
        tl.store(sums_ptr + 1, tl.load(sums_ptr + 1) + tl.load(others_ptr))
        tl.store(sums_ptr + 2, tl.load(sums_ptr + 2) + tl.load(others_ptr + 1))
        tl.store(sums_ptr + 3, tl.load(sums_ptr + 3) + n_images)


def report_step(
    counts: Tensor, limits: Tensor, missing: Tensor | None, serial: Tensor
) -> tuple[Tensor, Tensor]:
    report, skip = counts.new_empty(4), counts.new_empty(1)
    launch(_report_kernel, (1,), counts, limits, missing, serial, report, skip, num_warps=1)
    return report, skip


def add_losses(
    sums: Tensor, loss: Tensor, others: Tensor, n_images: int, skip: Tensor | None
) -> None:
    launch(_add_losses_kernel, (1,), loss, others, skip, sums, n_images, num_warps=1)
