"""Launches compiled Triton kernels in a few microseconds.

`kernel[grid](...)` specialises every argument, compares every global that a kernel reads and asks
the driver about every pointer, which takes longer than most of these kernels run. Here a compiled
kernel is found by its constants and by which arguments are None or not aligned to 16 bytes, and
gets addresses. That is enough because these kernels specialise on nothing else: all their integers
are do_not_specialize, and a tensor's dtype follows from the constants. What Triton's own launcher
does in Python for every launch, allocate scratch memory, is left out for kernels that ask for none:
they go straight to its function in C.
"""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import triton
import triton.backends.nvidia.driver as driver
import triton.language as tl
from torch import Tensor
from triton.runtime import cache

from .. import rehearsal
from ..device.intrinsics import INTERPRET
from .cache import Table, caches
from .foreseen import await_variant
from .names import settle_name

ZEROS = 64 if INTERPRET.value else 4096  # words per program that writes zeros


class Start(NamedTuple):
    """call(x, y, z, stream, *before, *arguments that are not constexpr, *after)."""

    call: Callable[..., object]
    before: tuple[object, ...]
    after: tuple[object, ...]


_compiled = caches.add(Table[tuple[object, ...], Start](sys.maxsize))


class Kernel(Protocol):
    """A @triton.jit function, compiled or interpreted."""

    @property
    def fn(self) -> Any: ...

    @property
    def params(self) -> Sequence[Any]: ...

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]: ...


class Watcher(Protocol):
    """Sees what is launched, and on which buffers."""

    def buffer(self, x: Tensor) -> None: ...

    def zeroing(self) -> None:
        """The next launch writes zeros and nothing else, to the last buffer."""
        ...

    def launched(self, start: Start, grid: tuple[int, ...], args: Sequence[object]) -> None: ...


class _Watching(threading.local):
    by: Watcher | None = None


_watching = _Watching()


@contextlib.contextmanager
def watch(watcher: Watcher) -> Iterator[None]:
    """Let `watcher` see this thread's launches and buffers."""
    _watching.by = watcher
    try:
        yield
    finally:
        _watching.by = None


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As torch.empty, for what kernels write."""
    x = torch.empty(shape, dtype=dtype, device=device)
    if _watching.by is not None:
        _watching.by.buffer(x)
    return x


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As torch.zeros, of 32-bit numbers, for what kernels add to."""
    x = empty(shape, dtype, device)
    n = x.numel()
    if _watching.by is not None and n > 0:
        _watching.by.zeroing()
    launch(_zero_kernel, zero_grid(n), x.view(torch.int32), n, BLOCK=ZEROS)
    return x


