"""Gaussians as the compressed bytes that viewer.js unpacks.

The model is a matrix of bytes [planes, N] under zlib; of several bytes the lowest comes first:

    planes   content
    0-8      mean - origin, three bytes each: float32 without its lowest byte
    9-14     log scale, 16 bits between the two ends of scale_range
    15-18    quaternion, 32 bits: the upper two say which of (w, x, y, z) is the largest, taken
             positive; the three others in their order, 10 bits each, are 511 + 511 sqrt(2) value
    19       opacity in 0..1, times 255
    20-25    sh0, 16 bits between the two ends of color_range
    26-      shN, coefficient by coefficient, channels inside: a signed byte s of value
             sh_range[coefficient] s |s| / 127^2, fine where most values are

Gaussians that no view draws (opacity below 1/255) are left out.
"""

import zlib
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_OPACITY = 1 / 255
SH_DEGREES = {0: 0, 3: 1, 8: 2, 15: 3}
"""SH degree by number of coefficients in shN."""

Bytes = NDArray[np.uint8]


class PackedModel(NamedTuple):
    """A model as a page holds it."""

    data: bytes
    """Compressed matrix of bytes."""
    n_gaussians: int
    """Number of Gaussians, those that are never drawn left out."""
    degree: int
    """SH degree, 0 to 3."""
    origin: NDArray[np.float64]
    """Subtracted from all means: float32 loses digits far from zero. [3]"""
    scale_range: tuple[float, float]
    """Log scales of 0 and 65535."""
    color_range: tuple[float, float]
    """sh0 of 0 and 65535."""
    sh_range: list[float]
    """Largest magnitude of each coefficient of shN. [K-1]"""


def pack(tensors: dict[str, Tensor], sh_degree: int | None = None) -> PackedModel:
    """Quantise and compress a model.

    Args:
        tensors: means [N,3], quats [N,4] (w,x,y,z), scales [N,3] (log), opacities [N] (logit),
            sh0 [N,1,3], shN [N,K-1,3]; other names are ignored.
        sh_degree: Highest SH degree to keep; None keeps all.

    Raises:
        ValueError: a tensor is missing or has another shape, or nothing is there to show.
    """
    n_harmonics = _check(tensors)
    kept = torch.sigmoid(tensors["opacities"]) >= MIN_OPACITY
    count = int(kept.sum())
    if count == 0:
        raise ValueError(f"none of {len(kept)} Gaussians has an opacity of 1/255 or more")
    if sh_degree is not None:
        n_harmonics = min(n_harmonics, (sh_degree + 1) ** 2 - 1)

    means = _values(tensors["means"], kept).astype(np.float64)
    origin = np.median(means, axis=0)
    scales, scale_range = _in_16_bits(_values(tensors["scales"], kept))
    colors, color_range = _in_16_bits(_values(tensors["sh0"].flatten(1), kept))
    opacities = _values(torch.sigmoid(tensors["opacities"]), kept)[:, None]
    planes = [
        _planes(_float_bits(means - origin), 3),
        _planes(scales, 2),
        _planes(_quat_bits(_values(tensors["quats"], kept)), 4),
        _planes(np.rint(opacities * 255), 1),
        _planes(colors, 2),
    ]
    sh_range: list[float] = []
    if n_harmonics:
        shN = _values(tensors["shN"][:, :n_harmonics], kept)
        largest = np.abs(shN).max(axis=(0, 2))
        sh_range = largest.tolist()
        shares = shN / np.where(largest > 0, largest, 1)[:, None]
        roots = np.rint(127 * np.sign(shares) * np.sqrt(np.abs(shares)))
        planes.append(_planes(roots.reshape(count, 3 * n_harmonics).astype(np.int8), 1))
    data = zlib.compress(np.concatenate(planes).tobytes(), 9)
    degree = SH_DEGREES[n_harmonics]
    return PackedModel(data, count, degree, origin, scale_range, color_range, sh_range)


def _check(tensors: dict[str, Tensor]) -> int:
    """Refuse other shapes; the number of coefficients in shN."""
    names: list[str] = ["means", "quats", "scales", "opacities", "sh0"]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"pack: {', '.join(missing)} missing")
    n = len(tensors["means"])
    k = tensors["shN"].shape[1] if "shN" in tensors else 0
    expected: dict[str, tuple[int, ...]] = dict(
        zip(names, [(n, 3), (n, 4), (n, 3), (n,), (n, 1, 3)], strict=True)
    )
    if "shN" in tensors:
        expected["shN"] = (n, k, 3)
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name}: expected {list(shape)}, got {list(tensors[name].shape)}")
    if k not in SH_DEGREES:
        raise ValueError(f"shN: {k} coefficients are not those of an SH degree from 0 to 3")
    return k


def _values(x: Tensor, kept: Tensor) -> NDArray[np.float32]:
    return x.detach()[kept].float().cpu().numpy()


def _planes(values: NDArray[np.generic], n_bytes: int) -> Bytes:  # [N, C] -> [C n_bytes, N]
    """The lowest bytes of integers, one plane each."""
    integers, shifts = values.astype(np.uint32), 8 * np.arange(n_bytes, dtype=np.uint32)
    split = (integers.T[:, None] >> shifts[:, None]) & 255
    return split.reshape(-1, len(values)).astype(np.uint8)


def _float_bits(values: NDArray[np.float64]) -> NDArray[np.uint32]:
    """The upper 24 bits of float32, rounded."""
    return (values.astype(np.float32).view(np.uint32) + np.uint32(128)) >> np.uint32(8)


def _in_16_bits(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """0 to 65535 between the smallest and the largest value, which come second."""
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) * (65535 / max(high - low, 1e-12))), (low, high)


def _quat_bits(quats: NDArray[np.float32]) -> NDArray[np.uint32]:  # [N, 4] -> [N, 1]
    norms = np.linalg.norm(quats, axis=1, keepdims=True)
    unit = np.where(norms > 0, quats / np.where(norms > 0, norms, 1), [1.0, 0, 0, 0])
    largest = np.abs(unit).argmax(axis=1)[:, None]
    unit = np.where(np.take_along_axis(unit, largest, axis=1) < 0, -unit, unit)
    others = np.arange(3) + (np.arange(3) >= largest)
    steps = np.rint(511 + 511 * np.sqrt(2) * np.take_along_axis(unit, others, axis=1))
    bits = steps.clip(0, 1022).astype(np.uint32) << np.array([0, 10, 20], np.uint32)
    return bits.sum(axis=1, dtype=np.uint32)[:, None] | largest.astype(np.uint32) << np.uint32(30)
