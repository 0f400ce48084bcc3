"""A model as arrays, between the codecs of this room and the tensors of `gs.model`.

    means [N,3]  quats [N,4] (w,x,y,z)  scales [N,3] (log)  opacities [N] (logit)
    sh0 [N,3]    shN [N,K-1,3], K = (degree + 1)^2; all float32

What a codec refuses is a ValueError that ends a sentence about the file: "ends within its rows".
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
MIN_ALPHA = 1e-6  # distance that a stored opacity keeps from 0 and 1, so that its logit is finite

Floats = NDArray[np.float32]
Words = NDArray[np.uint32]


class Arrays(NamedTuple):
    """The parameters of a model; see the module's docstring."""

    means: Floats
    quats: Floats
    scales: Floats
    opacities: Floats
    sh0: Floats
    shN: Floats

    @property
    def degree(self) -> int:
        """SH degree, 0 to 3."""
        return math.isqrt(self.shN.shape[1] + 1) - 1

    @property
    def alphas(self) -> Floats:  # [N]
        """Opacities in 0..1."""
        return (1 / (1 + np.exp(-self.opacities.astype(np.float64)))).astype(np.float32)

    def rows(self, index: NDArray[np.int64]) -> "Arrays":
        """The rows at `index`, in its order."""
        return Arrays(*(array[index] for array in self))


def from_tensors(tensors: dict[str, Tensor], sh_degree: int | None = None) -> Arrays:
    """The arrays of a model, with unit quaternions and SH up to `sh_degree`; None keeps all.

    Args:
        tensors: means [N,3], quats [N,4], scales [N,3], opacities [N], sh0 [N,1,3], shN [N,K-1,3];
            other names are ignored.
        sh_degree: Highest SH degree to keep, 0 to 3.

    Raises:
        ValueError: a tensor is missing or has another shape.
    """
    n = len(tensors["means"]) if "means" in tensors else 0
    shapes = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,)}
    expected = {**shapes, "sh0": (n, 1, 3), "shN": (n, -1, 3)}
    host: dict[str, Floats] = {}
    for name, shape in expected.items():
        if name not in tensors:
            raise ValueError(f"{name} is missing")
        x = tensors[name].detach().float().cpu()
        if x.dim() != len(shape) or any(
            w not in (-1, g) for w, g in zip(shape, x.shape, strict=True)
        ):
            raise ValueError(f"{name}: expected {list(shape)}, got {list(x.shape)}")
        host[name] = x.numpy()
    k = host["shN"].shape[1]
    if k not in (0, 3, 8, 15):
        raise ValueError(f"shN: {k} coefficients are not those of an SH degree from 0 to 3")
    kept = k if sh_degree is None else min(k, (sh_degree + 1) ** 2 - 1)
    return Arrays(
        host["means"],
        unit(host["quats"]),
        host["scales"],
        host["opacities"],
        host["sh0"].reshape(n, 3),
        host["shN"][:, :kept],
    )


def to_tensors(arrays: Arrays) -> dict[str, Tensor]:
    """The tensors of a model, on the CPU, in the shapes of `gs.model.ply.load_ply`."""
    found = {
        name: torch.from_numpy(np.array(array, np.float32, order="C"))
        for name, array in arrays._asdict().items()
    }
    found["sh0"] = found["sh0"][:, None]
    return found


def unit(quats: Floats) -> Floats:  # [N, 4]
    """Quaternions of length one; (1, 0, 0, 0) for those of length zero."""
    norms = np.linalg.norm(quats.astype(np.float64), axis=1, keepdims=True)
    found = np.where(norms > 0, quats / np.where(norms > 0, norms, 1), [1.0, 0, 0, 0])
    return found.astype(np.float32)


def logit(alphas: NDArray[np.floating]) -> Floats:
    """What the sigmoid takes to `alphas`, which are kept off 0 and 1."""
    a = alphas.astype(np.float64).clip(MIN_ALPHA, 1 - MIN_ALPHA)
    return np.log(a / (1 - a)).astype(np.float32)


def without_largest(quats: Floats) -> tuple[NDArray[np.int64], Floats]:  # [N, 4] -> [N], [N, 3]
    """Index of each unit quaternion's largest component, and the others when that is positive."""
    largest = np.abs(quats).argmax(axis=1)
    signs = np.where(np.take_along_axis(quats, largest[:, None], axis=1) < 0, -1, 1)
    return largest, np.take_along_axis(quats * signs, _others(largest), axis=1).astype(np.float32)


def with_largest(largest: NDArray[np.integer], others: Floats) -> Floats:  # [N], [N, 3] -> [N, 4]
    """Unit quaternions of `without_largest`'s result."""
    quats = np.empty((len(others), 4), np.float32)
    rest = 1 - np.square(others.astype(np.float64)).sum(axis=1)
    index = largest.astype(np.int64)
    np.put_along_axis(quats, index[:, None], np.sqrt(rest.clip(0))[:, None], axis=1)
    np.put_along_axis(quats, _others(index), others, axis=1)
    return unit(quats)


def _others(largest: NDArray[np.int64]) -> NDArray[np.int64]:  # [N] -> [N, 3]
    return np.arange(3) + (np.arange(3) >= largest[:, None])
