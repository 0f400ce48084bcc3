"""Which camera an iteration sees, and seeds that depend only on the run and the iteration."""

from typing import Any

import torch

_MASK64 = (1 << 64) - 1


def derive_seed(seed: int, *keys: int | str) -> int:
    """A well-mixed seed in [0, 2^31) from a run's seed and any keys, e.g. ("mask", iteration).

    Counter-based draws take it, so a run can stop and go on without storing generator states.
    Mixing: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), once per 64-bit word.
    """
    state = _splitmix64(seed & _MASK64)
    for key in keys:
        if isinstance(key, str):
            key = int.from_bytes(key.encode("utf-8"), "little")
        while True:
            state = _splitmix64(state ^ (key & _MASK64))
            key >>= 64
            if key in (0, -1):
                break
    return state >> 33


def _splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


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

    def load_state_dict(self, state: dict[str, Any]) -> None:
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
