"""A procedural district: blocks of buildings between streets, with trees and cars, seen from above.

Every block is 4 by 4 lots with a street on two sides. Detail goes down to a hundredth of a lot, so
that no number of Gaussians is enough for it. Numbers come from hashed integers: the same seed gives
the same district on every device, up to the rounding of colours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .city_rays import BOX, ELLIPSOID, GROUND, NOTHING, SKY, District, Hits, cast

LOTS = 4  # of a block along each side; one more cell is street
CELL = 2.0
TOP = 6.0
SLOTS = 6  # solids of a cell
HOUSE, ROOF_HOUSE, CROWN, TRUNK, CAR = range(5)
SUN = (0.48, -0.36, 0.80)
SUN_BLUR = 0.02  # radius of the sun in radians, wider than the real one
AMBIENT, SUNLIGHT = 0.36, 0.72

_WALLS = ((0.62, 0.34, 0.24), (0.75, 0.70, 0.60), (0.45, 0.46, 0.50), (0.66, 0.56, 0.40))
_ROOFS = ((0.34, 0.33, 0.34), (0.52, 0.22, 0.16), (0.58, 0.57, 0.53), (0.24, 0.29, 0.33))
_CARS = ((0.75, 0.75, 0.77), (0.55, 0.06, 0.06), (0.07, 0.12, 0.30), (0.08, 0.08, 0.09))


def make_district(blocks_x: int, blocks_y: int, seed: int) -> District:
    """Build on the lots of so many blocks along x and y. On the CPU."""
    shape = blocks_x * (LOTS + 1), blocks_y * (LOTS + 1), SLOTS
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.full(shape, NOTHING)
    materials = torch.zeros(shape, dtype=torch.int64)
    centres, halves = torch.zeros(*shape, 3), torch.ones(*shape, 3)

    def add(x: int, y: int, slot: int, kind: int, material: int, box: list[float]) -> None:
        kinds[x, y, slot], materials[x, y, slot] = kind, material
        centres[x, y, slot] = torch.tensor([x * CELL + box[0], y * CELL + box[1], box[2]])
        halves[x, y, slot] = torch.tensor(box[3:])

    for x in range(shape[0]):
        for y in range(shape[1]):
            u = torch.rand(12, generator=generator).tolist()
            across, along = x % (LOTS + 1) == LOTS, y % (LOTS + 1) == LOTS
            if across and along:
                continue
            if across or along:
                _street(add, x, y, u, along)
            elif u[0] < 0.12:
                _park(add, x, y, generator)
            else:
                _house(add, x, y, u)
    return District(kinds, centres, halves, materials, CELL, TOP)


Add = Callable[[int, int, int, int, int, list[float]], None]


def _street(add: Add, x: int, y: int, u: list[float], along: bool) -> None:
    """Up to three cars in their lanes; the street runs along x or along y."""
    for slot in range(3):
        if u[slot] < 0.4:
            lane, place = 0.62 + 0.76 * (slot % 2), 0.3 + 0.45 * slot + 0.2 * u[3 + slot]
            at = [place, lane] if along else [lane, place]
            size = [0.21, 0.09] if along else [0.09, 0.21]
            add(x, y, slot, BOX, CAR, [*at, 0.09, *size, 0.07])


def _park(add: Add, x: int, y: int, generator: torch.Generator) -> None:
    """Three trees: a crown on a trunk each."""
    for tree in range(3):
        a, b, c = torch.rand(3, generator=generator).tolist()
        at, radius = [0.45 + 1.1 * a, 0.45 + 1.1 * b], 0.26 + 0.16 * c
        add(x, y, 2 * tree, ELLIPSOID, CROWN, [*at, 0.5 + radius, radius, radius, 1.2 * radius])
        add(x, y, 2 * tree + 1, BOX, TRUNK, [*at, 0.3, 0.04, 0.04, 0.3])


def _house(add: Add, x: int, y: int, u: list[float]) -> None:
    """A building with a smaller storey on top, two boxes on the roof, and a tree."""
    height = 0.5 + 1.2 * u[1] + 3.4 * u[2] ** 6
    w, d = 0.55 + 0.35 * u[3], 0.55 + 0.35 * u[4]
    add(x, y, 0, BOX, HOUSE, [1.0, 1.0, height / 2, w, d, height / 2])
    if u[5] < 0.6:
        upper = 0.12 + 0.3 * u[6]
        add(x, y, 1, BOX, HOUSE, [1.0, 1.0, height + upper / 2, 0.6 * w, 0.55 * d, upper / 2])
    for slot in (2, 3):
        side = 0.75 * (2 * slot - 5)
        at = [1.0 + side * w, 1.0 + (u[5 + slot] - 0.5) * d]
        size = [0.09, 0.05 + 0.07 * u[9], 0.06]
        add(x, y, slot, BOX, ROOF_HOUSE, [*at, height + 0.06, *size])
    radius = 0.10 + 0.07 * u[10]
    at = [0.2 + 1.6 * (u[11] < 0.5), 0.2 + 1.6 * u[8]]
    at = [min(max(value, radius), CELL - radius) for value in at]
    add(x, y, 4, ELLIPSOID, CROWN, [*at, 0.25 + radius, radius, radius, 1.3 * radius])


def shade(
    district: District,
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    blur: tuple[float, float] = (0.0, 0.0),
) -> tuple[Tensor, Hits]:  # [R, 3] linear
    """Colours of what rays meet, in sunlight with cast shadows, and the hits.

    Args:
        blur: Where on the sun's disc the light comes from, of radius 1.
    """
    hits = cast(district, origins, directions)
    points = origins + hits.t.clamp_max(1e6)[:, None] * directions
    sun = torch.tensor(SUN, device=points.device)
    sun = sun + SUN_BLUR * torch.tensor([*blur, 0.0], device=points.device)
    sun = sun / sun.norm()
    facing = (hits.normals @ sun).clamp_min(0)
    lit = facing.clone()
    rows = ((facing > 0) & (hits.which != SKY)).nonzero()[:, 0]
    start = points[rows] + 2e-3 * hits.normals[rows]
    lit[rows] *= cast(district, start, sun.expand(len(rows), 3)).which == SKY
    light = AMBIENT * (0.7 + 0.3 * hits.normals[:, 2]) + SUNLIGHT * lit
    colors = _albedo(district, hits, points) * light[:, None]
    sky = torch.tensor([0.45, 0.62, 0.85], device=points.device)
    return sky.where((hits.which == SKY)[:, None], colors), hits


def _albedo(district: District, hits: Hits, points: Tensor) -> Tensor:  # [R, 3]
    solid = hits.which.clamp_min(0)
    material = district.materials.flatten()[solid]
    local = points - district.centres.reshape(-1, 3)[solid]
    is_roof = hits.normals[:, 2] > 0.5
    grain = 0.82 + 0.36 * _noise(points, 8.0) * _noise(points, 33.0, 1) ** 0.5

    house = _picked(_WALLS, solid)
    # windows on walls: the coordinate along the wall, and the height
    across = torch.where(hits.normals[:, 0].abs() > 0.5, local[:, 1], local[:, 0])
    u, v = (across / 0.17) % 1, (points[:, 2] / 0.24) % 1
    pane = (u > 0.28) & (u < 0.78) & (v > 0.3) & (v < 0.82)
    curtain = _hash((across / 0.17).floor().long(), (points[:, 2] / 0.24).floor().long(), solid, 5)
    glass = 0.05 + 0.28 * curtain[:, None] * torch.tensor([0.8, 0.95, 1.0], device=points.device)
    house = glass.where((pane & ~is_roof)[:, None], house)
    tiles = 0.86 + 0.14 * (((local[:, 0] / 0.05) % 1) > 0.2) * (((local[:, 1] / 0.09) % 1) > 0.12)
    house = (_picked(_ROOFS, solid + 7) * tiles[:, None]).where(is_roof[:, None], house)

    leaf = _noise(points, 21.0, 3)[:, None]
    crown = torch.tensor([0.10, 0.22, 0.06], device=points.device) * (0.35 + 1.5 * leaf)
    other = _picked(_ROOFS, solid + 3)
    trunk = torch.tensor([0.21, 0.14, 0.09], device=points.device).expand_as(crown)
    table = torch.stack([house, other, crown, trunk, _picked(_CARS, solid)])
    colors = table[material, torch.arange(len(solid), device=solid.device)]
    return _ground(points).where((hits.which == GROUND)[:, None], colors) * grain[:, None]


def _ground(points: Tensor) -> Tensor:  # [R, 3]
    """Lawns and yards on lots; streets with lanes and pavements between them."""
    side = (LOTS + 1) * CELL
    within = points[:, :2] % side - LOTS * CELL  # from 0 on across a street
    in_street = within > 0
    lane = (within - CELL / 2).abs()
    mark = (lane < 0.02) & (((points[:, :2].flip(1) / 0.3) % 1) < 0.55)
    mark &= in_street & ~in_street.flip(1)
    pavement = (lane > 0.72) & in_street & ~in_street.flip(1)
    device = points.device
    lawn = torch.tensor([0.20, 0.30, 0.10], device=device) * (
        0.6 + 0.8 * _noise(points, 2.1, 6)[:, None]
    )
    yard = torch.tensor([0.44, 0.40, 0.34], device=device)
    colors = lawn.where((_noise(points, 0.8, 7) > 0.45)[:, None], yard)
    asphalt = 0.14 + 0.07 * _noise(points, 3.0, 8)[:, None].expand(-1, 3)
    colors = asphalt.where(in_street.any(dim=1)[:, None], colors)
    slabs = 0.40 + 0.12 * (((points[:, :2] / 0.13) % 1) > 0.12).all(dim=1)[:, None].expand(-1, 3)
    colors = slabs.where(pavement.any(dim=1)[:, None], colors)
    return colors.masked_fill(mark.any(dim=1)[:, None], 0.8)


def _picked(palette: tuple[tuple[float, ...], ...], solid: Tensor) -> Tensor:  # [R] -> [R, 3]
    """A colour of a palette for each solid, lighter or darker."""
    colors = torch.tensor(palette, device=solid.device)
    zero = torch.zeros_like(solid)
    shade_ = 0.75 + 0.5 * _hash(solid, zero, zero, 1)
    return colors[(_hash(solid, zero, zero, 2) * len(palette)).long()] * shade_[:, None]


def _noise(points: Tensor, scale: float, seed: int = 0) -> Tensor:  # [R, 3] -> [R] in 0..1
    """Smooth value noise."""
    x = points * scale
    cell = x.floor()
    f = x - cell
    f = f * f * (3 - 2 * f)
    i = cell.long()
    total = torch.zeros_like(f[:, 0])
    for corner in range(8):
        bits = [corner >> axis & 1 for axis in range(3)]
        weight = torch.ones_like(total)
        for axis, bit in enumerate(bits):
            weight = weight * (f[:, axis] if bit else 1 - f[:, axis])
        total += weight * _hash(i[:, 0] + bits[0], i[:, 1] + bits[1], i[:, 2] + bits[2], seed)
    return total


def _hash(x: Tensor, y: Tensor, z: Tensor, seed: int) -> Tensor:  # [R] int64 -> [R] in 0..1
    """A number for integers, the same on all devices."""
    h = (x * 73856093) ^ (y * 19349663) ^ (z * 83492791) ^ (seed * 2654435761)
    h = h & 0x7FFFFFFF
    for factor in (0x45D9F3B, 0x119DE1F3):
        h = ((h ^ (h >> 16)) * factor) & 0x7FFFFFFF
    return (h ^ (h >> 15)).float() / 2**31
