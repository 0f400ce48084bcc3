r"""A barrier across the programs of one launch, so that several passes need no launch each.

A launch costs the host 9 to 11 us on slow machines, which is more than a pass over 100 thousand
values costs the GPU. All programs of such a launch must run at the same time. CUDA is told so: a
cooperative launch starts all of them or none. On an H200 a barrier takes 1 us with a program per
multiprocessor, as long as two launches are apart on the GPU; with 1,056 programs 2 us, with 2,112
4 us, however they wait.
"""

import functools

import torch
import triton
import triton.language as tl

from .. import rehearsal
from .intrinsics import INTERPRET


@triton.jit
def wait_for_all(count_ptr, n_programs):
    """Go on when n_programs have come here, and see what they wrote before.

    Args:
        count_ptr: int32, 0 before the launch.
        n_programs: Times the number of the barrier, from 1 on, as the count is never set back.
    """
    # also orders the writes of all threads before the one that arrives for them
    tl.debug_barrier()
    here = tl.atomic_add(count_ptr, 1, sem="acq_rel") + 1
    while here < n_programs:
        here = tl.atomic_add(count_ptr, 0, sem="acquire")
    tl.debug_barrier()


def programs_at_once(device: torch.device) -> int:
    """How many programs of any size may wait for each other: one on each multiprocessor.

    One in the interpreter, which runs programs one after the other.
    """
    pretended = rehearsal.current()
    if pretended is not None and not INTERPRET:
        return pretended.target.multiprocessors
    return _multiprocessors(device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if INTERPRET or device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
