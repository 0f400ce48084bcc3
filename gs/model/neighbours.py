"""Distances to the nearest other points, exact, by a k-d tree."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAF = 64  # points compared at once


def mean_squared_neighbor_distances(
    points: Tensor,  # [N, 3]
    k: int = 3,
) -> Tensor:  # [N]
    """Mean squared distance to the k nearest other points, exact.

    Points at the same place count as neighbours at distance 0. With fewer than k other points the
    mean is over those; a single point gets 0.

    The points are split into a balanced k-d tree whose leaves are compared whole: each leaf first
    with itself, then with the others in the order of the distance of their boxes, as long as that
    is less than the leaf's worst k-th distance.
    """
    n = len(points)
    k = min(k, n - 1)
    if k < 1:
        return points.new_zeros(n)
    leaves = _kd_leaves(points)  # [L, B] row numbers, n where a leaf has no point
    n_leaves, width = leaves.shape
    empty = leaves == n
    inf = float("inf")
    # Absent points lie infinitely far from all others; NaN from inf - inf is replaced below.
    padded = torch.cat([points, points.new_full((1, 3), inf)])[leaves]  # [L, B, 3]
    box_min = padded.amin(1)
    box_max = padded.masked_fill(empty[..., None], -inf).amax(1)

    self_pairs = torch.eye(width, dtype=torch.bool, device=points.device)[None]
    own = _pair_distances(padded, padded).masked_fill(self_pairs, inf)
    best = _smallest(own, k)  # [L, B, k]

    for first in range(0, n_leaves, 512):  # bounds the [leaves, leaves] matrix
        block = slice(first, min(first + 512, n_leaves))
        rows = torch.arange(block.start, block.stop, device=points.device)
        gaps = torch.maximum(
            box_min[None] - box_max[rows, None], box_min[rows, None] - box_max[None]
        ).clamp_min(0)  # [b, L, 3]
        gaps = gaps.square().sum(-1)
        gaps[rows - first, rows] = inf
        gaps, order = gaps.sort(1)
        for column in range(n_leaves - 1):
            worst = best[rows, :, -1].masked_fill(empty[rows], 0).amax(1)
            # Boxes come nearest first: a leaf that is done stays done.
            rows = rows[gaps[rows - first, column] < worst]
            if len(rows) == 0:
                break
            others = order[rows - first, column]
            found = _smallest(_pair_distances(padded[rows], padded[others]), k)
            best[rows] = _smallest(torch.cat([best[rows], found], -1), k)

    out = points.new_empty(n + 1)
    out[leaves.flatten()] = best.mean(-1).flatten()
    return out[:n]


def _pair_distances(a: Tensor, b: Tensor) -> Tensor:  # [L, A, 3], [L, B, 3] -> [L, A, B]
    squared = (a[:, :, None, 0] - b[:, None, :, 0]).square_()
    for axis in (1, 2):
        squared += (a[:, :, None, axis] - b[:, None, :, axis]).square_()
    return squared.nan_to_num_(nan=float("inf"), posinf=float("inf"))


def _smallest(x: Tensor, k: int) -> Tensor:  # [..., M] -> [..., k] ascending
    if x.shape[-1] < k:
        x = torch.nn.functional.pad(x, (0, k - x.shape[-1]), value=float("inf"))
    return x.topk(k, largest=False, sorted=True).values


def _kd_leaves(points: Tensor) -> Tensor:  # [N, 3] -> [L, B] int64
    """Row numbers of a balanced k-d tree's leaves, padded with N."""
    n = len(points)
    depth = max(0, math.ceil(math.log2(n / LEAF)))
    width = math.ceil(n / 2**depth)
    rows = torch.arange(width * 2**depth, device=points.device)
    position = rows.clamp_max(n - 1)  # copies of the last point stand in where there is none
    rows = rows.clamp_max(n)[None]
    places = points[position][None]  # [segments, M, 3]
    for _ in range(depth):
        axis = (places.amax(1) - places.amin(1)).argmax(1)  # widest, per segment
        keys = places.gather(2, axis[:, None, None].expand(-1, places.shape[1], 1))[..., 0]
        order = keys.argsort(1)
        rows = rows.gather(1, order).reshape(2 * len(rows), -1)
        places = places.gather(1, order[..., None].expand(-1, -1, 3)).reshape(len(rows), -1, 3)
    return rows
