"""Cells: divisions of space in which every finite point has exactly one owner.

`Tree` cuts the ground by half spaces, for any number of blocks; a point on a cut belongs to the
upper side. `Grid` is Momentum-GS's (Fan et al., 2024): equal cells of contracted space,

    u = 2 (x - a_min) / (a_max - a_min) - 1        the box a becomes [-1, 1]^3
    u <- (2 - 1/r) u / r   where r = |u|_inf > 1    all else comes between 1 and 2
    c = u / 4 + 1/2                                so the box is the inner half of [0, 1]^3

with cell numbers clamped, since far points contract to 1.0 by rounding. What is not finite has an
owner too, whichever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .frame import Frame

CENTRAL = (2.0, 98.0)  # percentiles between which an axis' width is taken

Box = NDArray[np.float64]
"""Lower and upper bounds of a cell along its axes. [2, A]"""


class Cells(Protocol):
    """Who owns which part of space."""

    @property
    def n_blocks(self) -> int:
        """Blocks are 0 to n_blocks - 1."""
        ...

    def owner(self, points: Tensor) -> Tensor:  # [N, 3] -> [N] int64
        """The block that each point belongs to, on the points' device."""
        ...

    def touching(self) -> list[set[int]]:
        """Of each block, the others that it shares a border with, be it a corner."""
        ...

    def without(self, block: int) -> Cells:
        """The cells after a block's have gone to its sibling; later blocks move up by one."""
        ...


@dataclass(frozen=True)
class Cut:
    """Half spaces below and from `at` on along an axis of the ground."""

    axis: int
    at: float
    low: Node
    high: Node


Node: TypeAlias = int | Cut
"""A block, or what divides it further."""


@dataclass(frozen=True)
class Tree:
    """A k-d tree on the ground."""

    frame: Frame
    root: Node

    @property
    def n_blocks(self) -> int:
        return len(_leaves(self.root))

    def owner(self, points: Tensor) -> Tensor:  # [N, 3] -> [N] int64
        """As `Cells.owner`."""
        ground = self.frame.to_ground(points)
        out = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        waiting = [(self.root, torch.arange(len(points), device=points.device))]
        while waiting:
            node, rows = waiting.pop()
            if isinstance(node, int):
                out[rows] = node
            else:
                is_high = ground[rows, node.axis] >= node.at
                waiting += [(node.low, rows[~is_high]), (node.high, rows[is_high])]
        return out

    def boxes(self) -> list[Box]:
        """Bounds of the blocks' cells on the ground, infinite at the border."""
        everything = np.array([[-np.inf, -np.inf], [np.inf, np.inf]])
        found = dict(_boxes(self.root, everything))
        return [found[block] for block in range(self.n_blocks)]

    def touching(self) -> list[set[int]]:
        """As `Cells.touching`."""
        boxes = self.boxes()
        return _neighbours([(block, box) for block, box in enumerate(boxes)], len(boxes))

    def without(self, block: int) -> Tree:
        """As `Cells.without`; a sibling that is cut itself spreads over the cell."""
        kept = [leaf for leaf in _leaves(self.root) if leaf != block]
        names = {leaf: k for k, leaf in enumerate(sorted(kept))}
        return Tree(self.frame, _renamed(_spread(self.root, block), names))


