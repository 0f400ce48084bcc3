"""Compiles kernels' variants in several processes, without a GPU, into Triton's cache on disk.

A variant is compiled by the very call that would launch it (Triton's `run` with `warmup`), under a
driver that names the GPU and does nothing else. So it lies in the cache under the key that a
launch looks for.

Processes, not threads: half of a compilation holds the interpreter's lock. Over 102 variants for
sm_90, 107 s of 119 s are spent in the process itself (building the IR 28 %, passes of Triton and
LLVM), the others in ptxas. The 47 of a default training take one core 41 s: project_bwd_kernel and
project_fwd_kernel 1.2 to 2.6 s for each degree, in all 18 s; the passes of the sort 10 s; losses
and SSIM 9 s. Triton 3.6 also calls a C compiler for each signature, 0.2 s.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.queues import SimpleQueue
from multiprocessing.sharedctypes import Synchronized
from types import MappingProxyType
from typing import Any, NamedTuple

import triton
import triton.backends.nvidia.driver as nvidia
from triton.backends.compiler import GPUTarget

from ..rehearsal import Launch, Target
from .names import settle_name

POLL = 0.05  # seconds between looks at processes that may have died
WARP = 32
# Of one turn, those that take longest come first: the last one to begin should be a short one.
DEAREST = ("project", "place", "blend", "ssim_maps", "decode", "order", "sort")


class Compiled(NamedTuple):
    """What became of a variant."""

    label: str
    seconds: float
    """Of its process; nearly none where the cache has it."""
    error: str
    """Why it failed; "" where it did not."""


class _Driver:
    """What Triton asks of a driver before it launches."""

    def __init__(self, target: Target) -> None:
        self._target = GPUTarget("cuda", target.capability, WARP)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_variants(
    launches: dict[str, Launch],
    target: Target,
    n_processes: int,
    *,
    turns: Mapping[str, int] = MappingProxyType({}),
    tell: Callable[[Compiled], None] = lambda _: None,
    stops: Callable[[], bool] = lambda: False,
) -> list[Compiled]:
    """Compile what a rehearsal has collected.

    Args:
        launches: By label.
        target: The GPU that will run them.
        n_processes: How many compile at the same time.
        turns: By label, which are needed earlier than others: those of the lower number.
        tell: Called after each.
        stops: Whether to give up.

    Returns:
        What became of each; those of a process that died are missing.
    """
    context = multiprocessing.get_context("fork")  # the launches are there without being sent
    order = sorted(launches, key=lambda name: (turns.get(name, 0), _rank(name)))
    position, results = context.Value("i", 0), context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(launches, order, target, position, results))
        for _ in range(min(n_processes, len(order)))
    ]
    for process in processes:
        process.daemon = True
        process.start()
    builder = context.Process(target=_build_driver, daemon=True)
    builder.start()
    done: list[Compiled] = []
    while len(done) < len(order) and not stops():
        alive = any(process.is_alive() for process in processes)
        if not results.empty():
            done.append(results.get())
            tell(done[-1])
        elif not alive:
            break
        else:
            time.sleep(POLL)
    for process in (*processes, builder):
        if stops() or process is not builder:
            process.terminate()
        process.join()
    return done


def _build_driver() -> None:
    """The C module by which Triton talks to the GPU, which is cached as well."""
    if all(map(os.path.exists, _libcuda_folders())):
        nvidia.CudaUtils()


def _rank(label: str) -> tuple[int, str]:
    name = label.split("(")[0].rpartition(".")[2].strip("_")
    found = [k for k, start in enumerate(DEAREST) if name.startswith(start)]
    return min(found, default=len(DEAREST)), label


def _work(
    launches: dict[str, Launch],
    order: Sequence[str],
    target: Target,
    position: "Synchronized[int]",
    results: "SimpleQueue[Compiled]",
) -> None:
    """A process: take the next variant until there is none."""
    parent = os.getppid()
    triton.runtime.driver.set_active(_Driver(target))  # pyright: ignore[reportArgumentType]
    while os.getppid() == parent:
        with position.get_lock():
            k, position.value = position.value, position.value + 1
        if k >= len(order):
            return
        started, error = time.perf_counter(), ""
        try:
            compile_variant(launches[order[k]])
        # whatever one variant cannot have, the launch will say again
        except Exception as failure:  # noqa: BLE001
            error = f"{type(failure).__name__}: {failure}"
        results.put(Compiled(order[k], time.perf_counter() - started, error))


def compile_variant(launch: Launch) -> None:
    """Compile a variant for the active driver's GPU, unless it is cached."""
    kernel, args, constants, options = launch
    settle_name(kernel)
    compiled: Any = kernel.run(*args, grid=(1,), warmup=True, **constants, **options)
    # Triton 3.7 has one for all kernels
    if hasattr(nvidia, "make_launcher") and all(map(os.path.exists, _libcuda_folders())):
        nvidia.CudaLauncher(compiled.src, compiled.metadata)


def _libcuda_folders() -> list[str]:
    """Where the driver's library is; without it nothing can be linked."""
    try:
        return nvidia.libcuda_dirs()
    except (AssertionError, OSError):
        return ["/nowhere"]
