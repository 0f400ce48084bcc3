"""antimatter15's .splat: 32 bytes a Gaussian without a header, and no view-dependent colour.

    means   three float32
    scales  three float32, not logarithms
    colour  r, g, b of 1/2 + SH_C0 sh0 and alpha, uint8 each
    quats   w, x, y, z as 128 + 128 q, uint8 each

The largest and most opaque come first, so that viewers show something while the rest arrives.
(https://github.com/antimatter15/splat)
"""

import numpy as np

from .arrays import SH_C0, Arrays, logit, unit

ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])
MIN_SCALE = 1e-30  # so that a logarithm is finite


def encode(model: Arrays) -> bytes:
    """The file of a model; its rows come in another order and lose SH above degree 0."""
    model = model.rows(np.argsort(-(model.alphas * np.exp(model.scales.sum(axis=1)))))
    table = np.empty(len(model.means), ROW)
    table["means"] = model.means
    table["scales"] = np.exp(model.scales)
    colors = np.concatenate([0.5 + SH_C0 * model.sh0, model.alphas[:, None]], axis=1)
    table["rgba"] = np.rint(255 * colors).clip(0, 255)
    table["quats"] = np.rint(128 + 128 * model.quats).clip(0, 255)
    return table.tobytes()


def decode(data: bytes) -> Arrays:
    """The model in a file. Raises ValueError, the end of a sentence."""
    if len(data) % ROW.itemsize:
        raise ValueError(f"is no .splat: its {len(data)} bytes are no multiple of {ROW.itemsize}")
    table = np.frombuffer(data, ROW)
    colors = table["rgba"].astype(np.float32) / 255
    with np.errstate(invalid="ignore"):
        scales = np.log(np.maximum(table["scales"], MIN_SCALE))
    return Arrays(
        table["means"],
        unit(((table["quats"].astype(np.float32) - 128) / 128).astype(np.float32)),
        scales,
        logit(colors[:, 3]),
        ((colors[:, :3] - 0.5) / SH_C0).astype(np.float32),
        np.zeros((len(table), 0, 3), np.float32),
    )
