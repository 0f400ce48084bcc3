"""What differs from step to step, and where a captured step finds it on the device.

An `InputBuffer` is one tensor that one copy brings up to date. Its layout, in words of 4 bytes;
pieces begin at multiples of 16 bytes:

    views       gs.model.view                                   VIEW_WORDS each
    background  colour                                          3 floats
    serial      number of the upload                            1 integer
    means_lr    learning rate of positions                      1 float
    integers    low and high word each, in the order of names   4 words each, of which 2 are used
    numbers     in the order of names                           4 words each, of which 1 is used
    rates       of Adam's step, by parameter                    2 floats each
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import LensKind, lenses, report_step

from ..model.view import VIEW_WORDS, View, unpack_view

PATIENCE = 10.0  # seconds until a silent GPU is asked for errors

ALIGNED = 4  # words
BACKGROUND, SERIAL, MEANS_LR, INTEGERS = (ALIGNED * k for k in range(4))  # after the views
SEED = "step_seed"  # the first of the integers


@dataclass(frozen=True)
class StepInputs:
    """The inputs of one step. In a captured step all tensors are views of an InputBuffer."""

    view: View
    """Of the images, or of those that have the size of the first."""
    background: Tensor
    """Colour behind the Gaussians. [3]"""
    integers: Mapping[str, int | Tensor]
    """What strategies gave as `device_inputs`: numbers, or [2] int32 each in a captured step and
    where there are such."""
    seed: Tensor | None = None
    """Of this step alone, low and high word; None in an eager step. [2] int32"""
    means_lr: Tensor | None = None
    """Learning rate of positions; None in an eager step. [1]"""
    rates: Tensor | None = None
    """Of Adam's step (kernels.FusedAdam.rates_for); None in an eager step. [P, 2]"""
    others: tuple[View, ...] = ()
    """Views of the images that are not in `view`, in an eager step."""
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    """What strategies gave as `device_numbers`. [1] each"""

    @property
    def views(self) -> tuple[View, ...]:
        """All views of the step."""
        return self.view, *self.others


class InputBuffer:
    """The inputs of captured steps on the device, and what a step reports to the host.

    Args:
        device: Where steps run.
        n_params: Parameters of the optimizer.
        names: Of the integers that strategies give.
        n_images: Images of a step.
        numbers: Names of the numbers that they give.
    """

    def __init__(
        self,
        device: torch.device,
        n_params: int,
        names: Iterable[str],
        n_images: int = 1,
        numbers: Iterable[str] = (),
    ) -> None:
        self._head = VIEW_WORDS * n_images
        first = self._head + INTEGERS
        self._places = {name: first + ALIGNED * k for k, name in enumerate((SEED, *names))}
        first += ALIGNED * len(self._places)
        self._numbers = {name: first + ALIGNED * k for k, name in enumerate(numbers)}
        self._rates = first + ALIGNED * len(self._numbers)
        size, pinned = self._rates + 2 * n_params, device.type == "cuda"
        self._n_params = n_params
        self._buffer = torch.zeros(size, device=device)
        # The copy of the last step has run when the next one writes: its report came back.
        self._staging = torch.zeros(size, pin_memory=pinned)
        self._floats = self._staging.numpy()
        self._words = self._staging.view(torch.int32).numpy()
        # rows, entries, what the model had no room for, serial
        self._report = torch.zeros(4, dtype=torch.int32, pin_memory=pinned)
        self._reported = self._report.numpy()
        self._serial = 0

    def inputs(
        self, width: int, height: int, near: float, lens: LensKind = lenses.PINHOLE
    ) -> StepInputs:
        """Where steps on images of that size, near plane and kind of lens find their inputs."""
        buffer, words, head = self._buffer, self._buffer.view(torch.int32), self._head
        integers = {name: words[k : k + 2] for name, k in self._places.items()}
        return StepInputs(
            unpack_view(buffer[:head], width, height, near, lens),
            buffer[head + BACKGROUND : head + BACKGROUND + 3],
            seed=integers.pop(SEED),
            integers=integers,
            means_lr=buffer[head + MEANS_LR : head + MEANS_LR + 1],
            rates=buffer[self._rates :].view(self._n_params, 2),
            numbers={name: buffer[k : k + 1] for name, k in self._numbers.items()},
        )

    def upload(
        self,
        view: NDArray[np.float32],  # [C VIEW_WORDS]
        background: tuple[float, ...],  # 3
        seed: int,
        integers: Mapping[str, int],
        means_lr: float,
        rates: Tensor,  # [P, 2] float32, on the CPU
        numbers: Mapping[str, float] | None = None,
    ) -> None:
        """Queue the copy of the next step's inputs.

        Raises:
            ValueError: The integers or numbers have other names than at first.
        """
        from kernels import split_seed

        numbers = numbers or {}
        for hook, places, given in (
            ("device_inputs", self._places.keys() - {SEED}, integers.keys()),
            ("device_numbers", self._numbers.keys(), numbers.keys()),
        ):
            if given != places:
                raise ValueError(
                    f"{hook}: expected {sorted(places)} in every iteration, got {sorted(given)}"
                )
        floats, words, head = self._floats, self._words, self._head
        floats[:head] = view
        floats[head + BACKGROUND : head + BACKGROUND + 3] = background
        self._serial = (self._serial + 1) & 0x3FFFFFFF
        words[head + SERIAL] = self._serial
        words[head + INTEGERS : head + INTEGERS + 2] = split_seed(seed)
        for name, value in integers.items():
            k = self._places[name]
            words[k : k + 2] = split_seed(value)
        for name, number in numbers.items():
            floats[self._numbers[name]] = number
        floats[head + MEANS_LR] = means_lr
        floats[self._rates :] = rates.numpy().ravel()
        self._buffer.copy_(self._staging, non_blocking=True)

    def report(
        self, counts: Tensor, limits: Tensor, missing: Tensor | None = None
    ) -> Tensor:  # [2] and [1] int32 -> [1] int32
        """Record into the graph that `counts`, and what is missing, go to the host.

        Returns:
            1 where counts are above limits or something is missing.
        """
        place = self._head + SERIAL
        serial = self._buffer.view(torch.int32)[place : place + 1]
        report, skip = report_step(counts, limits, serial, missing=missing)
        self._report.copy_(report, non_blocking=True)
        return skip

    def wait(self) -> tuple[int, int, int]:
        """The counts of the last step, and what was missing: waits until its report is there."""
        deadline = time.perf_counter() + PATIENCE
        while self._reported[3] != self._serial:
            if time.perf_counter() > deadline:
                torch.cuda.synchronize()  # raises if a kernel failed
                deadline = time.perf_counter() + PATIENCE
        rows, entries, missing = self._reported[:3].tolist()
        return rows, entries, missing


def as_words(integers: Mapping[str, int], device: torch.device) -> dict[str, Tensor]:
    """Integers by name as a captured step has them. [2] int32 each"""
    from kernels import split_seed

    words = {name: split_seed(x) for name, x in integers.items()}
    return {name: torch.tensor(x, dtype=torch.int32, device=device) for name, x in words.items()}


def as_numbers(numbers: Mapping[str, float], device: torch.device) -> dict[str, Tensor]:
    """Numbers by name as kernels take them. [1] each"""
    return {name: torch.tensor([x], device=device) for name, x in numbers.items()}
