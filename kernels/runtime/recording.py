"""Records the kernel launches of a call and replays them for tensors of the same shapes.

What a stage of the rasterizer does on the host, sizes, grids, allocations, follows from the shapes
of its inputs and from flags alone. It takes longer than most kernels run. `run_recorded` records
the second call of a kind: which kernels `launch` starts, on which of the inputs and on which
buffers from `empty` and `zeros`, and which of these buffers are results. Later calls of the kind
make the results and one block for all other buffers, and start the same kernels: a few microseconds
each.

Buffers that no two kernels need at the same time share their place in the block, which a stream's
order allows. While a call is recorded, nothing but launched kernels may write what kernels read. A
kernel that reads memory of other origin, as a torch function returns it, is noticed, and then
every call of the kind runs as it is written.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import rehearsal
from ..device.intrinsics import INTERPRET
from .cache import Table, caches
from .launch import Start, watch, zero_grid

ALIGNMENT = 256  # bytes, of buffers within a block
_STREAM = object()  # its place among arguments
SEEN, NOT_RECORDED = 1, 2  # once, so that the next call is recorded; or that cannot be recorded

Results = tuple[Any, ...]  # tensors or None
Picker = Callable[[Sequence[Any]], tuple[Any, ...]]  # takes certain places of a sequence


class Scalar(int):
    """A number that differs from call to call of a kind."""


Inputs = Sequence[Tensor | Scalar | int | None]


class _Place(NamedTuple):
    """An argument that differs from call to call."""

    slot: int  # in the inputs, then the results, then the block
    offset: int  # bytes
    dtype: torch.dtype | None  # None: a number


class _Step(NamedTuple):
    start: Start
    grid: tuple[int, ...]
    args: list[object]  # some of them places

    def with_slots(self, number: Callable[[int], int]) -> "_Step":
        """The same step for slots of other numbers."""
        args = [x._replace(slot=number(x.slot)) if type(x) is _Place else x for x in self.args]
        return self._replace(args=args)


class _Made(NamedTuple):
    """A buffer that is a result."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


class _Segment(NamedTuple):
    """Steps before each of which nothing need be made but before the first."""

    make: list[int]  # results, or the block behind them
    constants: list[object]  # arguments of all steps
    places: list[_Place]  # and those that differ
    slots: Picker
    offsets: list[int]
    calls: list[tuple[Callable[..., object], Picker]]


def _segment(steps: list[_Step], make: list[int]) -> _Segment:
    """All arguments go into one list: the stream, constants, places. Each step picks its own."""
    places = list({x: None for step in steps for x in step.args if type(x) is _Place})
    constants: list[object] = []
    picked: list[list[object]] = []
    for start, grid, args in steps:
        picked.append([])
        for x in (*(*grid, 1, 1)[:3], _STREAM, *start.before, *args, *start.after):
            if type(x) is _Place or x is _STREAM:
                picked[-1].append(x)
            else:
                constants.append(x)
                picked[-1].append(len(constants))
    number: dict[object, int] = {x: 1 + len(constants) + k for k, x in enumerate(places)}
    number[_STREAM] = 0
    calls = [
        (step.start.call, _picker([x if type(x) is int else number[x] for x in places_of]))
        for step, places_of in zip(steps, picked, strict=True)
    ]
    slots, offsets = _picker([p.slot for p in places]), [p.offset for p in places]
    return _Segment(make, constants, places, slots, offsets, calls)