def zero_grid(n: int) -> tuple[int]:
    """Programs that write n words of zeros."""
    return (-(-n // ZEROS),)


@triton.jit(do_not_specialize=["n"])
def _zero_kernel(
    x_ptr,  # [n] int32 out
    n,
    BLOCK: tl.constexpr,
):
    base = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    if base + BLOCK <= n:  # without a mask a lane writes 16 bytes
        tl.store(x_ptr + base + i, tl.zeros([BLOCK], tl.int32))
    else:
        tl.store(x_ptr + base + i, tl.zeros([BLOCK], tl.int32), mask=base + i < n)


def launch(
    kernel: Kernel,
    grid: tuple[int, ...],
    *args: object,
    num_warps: int = 4,
    maxnreg: int | None = None,
    cooperative: bool = False,
    **constants: object,
) -> None:
    """Run `kernel[grid](*args, **constants)` on the current device and stream.

    Args:
        kernel: A @triton.jit function whose constexpr parameters come last.
        grid: One to three sizes; a zero launches nothing.
        args: All arguments that are not constexpr, in order: contiguous tensors, None, numbers.
        num_warps: Warps per program.
        maxnreg: Registers per thread at most, so that more programs fit.
        cooperative: All programs run at the same time (device/grid_barrier.py).
        constants: All constexpr arguments, in the order of the kernel's parameters.

    Raises:
        TypeError: an integer parameter of the kernel is specialised on its value.
    """
    rehearsed = rehearsal.current()
    if rehearsed is not None:
        rehearsed.launched(kernel, args, constants, _options(num_warps, maxnreg, cooperative))
        return
    if 0 in grid:
        return
    if INTERPRET:
        kernel[grid](*args, **constants)
        if _watching.by is not None:
            start = Start(functools.partial(_interpret, kernel, constants), (), ())
            _watching.by.launched(start, grid, args)
        return
    plain, special = [], []
    for x in args:
        if x is None:
            special.append(len(plain))
        elif isinstance(x, Tensor):
            x = x.data_ptr()
            if x & 15:
                special.append(~len(plain))
        plain.append(x)
    device = torch._C._cuda_getDevice()
    key = (kernel.fn, device, num_warps, maxnreg, *constants.values(), *special)
    start = _compiled.get(key)
    if start is None:
        _check_integers(kernel, args)
        settle_name(kernel)
        options = _options(num_warps, maxnreg, cooperative)
        await_variant(rehearsal.label(kernel, args, constants, options))
        compiled = kernel[grid](*args, **constants, **options)
        start = _compiled[key] = _starter(compiled, tuple(constants.values()))
    else:
        x, y, z = (*grid, 1, 1)[:3]
        stream = torch._C._cuda_getCurrentRawStream(device)
        start.call(x, y, z, stream, *start.before, *plain, *start.after)
    if _watching.by is not None:
        _watching.by.launched(start, grid, args)


def _options(num_warps: int, maxnreg: int | None, cooperative: bool) -> dict[str, object]:
    """As Triton names them."""
    return {
        "num_warps": num_warps,
        "maxnreg": maxnreg,
        "launch_cooperative_grid": cooperative,
    }


def warm_up(device: torch.device) -> None:
    """Do what a process does once before its first kernel: open the GPU, and have Triton hash its
    own files, by which it finds compiled kernels (0.4 to 1 s).

    For a thread beside the loading of a scene; most of it needs no interpreter lock.
    """
    torch.zeros(1, device=device)
    # older Tritons keep it elsewhere
    key = getattr(cache, "triton_key", None)
    if key is not None and not INTERPRET:
        key()


def _interpret(
    kernel: Any, constants: dict[str, object], x: int, y: int, z: int, _: int, *args: object
) -> None:
    kernel[(x, y, z)](*args, **constants)


def _starter(compiled: Any, constants: tuple[object, ...]) -> Start:
    """How to start a compiled kernel with as little Python as its launcher allows."""
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    # Triton's hooks, for profilers of its own, are not called.
    hooks = (None, None, None)
    needs = ("global_scratch_size", "profile_scratch_size", "launch_pdl")
    if not any(getattr(run, name, True) for name in needs):
        in_c, cooperative = run.launch, run.launch_cooperative_grid
        if hasattr(run, "arg_annotations"):  # Triton 3.7
            last = (metadata, *hooks, None, None, run.arg_annotations, run.kernel_signature)

            def call(x: int, y: int, z: int, stream: int, *args: object) -> None:
                in_c(x, y, z, stream, function, cooperative, False, *last, args)

            return Start(call, (), constants)
        if getattr(driver, "_BASE_ARGS_FORMAT", None) == "iiiKKppOOOOOO":  # Triton 3.6
            before = (function, cooperative, False, None, None, metadata, *hooks)
            return Start(in_c, before, constants)
    return Start(run, (function, metadata, *hooks), constants)


def _check_integers(kernel: Kernel, args: tuple[object, ...]) -> None:
    for parameter, x in zip(kernel.params, args, strict=False):
        if isinstance(x, int) and not parameter.do_not_specialize:
            raise TypeError(f"{kernel.fn.__name__}: {parameter.name} must be do_not_specialize")