@dataclass(frozen=True)
class Grid:
    """Equal cells of contracted space."""

    aabb: tuple[float, float, float, float, float, float]
    """x0 y0 z0 x1 y1 z1 of the box that becomes the inner half."""
    dims: tuple[int, int, int]
    """Cells along x, y, z."""
    blocks: tuple[int, ...]
    """The block of each cell, x first."""

    @property
    def n_blocks(self) -> int:
        return max(self.blocks) + 1

    def owner(self, points: Tensor) -> Tensor:  # [N, 3] -> [N] int64
        """As `Cells.owner`."""
        dims = torch.tensor(self.dims, device=points.device)
        index = (self.contracted(points) * dims).floor().long()
        index = torch.minimum(index.clamp_min(0), dims - 1)
        cell = index[:, 0] + self.dims[0] * (index[:, 1] + self.dims[1] * index[:, 2])
        return torch.tensor(self.blocks, device=points.device)[cell]

    def contracted(self, points: Tensor) -> Tensor:  # [N, 3] -> [N, 3] float64 in 0..1
        """Contracted coordinates, as in the module's docstring."""
        box = torch.tensor(self.aabb, dtype=torch.float64, device=points.device).view(2, 3)
        u = 2 * (points.double().nan_to_num() - box[0]) / (box[1] - box[0]) - 1
        r = u.abs().amax(dim=1, keepdim=True).clamp_min(1)
        return (2 - 1 / r) * (u / r) / 4 + 0.5

    def touching(self) -> list[set[int]]:
        """As `Cells.touching`."""
        return _neighbours(list(zip(self.blocks, self._cells(), strict=True)), self.n_blocks)

    def without(self, block: int) -> Grid:
        """As `Cells.without`; the sibling is the touching block with the lowest number."""
        heir = min(self.touching()[block])
        names = [b if b < block else b - 1 for b in range(self.n_blocks)]
        names[block] = names[heir]
        return Grid(self.aabb, self.dims, tuple(names[b] for b in self.blocks))

    def _cells(self) -> Iterator[Box]:
        dx, dy, dz = self.dims
        for cell in range(dx * dy * dz):
            low = np.array([cell % dx, cell // dx % dy, cell // (dx * dy)], np.float64)
            yield np.stack([low, low + 1])


def full_grid(
    aabb: tuple[float, float, float, float, float, float], dims: tuple[int, int, int]
) -> Grid:
    """A grid with one block per cell."""
    return Grid(aabb, dims, tuple(range(dims[0] * dims[1] * dims[2])))


def split(
    frame: Frame,
    points: Tensor,  # [N, 3]
    weights: Tensor,  # [N]
    n_blocks: int,
) -> Tree:
    """Cut the ground so that blocks have about the same weight.

    A cell for B blocks is cut across its wider axis (between the 2nd and the 98th percentile of its
    points) where B // 2 of B parts of the weight lie below.

    Args:
        frame: The ground.
        points: Those that are not finite have no say. [N, 3]
        weights: How much work a point makes, not negative. [N]
        n_blocks: At least 1.
    """
    finite = points.isfinite().all(dim=1)
    ground = frame.to_ground(points[finite])[:, :2].cpu().numpy()
    everything = np.array([[-np.inf, -np.inf], [np.inf, np.inf]])
    mass = weights[finite].double().cpu().numpy()
    return Tree(frame, _split(ground, mass, everything, 0, n_blocks))


def _split(
    ground: NDArray[np.float64], mass: NDArray[np.float64], box: Box, first: int, n_blocks: int
) -> Node:
    if n_blocks == 1:
        return first
    n_low = n_blocks // 2
    axis, at = _cut(ground, mass, box, n_low / n_blocks)
    is_high = ground[:, axis] >= at
    low, high = box.copy(), box.copy()
    low[1, axis] = high[0, axis] = at
    return Cut(
        axis,
        at,
        _split(ground[~is_high], mass[~is_high], low, first, n_low),
        _split(ground[is_high], mass[is_high], high, first + n_low, n_blocks - n_low),
    )


def _cut(
    ground: NDArray[np.float64], mass: NDArray[np.float64], box: Box, share: float
) -> tuple[int, float]:
    """Axis and place of the cut that leaves a share of the mass below."""
    if not len(ground):  # anywhere within the cell
        return 0, float(np.clip(0.0, *box[:, 0]))
    low, high = np.percentile(ground, CENTRAL, axis=0)
    axis = int((high - low).argmax())
    order = ground[:, axis].argsort(kind="stable")
    values, below = ground[order, axis], mass[order].cumsum()
    # what is on the cut goes up: of equal points all do, but for the lowest where there are others
    place = max(
        np.searchsorted(below, share * below[-1]), np.searchsorted(values, values[0], "right")
    )
    return axis, float(values[min(place, len(values) - 1)])


def _leaves(node: Node) -> list[int]:
    return [node] if isinstance(node, int) else [*_leaves(node.low), *_leaves(node.high)]


def _boxes(node: Node, box: Box) -> Iterator[tuple[int, Box]]:
    if isinstance(node, int):
        yield node, box
        return
    low, high = box.copy(), box.copy()
    low[1, node.axis] = high[0, node.axis] = node.at
    yield from _boxes(node.low, low)
    yield from _boxes(node.high, high)


def _spread(node: Node, block: int) -> Node:
    """The tree in which the other side of a leaf's cut has its cell."""
    if isinstance(node, int):
        return node
    if node.low == block:
        return node.high
    if node.high == block:
        return node.low
    return Cut(node.axis, node.at, _spread(node.low, block), _spread(node.high, block))


def _renamed(node: Node, names: dict[int, int]) -> Node:
    if isinstance(node, int):
        return names[node]
    return Cut(node.axis, node.at, _renamed(node.low, names), _renamed(node.high, names))


def _neighbours(cells: list[tuple[int, Box]], n_blocks: int) -> list[set[int]]:
    """Blocks of which closed cells meet."""
    found: list[set[int]] = [set() for _ in range(n_blocks)]
    for block, (low, high) in cells:
        for other, (other_low, other_high) in cells:
            if block != other and (low <= other_high).all() and (other_low <= high).all():
                found[block].add(other)
    return found
