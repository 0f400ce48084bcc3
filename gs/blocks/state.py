"""A block's state on the host: every tensor of it a view of one arena, copied there and back.

A swap is a deep copy: parameters, Adam's moments and counts, row buffers and the state of
strategies, by name. No optimizer and no parameter object survives it, so none can be keyed by
tensors that have moved on, and nothing on the host shares memory with what is trained.

    state = BlockState.to_host(run_state, arena)    gs.training.run_state's dictionary of a block
    run_state = state.to_device(device)             the same values in new tensors

The arena is page-locked where there is a CUDA device, and copies then run beside the GPU's work:
give a stream. Each filling of an arena has a generation; a state of an older one raises instead of
giving another block's numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SplatrimError

ALIGNMENT = 256  # bytes; of every tensor's beginning
CANARY = 0xFF  # of bytes that nobody owns: NaN as float32, negative as an integer


class StaleState(RuntimeError):
    """A state was asked for after its arena had been filled anew, or emptied."""


@dataclass(frozen=True)
class _Slot:
    """Where a tensor lies in an arena."""

    first: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def of(self, slab: Tensor) -> Tensor:
        """The tensor, as a view of a slab of bytes."""
        view = slab[self.first : self.first + self.n_bytes]
        return view.view(self.dtype).view(self.shape)


class HostArena:
    """One slab of host memory, which holds one block's state at a time.

    Args:
        pinned: Page-locked, so that copies can be asynchronous; default: where there is a CUDA
            device.
        poisons: Fill the slab with a canary when it is emptied, so that a late reader is noticed.
    """

    def __init__(self, *, pinned: bool | None = None, poisons: bool = False) -> None:
        self.pinned = torch.cuda.is_available() if pinned is None else pinned
        self.poisons = poisons
        self.generation = 0
        self._slab = torch.empty(0, dtype=torch.uint8)
        self._busy: torch.cuda.Event | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes that it has taken of the host."""
        return len(self._slab)

    def empty(self) -> None:
        """Give up what it holds; states of it are stale from now on."""
        self.wait()
        self.generation += 1
        if self.poisons:
            self._slab.fill_(CANARY)

    def take(self, n_bytes: int) -> Tensor:  # [n_bytes] uint8
        """Empty it and hand out the first bytes; a slab that is too small grows to a power of two.

        Raises:
            SplatrimError: the host has no such memory left.
        """
        self.empty()
        if n_bytes > len(self._slab):
            # to a power of two, as torch would: it hands on what others have outgrown
            size = 1 << (n_bytes - 1).bit_length()
            # both at once would be too much
            self._slab = torch.empty(0, dtype=torch.uint8)
            try:
                self._slab = torch.empty(size, dtype=torch.uint8, pin_memory=self.pinned)
            except RuntimeError as error:
                raise SplatrimError(
                    f"no {size / 1e9:.1f} GB of host memory are left for a block's state: "
                    "give more --blocks or free some"
                ) from error
            if self.poisons:
                self._slab.fill_(CANARY)
        return self._slab[:n_bytes]

    def bytes_of(self, generation: int) -> Tensor:  # [n_bytes] uint8
        """The slab as it was filled in a generation, once copies have ended.

        Raises:
            StaleState: it has been emptied since.
        """
        if generation != self.generation:
            raise StaleState(
                f"a block's state of generation {generation} was asked for, and the arena holds "
                f"generation {self.generation}"
            )
        self.wait()
        return self._slab

    def record(self, stream: torch.cuda.Stream) -> None:
        """Note that a stream copies from or to it until the stream comes to this point."""
        self._busy = torch.cuda.Event()
        self._busy.record(stream)

    def wait(self) -> None:
        """Let the host wait until noted copies have ended."""
        if self._busy is not None:
            self._busy.synchronize()
            self._busy = None


