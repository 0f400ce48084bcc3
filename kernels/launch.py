"""Launches of compiled Triton kernels in a few microseconds.

`kernel[grid](...)` specialises every argument, compares every global that a kernel reads and asks
the driver about every pointer, which takes longer than most of these kernels run. Here a compiled
kernel is found by its constants and by which arguments are None, and gets addresses. That is
enough because these kernels specialise on nothing else: all their integers are do_not_specialize,
all tensors are aligned to 16 bytes (others take the slow way), and a tensor's dtype follows from
the constants.
"""

from typing import Any

import torch
from torch import Tensor

from .device import INTERPRET

_compiled: dict[tuple[Any, ...], Any] = {}


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int = 4,
    maxnreg: int | None = None,
    **constants: Any,
) -> None:
    """Run `kernel[grid](*args, **constants)` on the current device and stream.

    Args:
        kernel: A @triton.jit function whose constexpr parameters come last.
        grid: One to three sizes; a zero launches nothing.
        args: All arguments that are not constexpr, in order: contiguous tensors, None, numbers.
        num_warps: Warps per program.
        maxnreg: Registers per thread at most, so that more programs fit.
        constants: All constexpr arguments, in the order of the kernel's parameters.

    Raises:
        TypeError: an integer parameter of the kernel is specialised on its value.
    """
    if 0 in grid:
        return
    if INTERPRET:
        kernel[grid](*args, **constants)
        return
    plain, bits, absent = [], 0, []
    for i, x in enumerate(args):
        if isinstance(x, Tensor):
            x = x.data_ptr()
            bits |= x
        elif x is None:
            absent.append(i)
        plain.append(x)
    values = constants.values()
    device = torch._C._cuda_getDevice()
    key = (kernel.fn, device, num_warps, maxnreg, *values, *absent)
    compiled = _compiled.get(key)
    if compiled is None or bits & 15:
        _check_integers(kernel, args)
        compiled = kernel[grid](*args, **constants, num_warps=num_warps, maxnreg=maxnreg)
        if not bits & 15:
            _compiled[key] = compiled
        return
    x, y, z = (*grid, 1, 1)[:3]
    stream = torch._C._cuda_getCurrentRawStream(device)
    compiled.run(
        x, y, z, stream, compiled.function, compiled.packed_metadata, None, None, None,
        *plain, *values,
    )  # fmt: skip


def _check_integers(kernel: Any, args: tuple[Any, ...]) -> None:
    for parameter, x in zip(kernel.params, args, strict=False):
        if isinstance(x, int) and not parameter.do_not_specialize:
            raise TypeError(f"{kernel.__name__}: {parameter.name} must be do_not_specialize")
