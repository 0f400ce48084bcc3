"""Rays through a district: a lattice of square cells, each with a few boxes and ellipsoids.

A ray walks from cell to cell (Amanatides and Woo, 1987) and meets the solids of one cell at a time;
they stay within their cell's sides, so the first cell with a hit has the nearest. Intersections are
exact. All rays walk at once, on the device of the district.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NOTHING, BOX, ELLIPSOID = 0, 1, 2
GROUND, SKY = -1, -2
NEAR = 1e-3  # of a ray: hits before it are the surface that it starts from
LEVEL = 1e-6  # the least that a direction falls or rises


@dataclass(frozen=True)
class District:
    """Solids by cell, from (0, 0) on, on a ground at height 0, z up."""

    kinds: Tensor
    """NOTHING, BOX or ELLIPSOID. [X, Y, K] int64"""
    centres: Tensor
    """[X, Y, K, 3] float32"""
    halves: Tensor
    """Half the size along each axis. [X, Y, K, 3] float32"""
    materials: Tensor
    """What it is made of, for whoever colours it. [X, Y, K] int64"""
    cell: float
    """Side of a cell."""
    top: float
    """Nothing is higher."""

    @property
    def size(self) -> tuple[float, float]:
        """Extent along x and y."""
        return self.kinds.shape[0] * self.cell, self.kinds.shape[1] * self.cell


class Hits(NamedTuple):
    """What rays meet first."""

    t: Tensor
    """Distance in lengths of the direction; that of the ground, or inf for the sky. [R]"""
    which: Tensor
    """Index of the solid in the district's flattened arrays, GROUND or SKY. [R] int64"""
    normals: Tensor
    """Outward unit normals; up for ground and sky. [R, 3]"""


def cast(
    district: District,
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3], need not be unit
) -> Hits:
    """Find what every ray meets first."""
    d = directions.where(directions.abs() > LEVEL, LEVEL)
    z, dz = origins[:, 2], d[:, 2]
    floor, ceiling = -z / dz, (district.top - z) / dz
    falls = dz < 0
    first = ceiling.where(falls, torch.zeros_like(z)).clamp_min(0)
    last = floor.where(falls, ceiling)
    sides = torch.tensor(district.size, device=d.device)
    one, other = -origins[:, :2] / d[:, :2], (sides - origins[:, :2]) / d[:, :2]
    first = torch.maximum(first, torch.minimum(one, other).amax(dim=1))
    last = torch.minimum(last, torch.maximum(one, other).amin(dim=1))
    t = floor.where(falls & (floor > NEAR), torch.inf)
    which = torch.where(t < torch.inf, GROUND, SKY)
    normals = torch.zeros_like(d)
    normals[:, 2] = 1

    limits = torch.tensor(district.kinds.shape[:2], device=d.device) - 1
    places = origins[:, :2] + first[:, None] * d[:, :2]
    cells = (places / district.cell).floor().long().clamp_min(0).minimum(limits)
    rows = (first < last).nonzero()[:, 0]
    while len(rows):
        cell, o, v = cells[rows], origins[rows], d[rows]
        found, place, normal = _nearest(district, cell, o, v)
        hit = found < t[rows]
        t[rows[hit]], which[rows[hit]], normals[rows[hit]] = found[hit], place[hit], normal[hit]
        border = (cell + (v[:, :2] > 0)) * district.cell
        leaves = (border - o[:, :2]) / v[:, :2]
        axis = leaves.argmin(dim=1, keepdim=True)
        cell = cell.scatter_add(1, axis, v[:, :2].gather(1, axis).sign().long())
        cells[rows] = cell
        inside = ((cell >= 0) & (cell <= limits)).all(dim=1)
        rows = rows[~hit & inside & (leaves.gather(1, axis)[:, 0] < last[rows])]
    return Hits(t, which, normals)


def _nearest(
    district: District,
    cells: Tensor,  # [R, 2]
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
) -> tuple[Tensor, Tensor, Tensor]:  # [R], [R], [R, 3]
    """The nearest solid of each ray's cell: t, or inf, its flat index and the normal there."""
    x, y = cells.unbind(1)
    kinds, halves = district.kinds[x, y], district.halves[x, y]
    o = (origins[:, None] - district.centres[x, y]) / halves
    d = directions[:, None] / halves
    one, other = (-1 - o) / d, (1 - o) / d
    enter = torch.minimum(one, other).amax(dim=2)
    leave = torch.maximum(one, other).amin(dim=2)
    box = enter.where((leave > enter) & (kinds == BOX), torch.inf)
    a, b, c = (d * d).sum(2), (o * d).sum(2), (o * o).sum(2) - 1
    root = b * b - a * c
    ball = ((-b - root.clamp_min(0).sqrt()) / a).where((root > 0) & (kinds == ELLIPSOID), torch.inf)
    t = torch.minimum(box, ball)
    t = t.where(t > NEAR, torch.inf)
    t, slot = t.min(dim=1)
    row = torch.arange(len(t), device=t.device)
    local = o[row, slot] + t.clamp_max(1e6)[:, None] * d[row, slot]
    face = torch.nn.functional.one_hot(local.abs().argmax(dim=1), 3) * local.sign()
    round_ = torch.nn.functional.normalize(local / halves[row, slot], dim=1)
    is_box = (kinds[row, slot] == BOX)[:, None]
    n_slots = kinds.shape[1]
    flat = (x * district.kinds.shape[1] + y) * n_slots + slot
    return t, flat, face.to(round_).where(is_box, round_)
