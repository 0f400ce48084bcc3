"""SPZ, Niantic's format: one byte per number or nearly so, under gzip (github.com/nianticlabs/spz).

Version 3: a header of 16 bytes, then the columns one after the other.

    header    magic "NGSP", version, N (uint32 each), SH degree, fractional bits, flags, 0 (uint8)
    means     three numbers of 24 bits, signed, in steps of 2^-fractional bits
    alphas    0..1 times 255
    sh0       127.5 + 255 * 0.15 sh0
    scales    16 (log scale + 10)
    quats     32 bits: two say which of (x, y, z, w) is the largest, then of each other, first to
              last, a sign and nine bits of its magnitude times sqrt(2); version 2: x, y, z as
              127.5 + 127.5 q, w >= 0
    shN       128 + 128 shN, channels inside

Some writers round shN to four or five bits, which makes the file half as large and costs 0.5 to 1
dB; here it keeps its eight. The file's axes are right, up, back, a model's here right, down, front:
`turned` changes signs. Version 4 (zstd) is read by `gs.formats.sog`.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from .arrays import Arrays, Floats, Words, logit, unit, with_largest, without_largest

MAGIC = b"NGSP"
HEADER = struct.Struct("<4sIIBBBB")
VERSION = 3
FRACTIONAL_BITS = 12
FINE_BITS = 13  # of half the median coordinate: scenes of small numbers get finer steps
ANTIALIASED = 1  # of the flags
COLOR_SCALE = 0.15
MAGNITUDE = 511  # of a quaternion's component, nine bits
MOST_PACKED = 1100  # times that deflate makes bytes fewer at best

# Of the harmonics of degrees 1 to 3: -1 where y and z together have an odd power.
SIGNS = np.array([-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1], np.float32)

Bytes = NDArray[np.uint8]


def turned(model: Arrays) -> Arrays:
    """A model half a round about x: from this project's axes to the file's, and back; exact."""
    k = model.shN.shape[1]
    return model._replace(
        means=model.means * np.array([1, -1, -1], np.float32),
        quats=model.quats * np.array([1, 1, -1, -1], np.float32),
        shN=model.shN * SIGNS[:k, None],
    )


def encode(model: Arrays, *, antialiased: bool = False) -> bytes:
    """The file of a model, and whether it is to be drawn antialiased."""
    model = turned(model)
    n, degree = len(model.means), model.degree
    bits = _fractional_bits(model.means)
    steps = np.rint(model.means.astype(np.float64) * 2.0**bits).clip(-(2**23), 2**23 - 1)
    largest, others = without_largest(model.quats[:, [1, 2, 3, 0]])
    words = largest.astype(np.uint32)
    for i in range(3):
        share = np.rint(np.abs(others[:, i]) * (np.sqrt(2) * MAGNITUDE)).clip(0, MAGNITUDE)
        sign = (others[:, i] < 0).astype(np.uint32)
        words = words << np.uint32(10) | sign << np.uint32(9) | share.astype(np.uint32)
    columns = [
        _as_bytes(steps.astype("<i4"), 3),
        _rounded(255 * model.alphas),
        _rounded(127.5 + 255 * COLOR_SCALE * model.sh0),
        _rounded(16 * (model.scales + 10)),
        _as_bytes(words.astype("<u4")[:, None], 4),
        _rounded(128 + 128 * model.shN),
    ]
    data = HEADER.pack(MAGIC, VERSION, n, degree, bits, ANTIALIASED if antialiased else 0, 0)
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    parts = [data, *(column.tobytes() for column in columns)]
    return b"".join([*(packer.compress(part) for part in parts), packer.flush()])


def is_antialiased(data: bytes) -> bool:
    """What the flags say; False where there is no header of version 2 or 3."""
    try:
        head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, HEADER.size)
    except zlib.error:
        return False
    return len(head) == HEADER.size and bool(HEADER.unpack(head)[5] & ANTIALIASED)


def decode(data: bytes) -> Arrays:
    """The model in a file of version 2 or 3. Raises ValueError, the end of a sentence."""
    opener = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        head = opener.decompress(data, HEADER.size)
        if len(head) < HEADER.size:
            raise ValueError("ends within its header")
        magic, version, n, degree, bits, _, _ = HEADER.unpack(head)
        if magic != MAGIC or version not in (2, 3):
            raise ValueError(f"has SPZ version {version}, which is not read")
        if degree > 3 or bits > 24:
            raise ValueError(f"has a damaged header: SH degree {degree}, {bits} fractional bits")
        turn, k = 4 if version == 3 else 3, (degree + 1) ** 2 - 1
        size = n * (9 + 1 + 3 + 3 + turn + 3 * k)
        if size > MOST_PACKED * len(data):
            raise ValueError(f"is too short for the {n} Gaussians that its header counts")
        body = opener.decompress(opener.unconsumed_tail, size) if size else b""
    except zlib.error as error:
        raise ValueError(f"is damaged: {error}") from error
    if len(body) < size:
        raise ValueError(f"is too short for the {n} Gaussians that its header counts")
    columns, start = [], 0
    for width in (9, 1, 3, 3, turn, 3 * k):
        columns.append(np.frombuffer(body, np.uint8, n * width, start).reshape(n, width))
        start += n * width
    steps, alphas, colors, scales, turns, harmonics = columns
    means = np.zeros((n, 3, 4), np.uint8)
    means[..., 1:] = steps.reshape(n, 3, 3)  # the upper bytes of 32 bits, which keeps the sign
    model = Arrays(
        ((means.view("<i4")[..., 0] >> 8) * 2.0**-bits).astype(np.float32),
        _turns_3(turns) if version == 3 else _turns_2(turns),
        scales.astype(np.float32) / 16 - 10,
        logit(alphas[:, 0] / 255),
        ((colors.astype(np.float32) - 127.5) / (255 * COLOR_SCALE)).astype(np.float32),
        ((harmonics.astype(np.float32) - 128) / 128).reshape(n, k, 3),
    )
    return turned(model)


def _fractional_bits(means: Floats) -> int:
    """As many as the largest coordinate leaves of 24, but no finer than the scene needs."""
    if not means.size or not np.abs(means).max():
        return FRACTIONAL_BITS
    sizes = np.abs(means.astype(np.float64))
    fit = 22 - int(np.floor(np.log2(sizes.max())))
    wanted = FINE_BITS - int(np.ceil(np.log2(max(float(np.median(sizes)), 1e-6))))
    return max(min(max(wanted, FRACTIONAL_BITS), fit, 24), 0)


def _turns_3(turns: Bytes) -> Floats:  # [N, 4] -> [N, 4]
    words: Words = np.ascontiguousarray(turns).view("<u4")[:, 0]
    parts = words[:, None] >> np.array([20, 10, 0], np.uint32) & np.uint32(1023)
    signs = np.where(parts & 512, -1.0, 1.0)
    others = (signs * (parts & MAGNITUDE) / (np.sqrt(2) * MAGNITUDE)).astype(np.float32)
    return with_largest(words >> np.uint32(30), others)[:, [3, 0, 1, 2]]


def _turns_2(turns: Bytes) -> Floats:  # [N, 3] -> [N, 4]
    xyz = turns.astype(np.float64) / 127.5 - 1
    w = np.sqrt((1 - np.square(xyz).sum(axis=1, keepdims=True)).clip(0))
    return unit(np.concatenate([w, xyz], axis=1).astype(np.float32))


def _as_bytes(integers: NDArray[np.integer], n_bytes: int) -> Bytes:
    """The lowest bytes of little-endian integers of 32 bits."""
    whole = np.ascontiguousarray(integers).view(np.uint8).reshape(*integers.shape, 4)
    return np.ascontiguousarray(whole[..., :n_bytes])


def _rounded(values: NDArray[np.floating]) -> Bytes:
    return np.rint(values).clip(0, 255).astype(np.uint8)