class Recording:
    """Kernels to start, one after the other; see `run_recorded`."""

    def __init__(
        self,
        inputs: Inputs,
        steps: list[_Step],
        results: list[_Made | None],
        block: int,
        device: torch.device,
    ) -> None:
        self.n_steps, self.device = len(steps), device
        # Behind the tensors and Scalars among the inputs come the results, then the block.
        tensors = [k for k, x in enumerate(inputs) if isinstance(x, Tensor)]
        scalars = [k for k, x in enumerate(inputs) if isinstance(x, Scalar)]
        self._tensors, self._scalars = _picker(tensors), _picker(scalars)
        self._n_inputs = n_inputs = len(tensors) + len(scalars)
        slots = [*tensors, *scalars, *range(len(inputs), len(inputs) + len(results) + 1)]
        steps = [step.with_slots(slots.index) for step in steps]
        self.made = [*results, _Made(torch.Size([block]), (1,), torch.int32)]
        self.segments = []
        waiting, first = {k for k, made in enumerate(self.made) if made is not None}, 0
        make: list[int] = []
        for k, step in enumerate(steps):
            used = {x.slot - n_inputs for x in step.args if type(x) is _Place} & waiting
            if used:
                if k > first:
                    self.segments.append(_segment(steps[first:k], make))
                first, make = k, sorted(used)
                waiting -= used
        make += sorted(waiting - {len(results)})  # of no kernel
        self.segments.append(_segment(steps[first:], make))

    def replay(self, inputs: Inputs) -> Results | None:
        """The results, or None where an input lies so that the kernels do not fit."""
        tensors = self._tensors(inputs)
        addresses = [*map(Tensor.data_ptr, tensors)]
        if functools.reduce(operator.or_, addresses) & 15:
            return None
        base = [*addresses, *self._scalars(inputs), *self.made]
        n_inputs, device = self._n_inputs, self.device
        slots: list[Tensor | None] = [None] * len(self.made)
        stream = 0 if INTERPRET else torch._C._cuda_getCurrentRawStream(device.index)
        for make, constants, places, pick_slots, offsets, calls in self.segments:
            for k in make:
                shape, strides, dtype = self.made[k]  # type: ignore[misc]
                # half the time of torch.empty
                x = slots[k] = torch.empty_strided(shape, strides, dtype=dtype, device=device)
                base[n_inputs + k] = x.data_ptr()
            if INTERPRET:
                values = (*tensors, *self._scalars(inputs), *slots)
                pool = [stream, *constants, *[_at(values[p.slot], p) for p in places]]
            else:
                pool = [stream, *constants, *map(operator.add, pick_slots(base), offsets)]
            for call, pick in calls:
                call(*pick(pool))
        slots.pop()  # the block
        return tuple(slots)


