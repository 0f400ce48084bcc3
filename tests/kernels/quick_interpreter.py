"""Takes from Triton's interpreter most of its time, which it spends on what it knows already.

It describes the type of every value anew, turns the functions of triton.language into those that
compute whenever a device function is called, and looks for overflow that it then keeps to itself.
Here types are remembered and functions are turned once per launch. Values and errors stay the same:
test_quick_interpreter.py compares.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import triton
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

KNOWN = "3.7."  # versions that are made of these parts

Function = Callable[..., Any]
RESTORE = pytest.StashKey[Callable[[], None]]()  # what `quicken` has returned for this session


def quicken() -> Callable[[], None]:
    """Make the interpreter of this process quick, if its version is known; the result undoes it."""
    if not triton.__version__.startswith(KNOWN):
        return lambda: None
    undo: list[Callable[[], None]] = []

    def replace(owner: Any, name: str, make: Function) -> None:
        """Put make(what is there) in its place."""
        old = vars(owner).get(name)
        was_there = functools.partial(setattr, owner, name, old)
        undo.append(functools.partial(delattr, owner, name) if old is None else was_there)
        setattr(owner, name, make(old))

    replace(interpreter, "inspect", _remembered_parameters)
    replace(interpreter, "_patch_lang", _once_per_launch)
    replace(interpreter, "_patch_builtin", _known_builtins)
    replace(interpreter, "_patch_attr", _turned)
    replace(interpreter, "_get_np_dtype", _numpy_types)
    replace(interpreter.TensorHandle, "__init__", _handles)
    replace(interpreter.InterpreterBuilder, "create_splat", _splats)
    replace(core.dtype, "__eq__", _equality)
    replace(core.block_type, "__init__", _block_types)
    replace(core.tensor, "__init__", _tensors)
    replace(core.tuple, "__init__", _tuples)
    replace(core.tuple, "type", _types_of_tuples)
    replace(core, "_unwrap_if_constexpr", _unwrapping)
    replace(TritonSemantic, "binary_op_sanitize_overflow_impl", _overflow)
    replace(TritonSemantic, "binary_op_type_checking_impl", _operands)
    replace(TritonSemantic, "broadcast_impl_value", _broadcasts)

    def restore() -> None:
        while undo:
            undo.pop()()

    return restore


def _remembered_parameters(module: Any) -> SimpleNamespace:
    """The module inspect, which looks at a function once."""
    names = functools.lru_cache(None)(inspect.getfullargspec)

    def getcallargs(fn: Function, *args: Any, **keywords: Any) -> dict[str, Any]:
        wanted = names(fn).args
        given = {**dict(zip(wanted, args, strict=False)), **keywords}
        if len(given) == len(wanted) == len(args) + len(keywords):
            return given
        return inspect.getcallargs(fn, *args, **keywords)

    return SimpleNamespace(**{**vars(module), "getfullargspec": names, "getcallargs": getcallargs})


def _once_per_launch(prepare: Function) -> Function:
    """The scope of a kernel ends with the launch; device functions need none of their own."""
    prepared = set[Function]()

    def prepare_once(fn: Function) -> Any:
        if fn in prepared:
            return None
        scope = prepare(fn)
        if not prepared:
            restore = scope.restore

            def end() -> None:
                prepared.clear()
                restore()

            scope.restore = end
        prepared.add(fn)
        return scope

    return prepare_once


def _known_builtins(patch: Function) -> Function:
    """Functions of a module or class are listed once, before the first is turned."""
    known: dict[Any, list[tuple[str, Any]]] = {}

    def patch_known(package: Any, builder: Any, scope: Any) -> None:
        if package not in known:
            members = inspect.getmembers(package)
            known[package] = [(k, x) for k, x in members if core.is_builtin(x)]
        for name, member in known[package]:
            if getattr(package, name) is member:
                interpreter._patch_attr(package, name, member, builder, scope)

    return patch_known


def _turned(_: Function) -> Function:
    def turn(package: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        # beneath is what a function does once it has seen that _semantic is there
        function, semantic = (
            getattr(member, "__wrapped__", member),
            interpreter.interpreter_semantic,
        )

        def compute(*args: Any, **keywords: Any) -> Any:
            keywords["_semantic"] = semantic
            return function(*args, **keywords)

        scope.set_attr(package, name, compute)

    return turn


def _numpy_types(make: Function) -> Function:
    known: dict[str, np.dtype[Any]] = {}

    def numpy_type(of: Any) -> np.dtype[Any]:
        scalar = of.element_ty if isinstance(of, core.block_type) else of
        name = str(scalar)
        if name not in known:
            known[name] = make(scalar)
        return known[name]

    return numpy_type


def _handles(make: Function) -> Function:
    def init(self: Any, data: Any, dtype: Any, attr: dict[str, Any] | None = None) -> None:
        self.data, self.dtype, self.attr = data, dtype, {} if attr is None else attr
        if data.itemsize > 1 and not isinstance(dtype, core.pointer_type):
            if 8 * data.itemsize > dtype.primitive_bitwidth:
                make(self, data, dtype)  # tells

    return init


def _splats(make: Function) -> Function:
    def create_splat(self: Any, kind: Any, x: Any) -> Any:
        if isinstance(x.dtype, core.block_type):
            return make(self, kind, x)
        data = np.empty(kind.shape.values, interpreter._get_np_dtype(x.dtype))
        data[...] = x.data
        return interpreter.TensorHandle(data, x.dtype.scalar)

    return create_splat


def _equality(equal: Function) -> Function:
    def same_or_equal(self: Any, other: Any) -> bool:
        return self is other or equal(self, other)

    return same_or_equal


def _block_types(make: Function) -> Function:
    known: dict[Any, dict[str, Any]] = {}

    def init(self: Any, element_ty: Any, shape: Sequence[Any]) -> None:
        sizes = shape.values if type(shape) is core.tuple else shape
        key = element_ty.name, *sizes
        found = known.get(key)
        if found is None:
            make(self, element_ty, shape)
            found = known[key] = dict(vars(self))
        vars(self).update(found)
        self.element_ty = element_ty

    return init


def _tensors(make: Function) -> Function:
    sizes: dict[Any, tuple[Any, Any]] = {}

    def init(self: Any, handle: Any, type: Any) -> None:
        key = (*type.shape.values,) if type.is_block() else ()
        found = sizes.get(key)
        if found is None:
            make(self, handle, type)
            found = sizes[key] = self.numel, self.shape
        self.numel, self.shape = found
        self.handle, self.type, self.dtype = handle, type, type.scalar

    return init


def _tuples(make: Function) -> Function:
    def init(self: Any, args: Any, type: Any = None) -> None:
        if type is None:
            self.values = [*args]
        else:
            make(self, args, type)

    return init


def _types_of_tuples(_: None) -> Any:
    """Found where somebody asks."""
    kind = functools.cached_property(lambda x: core._type_for_tuple_values(x.values))
    kind.__set_name__(core.tuple, "type")
    return kind


def _unwrapping(unwrap: Function) -> Function:
    plain = {int, float, bool, core.tensor, core.dtype, core.block_type, core.pointer_type}

    def unwrap_if_constexpr(x: Any) -> Any:
        if type(x) in plain:
            return x
        return x.value if type(x) is core.constexpr else unwrap(x)

    return unwrap_if_constexpr


def _overflow(check: Function) -> Function:
    """Looked for, with five operations per one, where it is told, which takes debug."""

    def look(self: Any, lhs: Any, rhs: Any, operation: Function) -> None:
        if self.builder.options.debug:
            check(self, lhs, rhs, operation)

    return look


def _operands(convert: Function) -> Function:
    """Operands of one type need no conversion, whatever the operation; a number becomes a block."""
    names = {"fp32", "fp64", "int32", "int64", "uint32", "uint64", "int1"}
    known: dict[Any, Any] = {}

    def constant(self: Any, x: int | float, like: Any) -> Any:
        kind = like.type
        key = x, type(x), like.dtype.name, *(kind.shape.values if kind.is_block() else ())
        found = known.get(key)
        if found is None:
            found = self.scalar_constant(x, like.dtype)
            if kind.is_block():
                found = self.splat(found, kind.shape)
            found.handle.data.flags.writeable = False  # as it is given out again
            known[key] = found
        return found

    def operands(self: Any, lhs: Any, rhs: Any, *rules: bool, **named: bool) -> tuple[Any, Any]:
        if type(lhs) is core.tensor:
            if type(rhs) is core.tensor:
                if lhs.dtype.name == rhs.dtype.name and lhs.dtype.name in names:
                    return self.broadcast_impl_value(lhs, rhs)
            elif rules[2:] == () and "arithmetic_check" not in named and _takes(lhs.dtype, rhs):
                return lhs, constant(self, rhs, lhs)
        elif type(rhs) is core.tensor and rules[2:] == () and "arithmetic_check" not in named:
            if _takes(rhs.dtype, lhs):
                return constant(self, lhs, rhs), rhs
        return convert(self, lhs, rhs, *rules, **named)

    return operands


def _takes(kind: Any, x: Any) -> bool:
    """Whether a number beside a tensor gets the tensor's type, without further questions."""
    if type(x) is float:
        return kind.name in ("fp32", "fp64")
    if type(x) is int and -(2**31) <= x < 2**31:
        return kind.name in ("fp32", "fp64", "int32", "int64")
    return False


def _broadcasts(broadcast: Function) -> Function:
    joint: dict[Any, list[int] | None] = {}  # shapes of two blocks: of one rank, which fit

    def joined(a: list[int], b: list[int]) -> list[int] | None:
        if len(a) != len(b) or any(x != y and 1 not in (x, y) for x, y in zip(a, b, strict=True)):
            return None
        return [y if x == 1 else x for x, y in zip(a, b, strict=True)]

    def widened(self: Any, x: Any, shape: list[int]) -> Any:
        if x.type.shape.values == shape:
            return x
        kind = core.block_type(x.dtype, shape)
        return core.tensor(self.builder.create_broadcast(x.handle, shape), kind)

    def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        a, b = lhs.type, rhs.type
        if not a.is_block() or not b.is_block():
            return broadcast(self, lhs, rhs)
        m, n = a.shape.values, b.shape.values
        if m == n:
            return lhs, rhs
        key = *m, None, *n
        if key not in joint:
            joint[key] = joined(m, n)
        shape = joint[key]
        if shape is None:
            return broadcast(self, lhs, rhs)
        return widened(self, lhs, shape), widened(self, rhs, shape)

    return broadcast_impl_value
