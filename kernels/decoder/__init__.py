"""Anchors decoded into Gaussians, and which anchors a camera sees: checks, and calls a backend.

kernels/reference/decoder.py has the equations; on a GPU both are Triton kernels.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from ..backend import uses_triton
from ..reference import decoder as reference
from ..reference.decoder import Decoded, n_weights
from ..validation import check, check_same

ViewInput = Literal["all", "color"]
"""Which nets see the direction of view: all, or that of colour alone."""

MAX_OFFSETS = 16  # of the kernels: one tile of a matrix product
FEATURES = (16, 32, 64)  # of the kernels

__all__ = ["Decoded", "ViewInput", "decode", "n_weights", "seen_anchors"]


def decode(
    anchors: Tensor,  # [N, 3]
    features: Tensor,  # [N, F]
    offsets: Tensor,  # [N, k, 3]
    scales: Tensor,  # [N, 6]
    weights: Tensor,  # [P]
    rows: Tensor,  # [V] int32
    center: Tensor,  # [3]
    *,
    off: Tensor | None = None,  # [N, k] bool
    view_input: ViewInput = "all",
    precision: str = "default",
    backend: str = "auto",
) -> Decoded:
    """The Gaussians of some anchors, differentiable in features, offsets, scales and weights.

    Anchors stay where they are: neither they nor the camera get a gradient. Sums over anchors are
    taken in a fixed order, so that equal calls have equal gradients. Nothing waits for the device.

    Args:
        anchors: Positions, world units. [N, 3]
        features: What the nets read. [N, F]
        offsets: Of the k Gaussians, in units of the first three scales. [N, k, 3]
        scales: Logarithms: three that stretch the offsets, three of the Gaussians. [N, 6]
        weights: Of the three nets, as kernels/reference/decoder.py lays them out. [P]
        rows: The anchors to decode, each at most once; -1 for a place that stays empty. [V]
        center: Of the camera, in the world. [3]
        off: Offsets whose opacity is 0. [N, k]
        view_input: "all" nets see the direction of view, or that of "color" alone.
        precision: "default" (products in float16) or "exact" to float32 rounding, of the kernels.
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto"; the kernels take 16, 32
            or 64 features and up to 16 offsets, and "auto" takes the reference for others.

    Returns:
        V k Gaussians; those of empty places are finite and of opacity 0.

    Raises:
        ValueError: a shape, dtype or choice is not as above.
    """
    dims = check(
        anchors=(anchors, "N 3"),
        features=(features, "N F"),
        offsets=(offsets, "N k 3"),
        scales=(scales, "N 6"),
        rows=(rows, "V"),
        center=(center, "3"),
    )
    tensors = {"features": features, "offsets": offsets, "scales": scales, "weights": weights}
    check_same("anchors", anchors=anchors, center=center, **tensors)
    n, k = dims["F"], dims["k"]
    if weights.shape != (sum(n_weights(n, k)),):
        raise ValueError(
            f"weights: expected [{sum(n_weights(n, k))}] for {n} features and {k} offsets,"
            f" got {list(weights.shape)}"
        )
    if rows.dtype != torch.int32:
        raise ValueError(f"rows: expected int32, got {rows.dtype}")
    if off is not None:
        check(dims, off=(off, "N k"))
        if off.dtype != torch.bool:
            raise ValueError(f"off: expected bool, got {off.dtype}")
    if view_input not in get_args(ViewInput):
        raise ValueError(f"view_input: expected one of {get_args(ViewInput)}, got {view_input!r}")
    if precision not in ("default", "exact"):
        raise ValueError(f"precision: expected 'default' or 'exact', got {precision!r}")
    suits = n in FEATURES and k <= MAX_OFFSETS
    if uses_triton(backend, anchors) and (suits or backend == "triton"):
        if not suits:
            raise ValueError(
                f"backend 'triton': expected {FEATURES} features and up to {MAX_OFFSETS} offsets,"
                f" got {n} and {k}"
            )
        from . import kernel

        return kernel.decode(
            anchors,
            features,
            offsets,
            scales,
            weights,
            rows,
            center,
            off,
            view_input == "all",
            precision == "exact",
        )
    return reference.decode(
        anchors, features, offsets, scales, weights, rows, center, off, view_input
    )


@torch.no_grad()
def seen_anchors(
    anchors: Tensor,  # [N, 3]
    scales: Tensor,  # [N, 6]
    viewmat: Tensor,  # [4, 4]
    K: Tensor,  # [3, 3]
    width: int,
    height: int,
    near: float,
    *,
    room: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # [V] int32, [1] int32
    """Which anchors to decode for a camera: those whose own Gaussian it sees.

    Args:
        anchors: Positions, world units. [N, 3]
        scales: Logarithms, of which the first three are the scales of an anchor's Gaussian. [N, 6]
        viewmat: World to camera. [4, 4]
        K: Intrinsics in pixels. [3, 3]
        width: Of the image, in pixels.
        height: Of the image, in pixels.
        near: An anchor that is not beyond this depth is not seen.
        room: How many places the answer has, without waiting for the device; None for as many as
            are seen, rounded up to 64 and at least that, which waits.
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".

    Returns:
        Their rows, ascending, then -1; and how many are seen, which may be more than fit.

    Raises:
        ValueError: a shape is not as above, or `room` is below 1.
    """
    check(anchors=(anchors, "N 3"), scales=(scales, "N 6"), viewmat=(viewmat, "4 4"), K=(K, "3 3"))
    check_same("anchors", anchors=anchors, scales=scales, viewmat=viewmat, K=K)
    if room is not None and room < 1:
        raise ValueError(f"room: expected at least 1, got {room}")
    run: ModuleType = reference
    if uses_triton(backend, anchors):
        from . import seen as run
    seen = run.seen_anchors(anchors, scales, viewmat, K, width, height, near)
    places = seen.cumsum(0, dtype=torch.int32)
    count = places[-1:] if len(places) else places.new_zeros(1)
    if room is None:
        room = max(-(-int(count) // PLACES) * PLACES, PLACES)
    places = torch.where(seen & (places <= room), places - 1, room)
    rows = torch.full((room + 1,), -1, dtype=torch.int32, device=anchors.device)
    # all that has no place lands in the last one, which is cut off
    rows[places.long()] = torch.arange(len(anchors), dtype=torch.int32, device=anchors.device)
    return rows[:room].contiguous(), count


PLACES = 64  # a number of places is a multiple of this: the anchors of one program
