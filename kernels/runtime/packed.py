"""Packs several small tensors into one buffer: making one costs more than filling it."""

import math

import torch
from torch import Tensor

from .launch import empty

WORDS = 4  # every part begins at a multiple of 16 bytes


class Layout:
    """Where int32 tensors of given shapes lie in a buffer; those of shape None do not."""

    def __init__(self, *shapes: tuple[int, ...] | None) -> None:
        self.shapes, self.offsets, self.words = shapes, [0] * len(shapes), 0
        for k, shape in enumerate(shapes):
            self.offsets[k] = self.words
            if shape is not None:
                self.words += -(-math.prod(shape) // WORDS) * WORDS

    def make(self, device: torch.device) -> Tensor:
        """A buffer [words] int32."""
        return empty((self.words,), torch.int32, device)

    def part(self, buffer: Tensor, k: int) -> Tensor:
        """Part k, which exists."""
        shape, first = self.shapes[k], self.offsets[k]
        assert shape is not None
        return buffer[first : first + math.prod(shape)].view(shape)