@dataclass(frozen=True)
class BlockState:
    """A block's state in an arena."""

    arena: HostArena
    generation: int
    n_bytes: int
    slots: dict[str, _Slot]
    """Of every tensor, by its path in the state: "params/means", "optimizer/means/exp_avg"."""
    plain: dict[str, Any]
    """The state without tensors: numbers, text and containers of those, copied."""

    @classmethod
    def to_host(
        cls, state: dict[str, Any], arena: HostArena, stream: torch.cuda.Stream | None = None
    ) -> BlockState:
        """Copy a state into an arena, which gives up what it held.

        Args:
            state: As gs.training.run_state has it; tensors on any device.
            arena: Where to.
            stream: Copies run on it, after what the current stream has been given so far. The state
                may be freed at once, and changed in place by what waits for the stream. None: the
                copy has ended when this returns.

        Raises:
            SplatrimError: the host has not enough memory.
        """
        tensors = dict(_tensors(state, ""))
        slots, n_bytes = _layout(tensors.items())
        slab = arena.take(n_bytes)
        if stream is None:
            for path, slot in slots.items():
                slot.of(slab).copy_(tensors[path])
        else:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
            with torch.cuda.stream(stream):
                for path, slot in slots.items():
                    slot.of(slab).copy_(tensors[path], non_blocking=True)
                    if tensors[path].is_cuda:  # its memory is not given away before
                        tensors[path].record_stream(stream)
            arena.record(stream)
        return cls(arena, arena.generation, n_bytes, slots, _without_tensors(state))

    def tensors(self) -> dict[str, Tensor]:
        """Views of the arena by path, once copies have ended. Raises StaleState."""
        slab = self.arena.bytes_of(self.generation)
        return {path: slot.of(slab) for path, slot in self.slots.items()}

    def on_host(self) -> dict[str, Any]:
        """The state with views of the arena as tensors, for a file. Raises StaleState."""
        return _filled(self.plain, self.tensors())

    def to_device(
        self, device: torch.device | str, stream: torch.cuda.Stream | None = None
    ) -> dict[str, Any]:
        """The state in new tensors, which share memory with nothing else.

        Args:
            device: Where to. All tensors become views of one allocation.
            stream: Copies run on it, and the current stream waits for them before what it is given
                next. None: on the current stream.

        Raises:
            StaleState: the arena has been emptied or filled anew.
        """
        return self.begin_to_device(device, stream).arrived()

    def begin_to_device(
        self, device: torch.device | str, stream: torch.cuda.Stream | None = None
    ) -> Arriving:
        """As `to_device`, where nothing waits for the copies before `arrived`."""
        device, slab = torch.device(device), self.arena.bytes_of(self.generation)[: self.n_bytes]
        if device.type != "cuda":
            return Arriving(self, slab.clone(), None)
        copies = stream or torch.cuda.current_stream(device)
        with torch.cuda.stream(copies):
            copied = torch.empty(self.n_bytes, dtype=torch.uint8, device=device)
            copied.copy_(slab, non_blocking=True)
        self.arena.record(copies)
        return Arriving(self, copied, copies)


@dataclass(frozen=True)
class Arriving:
    """A state that is copied to a device."""

    state: BlockState
    copied: Tensor
    """The arena's bytes. [n_bytes] uint8"""
    stream: torch.cuda.Stream | None
    """That copies; None where it is done."""

    def arrived(self) -> dict[str, Any]:
        """The state; what the current stream is given next waits for it."""
        if self.stream is not None:
            current = torch.cuda.current_stream(self.copied.device)
            current.wait_stream(self.stream)
            self.copied.record_stream(current)
        tensors = {path: slot.of(self.copied) for path, slot in self.state.slots.items()}
        return _filled(self.state.plain, tensors)


def _layout(tensors: Iterable[tuple[str, Tensor]]) -> tuple[dict[str, _Slot], int]:
    slots, first = {}, 0
    for path, tensor in tensors:
        slots[path] = _Slot(first, tensor.shape, tensor.dtype)
        first += -(-slots[path].n_bytes // ALIGNMENT) * ALIGNMENT
    return slots, first


def _tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested containers, by its path."""
    if isinstance(value, Tensor):
        yield path, value.detach()
    for name, item in _items(value):
        yield from _tensors(item, f"{path}/{name}" if path else str(name))


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor."""

    path: str


def _without_tensors(value: Any, path: str = "") -> Any:
    """A copy of nested containers in which places stand for tensors."""
    if isinstance(value, Tensor):
        return _Place(path)
    copied = {
        name: _without_tensors(item, f"{path}/{name}" if path else str(name))
        for name, item in _items(value)
    }
    if isinstance(value, (list, tuple)):
        return type(value)(copied.values())
    return copied if isinstance(value, dict) else value


def _filled(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The reverse of `_without_tensors`, with these tensors."""
    if isinstance(value, _Place):
        return tensors[value.path]
    if isinstance(value, dict):
        return {name: _filled(item, tensors) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(item, tensors) for item in value)
    return value
