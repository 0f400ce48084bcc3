"""The compressed .ply of PlayCanvas and SuperSplat: four words a Gaussian, a byte per SH number.

Binary little-endian; chunks of 256 Gaussians, in an order in which neighbours are near each other,
give each column two ends, between which its numbers are stored:

    chunk   min_x .. max_z, min_scale_x .. max_scale_z, min_r .. max_b          18 float32
    vertex  packed_position   x, y, z in 11, 10, 11 bits, the first uppermost   uint32 each
            packed_rotation   which of (w, x, y, z) is the largest, two bits; the others as
                              1/2 + q / sqrt(2), 10 bits each
            packed_scale      log scales in 11, 10, 11 bits
            packed_color      1/2 + SH_C0 sh0 and alpha, 8 bits each
    sh      f_rest_i, channel-major: byte b is (b - 127.5) / 32

(https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/compressed-ply)
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.ply_table import Header, read_header, read_table
from ..errors import SplatrimError
from ..model.morton import morton_order
from .arrays import SH_C0, Arrays, Floats, Words, logit, with_largest, without_largest

CHUNK = 256
MAX_LOG_SCALE = 20.0  # a stray huge or flat one would take its chunk's steps
AXES = ("x", "y", "z", "scale_x", "scale_y", "scale_z", "r", "g", "b")
ENDS = [f"{end}_{name}" for at in (0, 3, 6) for end in ("min", "max") for name in AXES[at : at + 3]]
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
FINE = (11, 10, 11)
COARSE = (8, 8, 8, 8)


def is_compressed(header: Header) -> bool:
    """Whether a .ply is one of these."""
    vertex = header.element("vertex")
    return vertex is not None and PACKED[0] in vertex.properties


def encode(model: Arrays) -> bytes:
    """The file of a model; its rows come in another order."""
    model = model.rows(morton_order(torch.from_numpy(model.means)).numpy())
    n, n_chunks = len(model.means), -(-len(model.means) // CHUNK)
    colors = (0.5 + SH_C0 * model.sh0).astype(np.float32)
    scales = model.scales.clip(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    ends, shares = [], []
    for values in (model.means, scales, colors):
        low, high = _ends(values)
        ends += [low, high]
        chunk = np.arange(n) // CHUNK
        span = (high - low)[chunk]
        shares.append((values - low[chunk]) / np.where(span > 0, span, 1))
    largest, others = without_largest(model.quats)
    turns = _packed(0.5 + others / np.sqrt(2), (10, 10, 10))
    words = [
        _packed(shares[0], FINE),
        largest.astype(np.uint32) << np.uint32(30) | turns,
        _packed(shares[1], FINE),
        _packed(np.concatenate([shares[2], model.alphas[:, None]], axis=1), COARSE),
    ]
    harmonics = model.shN.transpose(0, 2, 1).reshape(n, 3 * model.shN.shape[1])
    lines = ["ply", "format binary_little_endian 1.0", f"element chunk {n_chunks}"]
    lines += [f"property float {name}" for name in ENDS]
    lines += [f"element vertex {n}", *(f"property uint {name}" for name in PACKED)]
    if harmonics.shape[1]:
        lines += [f"element sh {n}"]
        lines += [f"property uchar f_rest_{i}" for i in range(harmonics.shape[1])]
    parts = [
        "\n".join([*lines, "end_header", ""]).encode("ascii"),
        np.concatenate(ends, axis=1).astype("<f4").tobytes(),
        np.stack(words, axis=1).astype("<u4").tobytes(),
        np.floor(128 + 32 * harmonics).clip(0, 255).astype(np.uint8).tobytes(),
    ]
    return b"".join(parts)


def decode(path: Path) -> Arrays:
    """The model in a file.

    Raises:
        SplatrimError: not a readable .ply, or a part of the format is missing.
    """
    header = read_header(path)
    chunks, table = read_table(path, "chunk"), read_table(path)
    n = len(table)
    color_ends = [name for name in ENDS if name.endswith(("_r", "_g", "_b"))]
    old = not set(color_ends) & set(chunks.dtype.names or ())  # before 2024: colours in 0..1
    wanted = [name for name in ENDS if not (old and name in color_ends)]
    missing = [name for name in wanted if name not in (chunks.dtype.names or ())]
    missing += [name for name in PACKED if name not in (table.dtype.names or ())]
    if missing or len(chunks) < -(-n // CHUNK):
        what = f"property {missing[0]}" if missing else "a part of its chunks"
        raise SplatrimError(f"{path} is a damaged compressed .ply: {what} is missing")
    chunk = np.arange(n) // CHUNK

    def between(names: tuple[str, ...], shares: Floats) -> Floats:
        low, high = (
            np.stack([chunks[f"{end}_{name}"][chunk] for name in names], axis=1).astype(np.float64)
            for end in ("min", "max")
        )
        return (low + shares * (high - low)).astype(np.float32)

    position, rotation, scale, color = (table[name].astype(np.uint32) for name in PACKED)
    turns = (_unpacked(rotation, (10, 10, 10)) - 0.5) * np.sqrt(2)
    rgba = _unpacked(color, COARSE)
    rgb = rgba[:, :3] if old else between(AXES[6:], rgba[:, :3])
    return Arrays(
        between(AXES[:3], _unpacked(position, FINE)),
        with_largest(rotation >> np.uint32(30), turns.astype(np.float32)),
        between(AXES[3:6], _unpacked(scale, FINE)),
        logit(rgba[:, 3]),
        ((rgb - 0.5) / SH_C0).astype(np.float32),
        _harmonics(path, header, n),
    )


def _harmonics(path: Path, header: Header, n: int) -> Floats:  # [N, K-1, 3]
    element = header.element("sh")
    if element is None:
        return np.zeros((n, 0, 3), np.float32)
    names = [f"f_rest_{i}" for i in range(len(element.properties))]
    if set(names) != set(element.properties) or len(names) not in (9, 24, 45):
        raise SplatrimError(f"{path} is a damaged compressed .ply: it has {len(names)} SH numbers")
    if element.n_rows != n:
        raise SplatrimError(f"{path} is a damaged compressed .ply: SH of {element.n_rows} of {n}")
    table: NDArray[Any] = read_table(path, "sh")
    flat = np.stack([table[name] for name in names], axis=1).astype(np.float32)
    values = ((flat - 127.5) / 32).astype(np.float32)
    return values.reshape(n, 3, len(names) // 3).transpose(0, 2, 1)


def _ends(values: Floats) -> tuple[Floats, Floats]:  # [N, C] -> two of [chunks, C]
    """Smallest and largest of each chunk."""
    starts = np.arange(0, len(values), CHUNK)
    if not len(starts):
        empty = np.zeros((0, values.shape[1]), np.float32)
        return empty, empty
    return np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)


def _packed(shares: NDArray[np.floating], bits: tuple[int, ...]) -> Words:  # [N, C] -> [N]
    """Numbers in 0..1 side by side, the first uppermost."""
    word = np.zeros(len(shares), np.uint32)
    for i, width in enumerate(bits):
        step = np.rint(shares[:, i].clip(0, 1) * (2**width - 1)).astype(np.uint32)
        word = word << np.uint32(width) | step
    return word


def _unpacked(words: Words, bits: tuple[int, ...]) -> Floats:  # [N] -> [N, C]
    columns = []
    for width in reversed(bits):
        columns.append((words & np.uint32(2**width - 1)) / np.float32(2**width - 1))
        words = words >> np.uint32(width)
    return np.stack(columns[::-1], axis=1).astype(np.float32)
