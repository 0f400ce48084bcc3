"""A small exact ray-caster: textured spheres, boxes and cylinders, an area light, soft shadows.

A solid is a unit primitive under an affine map, so one ray in the world is one ray in its local
frame with the same parameter t. Rays are [R, 3] float32 arrays; nothing is random here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

NEAR = 1e-3
Texture = Callable[[ndarray], ndarray]  # local points [R, 3] -> linear colours [R, 3]


@dataclass(frozen=True)
class Solid:
    """A unit primitive, scaled, rotated about z and moved."""

    shape: str
    """ "sphere" (radius 1), "box" ([-1, 1]^3) or "cylinder" (radius 1, |z| <= 1)."""
    centre: tuple[float, float, float]
    scale: tuple[float, float, float]
    texture: Texture
    """Colour at a point of the local frame after scaling, so in world units."""
    turn: float = 0.0
    """Rotation about z in degrees."""
    gloss: float = 0.0
    """Strength of the highlight."""

    def to_local(self, vectors: ndarray) -> ndarray:  # [R, 3] -> [R, 3]
        """Rotate world vectors into the frame of the solid, in world units."""
        angle = np.deg2rad(self.turn)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
        return np.stack([c * x + s * y, c * y - s * x, z], axis=-1)

    def to_world(self, vectors: ndarray) -> ndarray:  # [R, 3] -> [R, 3]
        """The inverse of `to_local`."""
        angle = np.deg2rad(self.turn)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
        return np.stack([c * x - s * y, s * x + c * y, z], axis=-1)

    def intersect(self, origins: ndarray, directions: ndarray) -> tuple[ndarray, ndarray]:
        """Where rays enter and leave: t [R] each, entry = inf where they miss."""
        scale = _f32(self.scale)
        o = self.to_local(origins - _f32(self.centre)) / scale
        d = self.to_local(directions) / scale
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.shape == "sphere":
                enter, leave = _quadric(o, d, 3)
            elif self.shape == "box":
                enter, leave = _slab(o, d, 0)
                for axis in (1, 2):
                    first, last = _slab(o, d, axis)
                    enter, leave = np.maximum(enter, first), np.minimum(leave, last)
            elif self.shape == "cylinder":
                enter, leave = _quadric(o, d, 2)
                first, last = _slab(o, d, 2)
                enter, leave = np.maximum(enter, first), np.minimum(leave, last)
            else:
                raise ValueError(f"shape: expected sphere, box or cylinder, got {self.shape!r}")
        hit = leave > enter
        return np.where(hit, enter, np.inf), np.where(hit, leave, -np.inf)

    def normals(self, local: ndarray) -> ndarray:  # [R, 3] -> [R, 3]
        """Outward unit normals in the world at points of the local frame in world units."""
        scale = _f32(self.scale)
        p = local / scale
        if self.shape == "sphere":
            normal = p / scale
        elif self.shape == "box":
            side = np.argmax(np.abs(p), axis=-1)
            normal = np.eye(3, dtype=np.float32)[side] * np.sign(p)
        else:
            on_cap = np.abs(p[:, 2:]) > 1 - 1e-4
            cap = _f32([0, 0, 1]) * np.sign(p[:, 2:])
            normal = np.where(on_cap, cap, p * _f32([1, 1, 0]) / scale)
        return _unit(self.to_world(normal))


@dataclass(frozen=True)
class Stage:
    """What is looked at: solids inside a room, lit by a disc-shaped light under the ceiling."""

    solids: list[Solid]
    room: Solid
    """Seen from inside; casts no shadow."""
    light: tuple[float, float, float]
    """Centre of the light."""
    light_radius: float
    light_strength: float = 0.95
    ambient: float = 0.34


def trace(
    stage: Stage,
    origins: ndarray,  # [R, 3] float32
    directions: ndarray,  # [R, 3] float32, need not be unit
    light_samples: ndarray,  # [L, 2] in the unit disc
) -> tuple[ndarray, ndarray]:  # linear colours [R, 3], t [R]
    """Colour and distance (in lengths of the direction) of what every ray hits."""
    nearest = stage.room.intersect(origins, directions)[1]
    which = np.full(len(origins), -1, dtype=np.int8)
    for index, solid in enumerate(stage.solids):
        t = solid.intersect(origins, directions)[0]
        closer = (t > NEAR) & (t < nearest)
        nearest[closer] = t[closer]
        which[closer] = index
    points = origins + nearest[:, None] * directions

    albedo = np.empty_like(points)
    normals = np.empty_like(points)
    gloss = np.zeros(len(points), dtype=np.float32)
    for index, solid in enumerate([*stage.solids, stage.room]):
        rows = np.flatnonzero(which == (index if solid is not stage.room else -1))
        local = solid.to_local(points[rows] - _f32(solid.centre))
        albedo[rows] = solid.texture(local)
        normals[rows] = solid.normals(local) * np.float32(-1 if solid is stage.room else 1)
        gloss[rows] = solid.gloss

    # The sky-ward side of things gets more of the light that the room scatters.
    shade = stage.ambient * (0.75 + 0.25 * normals[:, 2])
    shine = np.zeros_like(shade)
    view = _unit(-directions)
    start = points + NEAR * normals
    for sample in light_samples:
        offset = [*(sample * stage.light_radius), 0.0]
        towards = _f32(stage.light) + _f32(offset) - points
        facing = _unit(towards)
        cosine = _dot(facing, normals)
        lit = np.flatnonzero(cosine > 0)
        lit = lit[~_shadowed(stage, start[lit], towards[lit])]
        shade[lit] += stage.light_strength / len(light_samples) * cosine[lit]
        half = _unit(facing[lit] + view[lit])
        highlight = np.maximum(_dot(half, normals[lit]), 0) ** 24
        shine[lit] += gloss[lit] * highlight / len(light_samples)
    return albedo * shade[:, None] + shine[:, None], nearest


def _shadowed(stage: Stage, origins: ndarray, towards: ndarray) -> ndarray:  # [R] bool
    blocked = np.zeros(len(origins), dtype=bool)
    for solid in stage.solids:
        open_rows = np.flatnonzero(~blocked)
        enter, leave = solid.intersect(origins[open_rows], towards[open_rows])
        blocked[open_rows] = (leave > NEAR) & (enter < 1)
    return blocked


def _quadric(o: ndarray, d: ndarray, axes: int) -> tuple[ndarray, ndarray]:
    """Entry and exit of |p[:axes]| = 1; (inf, -inf) where a ray misses."""
    o, d = o[..., :axes], d[..., :axes]
    a, b = _dot(d, d), _dot(o, d)
    root = b * b - a * (_dot(o, o) - 1)
    half = np.sqrt(np.maximum(root, 0))
    miss = root < 0
    return np.where(miss, np.inf, (-b - half) / a), np.where(miss, -np.inf, (-b + half) / a)


def _slab(o: ndarray, d: ndarray, axis: int) -> tuple[ndarray, ndarray]:
    """Entry and exit of |p[axis]| <= 1."""
    inverse = 1 / d[..., axis]
    one, other = (-1 - o[..., axis]) * inverse, (1 - o[..., axis]) * inverse
    return np.minimum(one, other), np.maximum(one, other)


def _unit(vectors: ndarray) -> ndarray:
    return vectors / np.sqrt(_dot(vectors, vectors))[:, None]


def _dot(a: ndarray, b: ndarray) -> ndarray:  # [R, 2 or 3] -> [R]
    """Several times faster than a sum over a last axis this short."""
    product = a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1]
    return product if a.shape[1] == 2 else product + a[:, 2] * b[:, 2]


def _f32(values: Sequence[float]) -> ndarray:
    return np.array(values, dtype=np.float32)