def _picker(places: list[int]) -> Picker:
    """What takes these places of a sequence."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    if places:
        return lambda x: (x[places[0]],)
    return lambda x: ()


def _at(x: Tensor | int, place: _Place) -> Tensor | int:
    """What Triton's interpreter takes for an address."""
    if place.dtype is None or not isinstance(x, Tensor):
        return x
    there = x.detach().reshape(-1).view(torch.uint8)[place.offset :]
    return there[: len(there) // 8 * 8 or None].view(place.dtype)


class Recorder:
    """Watches what one call does."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.slots: dict[int, int] = {}  # address, or identity of a Scalar -> input
        self.buffers: list[Tensor] = []  # kept, so that no other takes their place
        self.uses: list[tuple[int, int]] = []  # first and last step of a buffer
        self.steps: list[_Step] = []
        self.zeroed: dict[int, int] = {}  # buffer -> the step that does it
        self.complete = True
        for slot, x in enumerate(inputs):
            if x is None:
                continue
            name = x.data_ptr() if isinstance(x, Tensor) else id(x)
            # Compiled kernels rely on alignment.
            self.complete &= name not in self.slots and not (isinstance(x, Tensor) and name & 15)
            self.slots[name] = slot

    def buffer(self, x: Tensor) -> None:
        self.buffers.append(x)
        self.uses.append((len(self.steps), -1))

    def zeroing(self) -> None:
        self.zeroed[len(self.buffers) - 1] = len(self.steps)

    def launched(self, start: Start, grid: tuple[int, ...], args: Sequence[object]) -> None:
        noted: list[object] = list(args)
        for position, x in enumerate(args):
            if isinstance(x, Tensor):
                found = self._find(x)
                noted[position] = found and _Place(*found, x.dtype)
                self.complete &= found is not None
            elif isinstance(x, Scalar):
                noted[position] = _Place(self.slots[id(x)], 0, None)
        self.steps.append(_Step(start, grid, noted))

    def _find(self, x: Tensor) -> tuple[int, int] | None:
        """Slot and offset; buffers are numbered from after the inputs."""
        address = x.data_ptr()
        if address in self.slots:
            return self.slots[address], 0
        for slot, given in enumerate(self.inputs):
            if isinstance(given, Tensor) and given.is_contiguous():
                offset = address - given.data_ptr()
                if 0 <= offset < given.nbytes:
                    return slot, offset
        for k, buffer in enumerate(self.buffers):
            offset = address - buffer.data_ptr()
            if 0 <= offset < buffer.nbytes:
                self.uses[k] = (self.uses[k][0], len(self.steps))
                return len(self.inputs) + k, offset
        return None

    def recording(self, results: Results, device: torch.device) -> Recording | None:
        """What makes the same results, if all that was done is known."""
        n_inputs = len(self.inputs)
        made: list[_Made | None] = [None] * len(results)
        place: dict[int, tuple[int, int]] = {}
        for k, x in enumerate(results):
            if x is None:
                continue
            found = self._find(x)
            if found is None or found[0] < n_inputs or found[1]:
                return None
            number = found[0] - n_inputs
            buffer = self.buffers[number]
            same = buffer.dtype == x.dtype and buffer.shape == x.shape
            if number in place or not same or not x.is_contiguous():
                return None
            place[number] = (n_inputs + k, 0)
            made[k] = _Made(x.shape, x.stride(), x.dtype)
        if not self.complete:
            return None
        # Zeros of the block are written together, and before all else.
        zeroed = [k for k in self.zeroed if k not in place]
        for k in zeroed:
            self.uses[k] = (0, self.uses[k][1])
        others = [k for k in range(len(self.buffers)) if k not in place and k not in zeroed]
        offsets, size, n_zeros = self._overlay(zeroed, others)
        block = n_inputs + len(results)
        place |= {k: (block, offset) for k, offset in offsets.items()}

        def settled(x: object) -> object:
            if type(x) is not _Place or x.slot < n_inputs:
                return x
            slot, first = place[x.slot - n_inputs]
            return _Place(slot, first + x.offset, x.dtype)

        done = {self.zeroed[k] for k in zeroed}
        steps = [
            s._replace(args=[settled(x) for x in s.args])
            for k, s in enumerate(self.steps)
            if k not in done
        ]
        if zeroed:
            start = self.steps[self.zeroed[zeroed[0]]].start
            whole: list[object] = [_Place(block, 0, torch.int32), n_zeros]
            steps.insert(0, _Step(start, zero_grid(n_zeros), whole))
        return Recording(self.inputs, steps, made, -(-size // 4), device)

    def _overlay(self, zeroed: list[int], others: list[int]) -> tuple[dict[int, int], int, int]:
        """Offsets and bytes of buffers, and words of those with zeros, which come first.

        The others follow, the largest first, each as low as those of its time allow.
        """
        offsets: dict[int, int] = {}
        size = {k: -(-self.buffers[k].nbytes // ALIGNMENT) * ALIGNMENT for k in zeroed + others}
        n_zeros = 0
        for k in zeroed:
            offsets[k] = n_zeros
            n_zeros += size[k]
        for k in sorted(others, key=lambda k: -size[k]):
            first, last = self.uses[k]
            rivals = sorted(
                (offsets[j], offsets[j] + size[j])
                for j in offsets
                if self.uses[j][0] <= last and first <= self.uses[j][1]
            )
            at = 0
            for begin, end in rivals:
                if at + size[k] <= begin:
                    break
                at = max(at, end)
            offsets[k] = at
        return offsets, max((offsets[k] + size[k] for k in offsets), default=0), n_zeros // 4


_recordings = caches.add(Table[Hashable, Recording | int]())  # or how often a kind was seen
_names = itertools.count()


def new_name() -> int:
    """A number that stands for a kind: quicker to compare, and part of further kinds."""
    return next(_names)


def shape_of(x: Tensor | int | None) -> torch.Size | bool:
    """For a kind: the shape of a tensor, and whether there is one."""
    return x.shape if isinstance(x, Tensor) else x is None


def run_recorded(
    kind: Hashable,
    inputs: Inputs,
    run: Callable[..., Results],
) -> Results:
    """The results of run(), which launches kernels.

    Args:
        kind: All that `run` depends on besides addresses: shapes, dtypes, flags.
        inputs: Contiguous tensors on one device and numbers that kernels get. Only a Scalar may
            differ between calls of a kind.
        run: Makes results with `empty` and `zeros` of runtime/launch.py and fills them by `launch`.
    """
    if rehearsal.current() is not None:
        return run()
    found = _recordings.get(kind, 0)
    if type(found) is Recording:
        results = found.replay(inputs)
        return run() if results is None else results
    if found != SEEN:
        if found == 0:
            _recordings[kind] = SEEN
        return run()
    device = next(x.device for x in inputs if isinstance(x, Tensor))
    recorder = Recorder(inputs)
    with watch(recorder):
        results = run()
    _recordings[kind] = recorder.recording(results, device) or NOT_RECORDED
    return results
