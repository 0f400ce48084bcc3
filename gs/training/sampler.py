"""The order of training cameras: one permutation of all of them per epoch."""

import torch

from ..seeds import derive_seed
from .run_state import Part


class CameraSampler:
    """Endless camera indices: each epoch is a permutation of all of them, drawn from the seed.

    Args:
        n_cameras: Number of cameras, at least 1.
        seed: The run's seed.
    """

    def __init__(self, n_cameras: int, seed: int) -> None:
        if n_cameras < 1:
            raise ValueError(f"n_cameras: expected at least 1, got {n_cameras}")
        self.n_cameras = n_cameras
        self.seed = seed
        self.epoch = 0
        self.position = 0
        self._orders: dict[int, list[int]] = {}

    def next(self) -> int:
        """The next camera's index."""
        index = self._order(self.epoch)[self.position]
        self.position += 1
        if self.position == self.n_cameras:
            self._orders.pop(self.epoch, None)
            self.epoch, self.position = self.epoch + 1, 0
        return index

    def upcoming(self, count: int) -> list[int]:
        """The indices that the next `count` calls of `next` will give."""
        epoch, indices = self.epoch, self._order(self.epoch)[self.position :]
        while len(indices) < count:
            epoch += 1
            indices = indices + self._order(epoch)
        return indices[:count]

    def state_dict(self) -> dict[str, int]:
        names = ("n_cameras", "seed", "epoch", "position")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Part) -> None:
        """Go on where `state` stood; a state of another number of cameras starts a new epoch."""
        same = state.get("n_cameras") == self.n_cameras
        self.seed = int(state.get("seed", self.seed))
        self._orders.clear()
        self.epoch = int(state.get("epoch", -1)) + (0 if same else 1)
        self.position = int(state["position"]) if same else 0

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "cameras", epoch))
            self._orders[epoch] = torch.randperm(self.n_cameras, generator=generator).tolist()
        return self._orders[epoch]
