"""A batch cut into tasks: each a band of rows of one image, for one rank.

Images are laid end to end and cut into contiguous pieces of equal cost, one per rank (Zhao et al.,
"On Scaling Up 3D Gaussian Splatting Training", ECCV 2024 workshops, https://arxiv.org/abs/2406.18533,
section 4.2). The cost of a row is not a measured time, which differs from run to run, but what the
last visit of its camera has counted there: entries of tile lists, and a share for its pixels.

Where every rank gets as many images, and no rank's cost far more than others', none is cut: a cut
costs a halo, records that are sent twice, and windows of another size in every step.

Rows are strips of 16 pixels, two rows of tiles, as the loss is summed in such strips. A task's
window is larger by one strip where the image goes on: then the loss of its own rows is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

STRIP = 16  # pixels
HALO = 1  # strips beyond a task's own, at least 10 pixels
MIN_GAIN = 0.05  # of a rank's share: what a cut beside an image's edge must save
MOST_UNEVEN = 1.25  # the dearest rank over the mean, up to which images are not cut
PIXEL_COST = 0.5  # entries of tile lists that take as long as the loss of one pixel

Costs = NDArray[np.float64]
"""Of each strip of an image. [S]"""


class Task(NamedTuple):
    """A band of an image, in strips of 16 rows."""

    image: int
    """Place in the batch."""
    first: int
    """First strip."""
    last: int
    """The strip after the last one."""
    above: int
    """Strips of the window above the band: HALO, or 0 at the image's top."""
    below: int
    rank: int
    """Who renders it."""

    def rows(self, height: int) -> tuple[int, int]:
        """First row of pixels of the band, and the one after its last, in an image so high."""
        return self.first * STRIP, min(self.last * STRIP, height)

    def window(self, height: int) -> tuple[int, int]:
        """The same of its window."""
        return (self.first - self.above) * STRIP, min((self.last + self.below) * STRIP, height)


def n_strips(height: int) -> int:
    """Strips of an image so high."""
    return -(-height // STRIP)


def cut_batch(costs: Sequence[Costs], size: int) -> list[Task]:
    """Cut images into tasks of about equal cost, in the order of images, rows and ranks.

    Whole images stay with ranks where that makes no rank dearer than MOST_UNEVEN times the mean. A
    cut beside which less than MIN_GAIN of a rank's share would be left of an image moves to that
    image's edge. Ranks that come out without rows have no task.

    Args:
        costs: Of the strips of each image.
        size: Number of ranks.
    """
    whole = _whole(costs, size)
    if whole:
        return whole
    lengths = [len(x) for x in costs]
    edges = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.concatenate(costs)
    if not flat.sum() > 0:
        flat = np.ones_like(flat)
    ends = np.concatenate([[0.0], np.cumsum(flat)])
    share = ends[-1] / size
    cuts = [0]
    for k in range(1, size):
        cut = int(np.abs(ends - k * share).argmin())
        nearest = int(edges[np.abs(ends[edges] - ends[cut]).argmin()])
        if abs(ends[nearest] - ends[cut]) < MIN_GAIN * share:
            cut = nearest
        cuts.append(max(cut, cuts[-1]))
    cuts.append(int(edges[-1]))
    tasks = []
    for rank in range(size):
        for image, (begin, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            first, last = max(cuts[rank], begin) - begin, min(cuts[rank + 1], end) - begin
            if first < last:
                above, below = HALO * (first > 0), HALO * (last < end - begin)
                tasks.append(Task(image, int(first), int(last), int(above), int(below), rank))
    return sorted(tasks, key=lambda task: (task.rank, task.image))


def _whole(costs: Sequence[Costs], size: int) -> list[Task]:
    """Tasks that are whole images, as many for every rank; none where that is too uneven."""
    each = len(costs) // size
    if each == 0 or len(costs) != each * size:
        return []
    sums = np.array([x.sum() for x in costs]).reshape(size, each).sum(1)
    if sums.max() > MOST_UNEVEN * sums.mean():
        return []
    return [Task(k, 0, len(x), 0, 0, k // each) for k, x in enumerate(costs)]


class CostTable:
    """What each camera's strips have cost when it was last visited; the same on all ranks."""

    def __init__(self) -> None:
        self._entries: dict[int, Costs] = {}

    def entries(self, camera: int, width: int, height: int) -> Costs:  # [S]
        """Entries of tile lists by strip; those of other cameras where this one is new."""
        n = n_strips(height)
        known = self._entries.get(camera)
        if known is not None and len(known) == n:
            return known
        mean = np.mean([x.mean() for x in self._entries.values()]) if self._entries else 0.0
        return np.full(n, mean)

    def costs(self, camera: int, width: int, height: int) -> Costs:  # [S]
        """By which to cut."""
        rows = np.minimum(
            np.full(n_strips(height), STRIP), height - STRIP * np.arange(n_strips(height))
        )
        return self.entries(camera, width, height) + PIXEL_COST * width * rows

    def knows(self, camera: int) -> bool:
        """Whether a camera has been visited."""
        return camera in self._entries

    def note(self, camera: int, entries: Costs) -> None:
        """Keep what a visit has counted."""
        self._entries[camera] = np.asarray(entries, dtype=np.float64)

    def state_dict(self) -> dict[str, list[float]]:
        return {str(camera): entries.tolist() for camera, entries in self._entries.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._entries = {int(k): np.asarray(x, dtype=np.float64) for k, x in state.items()}
