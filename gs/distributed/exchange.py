"""What a step sends where: buffers of fixed sizes for the records of a batch's tasks.

Sizes are known to all ranks before anything is projected, so that nothing waits for counts: every
source has room for the same number of rows in a task. That number is learnt from what earlier
visits of the task's camera have needed; where it is too small, the step is repeated with more.

A send buffer has a part for each task, a header and its rows (kernels.exchange), in the order of
tasks, which is that of ranks. What a rank receives are its own tasks' parts, from every source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.camera import Camera
from .ranks import Ranks
from .tasks import CostTable, Task, cut_batch

SLACK = 1.06  # rows over what was needed last
ENTRY_SLACK = 1.3  # entries of tile lists, of which views differ more
LEAST = 64  # rows of a task's part
GUESS = 0.2  # share of all Gaussians that a camera nobody knows is thought to see
GUESSED_ENTRIES = 4.0  # per row of a task's part, before anything has been rendered
HEADROOM = 1.03  # of the slack, what may be used up before a capacity that is kept grows
DECAY = 0.9  # per step, of the largest need of entries over what was expected


class Size(NamedTuple):
    """Images that are projected together."""

    images: range
    """Places in the batch."""
    width: int
    height: int


@dataclass(frozen=True)
class Plan:
    """What all ranks know of a step before it begins."""

    cameras: list[int]
    """The batch's images, those of one size next to each other."""
    sizes: list[Size]
    tasks: list[Task]
    """Of all ranks, in their order."""
    capacities: list[int]
    """Rows that each task gets from each source at most."""
    shares: list[float]
    """Share of its image that each task's window is thought to need."""
    strips: list[int]
    """Strips of each image."""
    size: int
    """Number of ranks."""

    def of_rank(self, rank: int) -> list[int]:
        """Which tasks a rank has."""
        return [k for k, task in enumerate(self.tasks) if task.rank == rank]

    @property
    def is_whole(self) -> bool:
        """Whether every task is an image, and all have one size: steps are alike then."""
        whole = all(task.last - task.first == self.strips[task.image] for task in self.tasks)
        return whole and len(self.sizes) == 1

    @property
    def key(self) -> Hashable:
        """What steps have in common that differ in cameras alone; None where they differ more."""
        if not self.is_whole:
            return None
        return (self.sizes[0], tuple(task.rank for task in self.tasks), self.capacities[0])

    @property
    def bases(self) -> list[int]:
        """Where each task's part of a send buffer begins; last, where the buffer ends."""
        return [0, *np.cumsum([1 + n for n in self.capacities]).tolist()]

    def sent(self) -> list[int]:
        """Rows that a rank sends to each."""
        return [sum(1 + self.capacities[k] for k in self.of_rank(r)) for r in range(self.size)]

    def received(self, rank: int) -> list[int]:
        """Rows that a rank gets from each."""
        return [self.sent()[rank]] * self.size

    def table(self, members: Sequence[int], first: int) -> NDArray[np.int32]:  # [T, 5]
        """Of those tasks, as kernels.exchange takes it; their images' places count from `first`."""
        bases, rows = self.bases, []
        for k in members:
            task = self.tasks[k]
            top, bottom = task.window(self.height(k))
            rows.append((task.image - first, top, bottom, bases[k], self.capacities[k]))
        return np.array(rows, dtype=np.int32).reshape(-1, 5)

    def of_size(self, k: int) -> Size:
        """Of task k's image."""
        return next(size for size in self.sizes if self.tasks[k].image in size.images)

    def height(self, k: int) -> int:
        return self.of_size(k).height

    def camera(self, k: int) -> int:
        """Of task k."""
        return self.cameras[self.tasks[k].image]

    @property
    def first_strips(self) -> list[int]:
        """Where each image's strips begin among those of all; last, their number."""
        return [0, *np.cumsum(self.strips).tolist()]


