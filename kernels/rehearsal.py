"""Rehearsals: calls of kernels/ on CPU tensors that note which kernels they would launch.

Triton compiles a kernel anew for every combination of its constants, and of arguments that are
None or not aligned to 16 bytes. A training takes many such variants, some of them only after
minutes. Within `rehearsing`, a call goes its usual way with tensors on the CPU, but launches
nothing: its variants are collected, so that others can compile them at the same time
(runtime/variants.py). Outputs are ones: what is seen and drawn.

What a call launches also follows from the device and, in a sort, from the number of keys. Both are
pretended.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Target(NamedTuple):
    """A GPU to compile for."""

    capability: int
    """Ten times the major version plus the minor one: 90."""
    multiprocessors: int
    """How many it has."""


class Launch(NamedTuple):
    """A launch that stands for its variant."""

    kernel: Any
    """The @triton.jit function."""
    args: tuple[object, ...]
    constants: dict[str, object]
    options: dict[str, object]
    """Keywords of Triton's own: num_warps, maxnreg, launch_cooperative_grid."""


class Rehearsal:
    """What was launched, by label of the variant.

    Args:
        target: What is pretended to launch it.
        n_keys: How many keys sorts pretend to have.
    """

    def __init__(self, target: Target, n_keys: int = 1) -> None:
        self.target, self.n_keys = target, n_keys
        self.launches: dict[str, Launch] = {}

    def launched(
        self,
        kernel: Any,
        args: tuple[object, ...],
        constants: dict[str, object],
        options: dict[str, object],
    ) -> None:
        """Note a launch."""
        name = label(kernel, args, constants, options)
        self.launches.setdefault(name, Launch(kernel, args, constants, options))


class _Thread(threading.local):
    rehearsal: Rehearsal | None = None


_thread = _Thread()


def current() -> Rehearsal | None:
    """The rehearsal that this thread is in."""
    return _thread.rehearsal


@contextlib.contextmanager
def rehearsing(rehearsal: Rehearsal) -> Iterator[None]:
    """Let this thread's launches go to `rehearsal`."""
    _thread.rehearsal = rehearsal
    try:
        with _Ones():
            yield
    finally:
        _thread.rehearsal = None


def label(
    kernel: Any,
    args: Sequence[object],
    constants: Mapping[str, object],
    options: Mapping[str, object],
) -> str:
    """What variants of all kernels differ in, as text: equal in all processes.

    An argument that is None or not aligned is named by its position.
    """
    special = [
        f"{k}=None" if x is None else f"{k}@"
        for k, x in enumerate(args)
        if x is None or (isinstance(x, Tensor) and x.data_ptr() & 15)
    ]
    named = [f"{name}={value}" for name, value in {**constants, **options}.items()]
    return f"{kernel.fn.__module__}.{kernel.fn.__name__}({', '.join([*special, *named])})"


_FILLED: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.empty: torch.ones,
    torch.empty_like: torch.ones_like,
}


class _Ones(TorchFunctionMode):
    """Ones where a kernel would have written: what lay there may be no number."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _FILLED.get(func, func)(*args, **(kwargs or {}))
