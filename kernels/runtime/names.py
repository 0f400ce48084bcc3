"""The names under which Triton caches kernels, made equal in all processes.

Triton names a kernel by a digest of its source, of the functions that it calls and of the constants
that these use. It works a function out once, and as 3.6 and 3.7 do it, a caller that comes before
its callee misses the callee's constants. So the name depends on which other kernels the process had
launched or compiled before, and what one process has compiled another one may not find. Here
callees come first.
"""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from .cache import Table, caches

_NAMED = caches.add(Table[Callable[..., Any], None](1 << 16))


def settle_name(kernel: Any) -> None:
    """Work out the name of a @triton.jit function after those of all that it calls.

    Before anything else asks for it: Triton works a name out once.
    """
    if not _has_name(kernel) or kernel.fn in _NAMED:
        return
    _NAMED[kernel.fn] = None
    for callee in _callees(kernel):
        settle_name(callee)
    _ = kernel.cache_key


def _callees(kernel: Any) -> Iterator[Any]:
    """The @triton.jit functions that a function finds by its global names, and by those in modules
    among them.
    """
    names, scope = kernel.fn.__code__.co_names, kernel.fn.__globals__
    modules = [x for x in map(scope.get, names) if isinstance(x, ModuleType)]
    for place in (scope, *map(vars, modules)):
        for found in map(place.get, names):
            if _has_name(found):
                yield found


def _has_name(x: object) -> bool:
    """Whether it is a @triton.jit function, and not interpreted; to ask itself would name it."""
    return hasattr(type(x), "cache_key")