class Planner:
    """Cuts batches and chooses capacities, by what earlier steps have counted.

    Args:
        cameras: All cameras.
        size: Number of ranks.

    Whoever knows the largest shard's number of Gaussians says so (`resized`).
    """

    def __init__(self, cameras: Sequence[Camera], size: int) -> None:
        self.cameras, self.size, self.n_most = cameras, size, 0
        self.costs, self.least = CostTable(), LEAST
        self._needs: dict[int, float] = {}  # rows of a source for a whole image, by camera
        self._rows = GUESS  # of pairs of camera and Gaussian, that are visible
        # entries needed over those expected, of cameras that have been visited and of others
        self._entries = {True: 1.0, False: 1.0}
        # capacities of plans of whole images, which stay as they are as long as they suffice
        self._kept: dict[str, int] = {}

    def plan(self, cameras: Sequence[int]) -> Plan:
        """The plan of a batch, whose images of one size and lens lie next to each other."""
        sizes: list[Size] = []
        for place, index in enumerate(cameras):
            width, height = self.cameras[index].width, self.cameras[index].height
            bent = self.cameras[index].lens != self.cameras[cameras[place - 1]].lens
            if sizes and sizes[-1][1:] == (width, height) and not bent:
                sizes[-1] = Size(range(sizes[-1].images.start, place + 1), width, height)
            else:
                sizes.append(Size(range(place, place + 1), width, height))
        shapes = [(size.width, size.height) for size in sizes for _ in size.images]
        costs = [self.costs.costs(k, *shape) for k, shape in zip(cameras, shapes, strict=True)]
        tasks = cut_batch(costs, self.size)
        shares = [_share(task, costs[task.image]) for task in tasks]
        capacities = [
            self.least + math.ceil(SLACK * share * self._need(cameras[task.image]))
            for task, share in zip(tasks, shares, strict=True)
        ]
        strips = [len(x) for x in costs]
        plan = Plan(list(cameras), sizes, tasks, capacities, shares, strips, self.size)
        if plan.is_whole:
            same = self._keep(f"part {sizes[0]}", max(capacities))
            capacities[:] = [same] * len(tasks)
        return plan

    def rows(self, plan: Plan, size: Size, n: int) -> int:
        """Rows to make room for in a projection of n Gaussians into the cameras of a size."""
        n_pairs = len(size.images) * n
        rows = LEAST + math.ceil(SLACK * self._rows * n_pairs)
        if plan.is_whole:
            rows = self._keep(f"rows {size}", rows)
        return min(rows, max(n_pairs, 1))

    def entries(self, plan: Plan, k: int) -> int:
        """Entries of tile lists to make room for in task k."""
        n = self._entries_of(plan, k)
        return self._keep(f"entries {plan.of_size(k)}", n) if plan.is_whole else n

    def _entries_of(self, plan: Plan, k: int) -> int:
        task, size = plan.tasks[k], plan.of_size(k)
        known = self.costs.entries(plan.camera(k), size.width, size.height)
        expected = known[task.first - task.above : task.last + task.below].sum()
        if expected == 0:  # nobody has been anywhere yet
            expected = GUESSED_ENTRIES * self.size * plan.capacities[k]
        factor = self._entries[self.costs.knows(plan.camera(k))]
        return max(math.ceil(ENTRY_SLACK * factor * expected), 1 << 12)

    def learn(
        self,
        plan: Plan,
        counts: NDArray[np.float64],  # [W, T]
        strips: NDArray[np.float64],  # [sum of strips]
        own: NDArray[np.float64],  # [sizes] rows here, as shares of pairs
        needed: dict[int, tuple[float, int]],  # by own task: entries, and their capacity
    ) -> None:
        """Take what a step has counted, in which all but `own` and `needed` is the same for all."""
        before = self._needs
        if not before:  # what was guessed has no need to be kept
            self._kept = {}
        found: dict[int, float] = {}
        for k, share in enumerate(plan.shares):
            camera = plan.camera(k)
            found[camera] = max(found.get(camera, 1.0), float(counts[:, k].max()) / share)
        self._needs = before | found
        if own.size:
            self._rows = max(float(own.max()), self._rows * DECAY)
        for k, (entries, capacity) in needed.items():
            known = self.costs.knows(plan.camera(k))
            factor = entries / capacity * ENTRY_SLACK * self._entries[known]
            self._entries[known] = max(factor, self._entries[known] * DECAY, 0.5)
        if strips.sum() > 0:
            firsts = plan.first_strips
            for place, camera in enumerate(plan.cameras):
                self.costs.note(camera, strips[firsts[place] : firsts[place + 1]])

    def resized(self, n_most: int) -> None:
        """Shards have other sizes now."""
        factor = max(n_most / max(self.n_most, 1), 1.0)
        self._needs = {camera: factor * need for camera, need in self._needs.items()}
        self.n_most, self._kept = n_most, {}

    def _keep(self, name: str, n: int) -> int:
        """The capacity of that name, which n is if the one before leaves too little slack."""
        if n > HEADROOM * self._kept.get(name, 0):
            self._kept[name] = n
        return self._kept[name]

    def _need(self, camera: int) -> float:
        known = self._needs.get(camera)
        if known is not None:
            return known
        return max(self._needs.values()) if self._needs else GUESS * self.n_most


def _share(task: Task, costs: NDArray[np.float64]) -> float:
    """Of an image's records that a window is thought to get: by cost, but not far below by rows."""
    window = slice(task.first - task.above, task.last + task.below)
    by_rows = len(costs[window]) / len(costs)
    return float(min(max(costs[window].sum() / costs.sum(), 0.5 * by_rows), 1.0))


def exchange_images(
    plan: Plan,
    ranks: Ranks,
    image: Callable[[int], Tensor],  # camera -> [H, W, 3] uint8
) -> list[Tensor]:
    """The windows of the ground truth that this rank's tasks need. [rows, W, 3] uint8 each

    Every image is decoded and kept by one rank, the camera's number modulo theirs, and its rows go
    as bytes to who needs them.
    """

    def keeper(k: int) -> int:
        return plan.camera(k) % ranks.size

    def n_bytes(k: int) -> int:
        top, bottom = plan.tasks[k].window(plan.height(k))
        return (bottom - top) * plan.of_size(k).width * 3

    parts, sent = [], [0] * ranks.size
    for k, task in enumerate(plan.tasks):
        if keeper(k) == ranks.rank:
            top, bottom = task.window(plan.height(k))
            parts.append(image(plan.camera(k))[top:bottom].reshape(-1))
            sent[task.rank] += n_bytes(k)
    mine = plan.of_rank(ranks.rank)
    received = [sum(n_bytes(k) for k in mine if keeper(k) == r) for r in range(ranks.size)]
    flat = torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8, device=ranks.device)
    arrived = list(ranks.exchange(flat, sent, received).split(received))
    windows = []
    for k in mine:
        n = n_bytes(k)
        source, arrived[keeper(k)] = arrived[keeper(k)][:n], arrived[keeper(k)][n:]
        windows.append(source.view(-1, plan.of_size(k).width, 3))
    return windows
