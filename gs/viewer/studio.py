"""Draws pictures of a model for those who look on, and sends them.

Drawing queues work in the stream of the training, if there is one, and waits for nothing. A thread
waits for pictures to arrive on the host, and hands them to the guest.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import Capacity, Counts

from ..data.camera import Camera
from .pace import Pace
from .picture import Look, Subject, beside, fitted

SLACK = 1.3  # capacity over the counts of the picture before
MAX_PLACES = 8  # sizes of pictures whose memory is kept


class Guest(Protocol):
    """Who looks on; a Visitor is one."""

    waits: bool
    """Whether there is something to see that it has not got."""
    drawn_at: float
    """Scale of its latest picture."""

    @property
    def moving(self) -> bool: ...

    def size(self, scale: float) -> tuple[int, int]: ...

    def camera(self, width: int, height: int, near: float) -> Camera: ...

    def show(self, pixels: NDArray[np.uint8]) -> None:
        """Look at a picture, [H, W, 3], which the next one overwrites."""
        ...


class _Sent(NamedTuple):
    """A picture on its way to the host."""

    guest: Guest
    pixels: Tensor
    """[H, W, 3] uint8, on the host once `ends` has come."""
    counts: Tensor | None
    capacity: Capacity | None
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None
    """Start and end on the GPU."""
    host_seconds: float
    moved: bool
    scale: float | None
    """Where it is not the pace's own."""
    steady: bool
    """Whether another one costs as much."""


@dataclass
class Costs:
    """Where the time of pictures has gone so far: sums in seconds."""

    pictures: int = 0
    """That were drawn."""
    made: int = 0
    """Those for which something was made once: compiled, learnt, captured."""
    host: float = 0.0
    """Of the thread that trains, while it drew."""
    host_made: float = 0.0
    """The same of those that made something."""
    device: float = 0.0
    """On the GPU, from a picture's first kernel to the end of its copy to the host."""
    wait: float = 0.0
    """Of the sending thread, until pictures were on the host."""
    show: float = 0.0
    """Of the sending thread: encoding and sending."""
    thread: float = 0.0
    """Of a processor for the sending thread. What it keeps the interpreter busy for is less."""


class Landing:
    """Where tensors arrive on the host: pinned memory that stays, for one tensor of a size each.

    Were it freed by the thread that sends while the other one captures a graph, the captured stream
    would get an event that nobody may ask for, and the next allocation, which asks, would fail.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[object, ...], Tensor] = {}  # the latest last

    def to_host(self, x: Tensor) -> Tensor:
        """Queue the copy of a tensor; the next one of its shape and type overwrites it."""
        key = x.shape, x.dtype
        place = self._places.pop(key, None)
        if place is None:
            if len(self._places) >= MAX_PLACES:
                del self._places[next(iter(self._places))]
            place = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        self._places[key] = place
        return place.copy_(x, non_blocking=True)


class Studio:
    """Draws pictures of a subject for guests, and sends them from a thread of its own."""

    def __init__(self, subject: Subject, pace: Pace) -> None:
        self.subject, self.pace = subject, pace
        self._capacity: dict[tuple[object, ...], Capacity] = {}  # by size and look
        self._jobs: queue.Queue[tuple[_Sent, tuple[object, ...]] | None] = queue.Queue(1)
        self._is_busy, self.costs, self._landing = False, Costs(), Landing()
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a picture is on its way; the next one waits for it."""
        return self._is_busy

    def draw(
        self, guest: Guest, look: Look, chosen: int | None, *, scale: float | None = None
    ) -> None:
        """Queue a picture: of the guest's camera, or of a chosen one beside its image.

        Args:
            guest: Who gets it.
            look: What is shown.
            chosen: Index of a camera, or None.
            scale: Of the guest's window; None: as the pace has it.
        """
        started, moved = time.perf_counter(), guest.moving or guest.waits
        self._is_busy, guest.waits = True, False
        guest.drawn_at = scale or self.pace.scale(moved=moved)
        width, height = guest.size(guest.drawn_at)
        cameras = self.subject.cameras
        if chosen is None:
            camera = guest.camera(width, height, cameras[0].near)
        elif cameras[chosen].image_path is None:  # there is nothing to show beside it
            camera, chosen = fitted(cameras[chosen], width, height), None
        else:
            camera = fitted(cameras[chosen], width // 2, height)
        key = camera.width, camera.height, look.show, look.masks
        capacity = self._capacity.get(key)
        events = None
        if self.subject.on_gpu:
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
        picture = self.subject.draw(camera, look, capacity)
        steady = picture.steady and (capacity is not None or events is None)
        if chosen is not None:
            pixels = beside(picture.pixels, self.subject.images[chosen][..., :3], width, height)
            picture = picture._replace(pixels=pixels)
        pixels = self._landing.to_host(picture.pixels)
        counts = None if picture.counts is None else self._landing.to_host(picture.counts)
        if events is not None:
            events[1].record()
        spent = time.perf_counter() - started
        sent = _Sent(guest, pixels, counts, capacity, events, spent, moved, scale, steady)
        self._jobs.put((sent, key))

    def close(self) -> None:
        """End the thread once it has sent what there is."""
        self._jobs.put(None)
        self._thread.join()

    def _send_all(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._send(*job)
            self.costs.thread = time.thread_time()
            self._is_busy = False

    def _send(self, sent: _Sent, key: tuple[object, ...]) -> None:
        seconds, costs, began = sent.host_seconds, self.costs, time.perf_counter()
        costs.pictures += 1
        costs.host += seconds
        if not sent.steady:
            costs.made += 1
            costs.host_made += seconds
        if sent.events is not None:
            sent.events[1].synchronize()
            on_device = sent.events[0].elapsed_time(sent.events[1]) / 1000
            costs.device += on_device
            seconds += on_device
        arrived = time.perf_counter()
        costs.wait += arrived - began
        self.pace.spent(seconds, moved=sent.moved, scale=sent.scale, steady=sent.steady)
        fits = True
        if sent.counts is not None:
            needed = Counts(*sent.counts.tolist())
            fits = sent.capacity is None or sent.capacity.holds(needed)
            if not fits or sent.capacity is None:
                self._capacity[key] = Capacity(*(_rounded(x * SLACK) for x in needed))
        if fits:
            sent.guest.show(sent.pixels.numpy())
        else:
            sent.guest.waits = True
        costs.show += time.perf_counter() - arrived


def _rounded(x: float) -> int:
    """The next power of two from 1024: few capacities differ, as each needs a graph."""
    return 1 << max(int(x).bit_length(), 10)
