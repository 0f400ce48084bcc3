"""The ray-caster against what is known of spheres, boxes, cylinders and their shadows."""

import numpy as np
import pytest
from numpy import ndarray

from gs.data.raycast import Solid, Stage, trace


def white(points: ndarray) -> ndarray:
    return np.ones_like(points)


def rays(origins: list[list[float]], directions: list[list[float]]) -> tuple[ndarray, ndarray]:
    return np.array(origins, np.float32), np.array(directions, np.float32)


@pytest.mark.parametrize(
    ("shape", "enter", "leave"), [("sphere", 3, 7), ("box", 3, 7), ("cylinder", 3, 7)]
)
def test_intersect_through_the_middle(shape: str, enter: float, leave: float) -> None:
    solid = Solid(shape, (5, 0, 0), (2, 1, 1), white)
    t0, t1 = solid.intersect(*rays([[0, 0, 0.001]] * 2, [[1, 1e-5, 1e-5], [0, 1, 1e-5]]))
    assert t0[0] == pytest.approx(enter, abs=1e-2) and t1[0] == pytest.approx(leave, abs=1e-2)
    assert np.isinf(t0[1]), "the second ray passes by"


def test_turned_box() -> None:
    solid = Solid("box", (5, 0, 0), (1, 1, 1), white, turn=45)
    t0, _ = solid.intersect(*rays([[0, 1e-4, 1e-4]], [[1, 1e-6, 1e-6]]))
    assert t0[0] == pytest.approx(5 - 2**0.5, abs=1e-3)


@pytest.mark.parametrize("shape", ["sphere", "box", "cylinder"])
def test_points_and_normals(shape: str) -> None:
    solid = Solid(shape, (0.3, -0.2, 0.1), (0.9, 0.9, 0.6), white, turn=30)
    rng = np.random.default_rng(0)
    origins = rng.standard_normal((200, 3)).astype(np.float32)
    origins *= 4 / np.linalg.norm(origins, axis=1, keepdims=True)
    directions = (np.array([0.3, -0.2, 0.1], np.float32) - origins).astype(np.float32)
    t0, t1 = solid.intersect(origins, directions)
    assert np.isfinite(t0).all() and (t0 < 1).all() and (t1 > 1).all()
    local = solid.to_local(origins + t0[:, None] * directions - np.array(solid.centre, np.float32))
    p = np.abs(local / np.array(solid.scale, np.float32))
    radius = np.hypot(p[:, 0], p[:, 1])
    surface = {
        "sphere": np.linalg.norm(p, axis=1),
        "box": p.max(axis=1),
        "cylinder": np.maximum(radius, p[:, 2]),
    }[shape]
    np.testing.assert_allclose(surface, 1, atol=1e-4)
    normals = solid.normals(local)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    assert ((normals * directions).sum(axis=1) < 0).all(), "they face the ray"


def test_unknown_shape() -> None:
    with pytest.raises(ValueError, match="shape"):
        Solid("torus", (0, 0, 0), (1, 1, 1), white).intersect(*rays([[0, 0, 3]], [[0, 0, -1]]))


def test_shadow() -> None:
    ball = Solid("sphere", (0, 0, 2), (0.5, 0.5, 0.5), white)
    room = Solid("box", (0, 0, 3), (6, 6, 3), white)
    stage = Stage([ball], room, light=(0, 0, 5), light_radius=0.5)
    n = 64
    angle = np.arange(n) * 2.4
    lights = np.sqrt((np.arange(n) + 0.5) / n)[:, None] * np.stack(
        [np.cos(angle), np.sin(angle)], axis=1
    )
    # Floor points from under the ball outwards, seen from the side.
    x = np.array([0.01, 0.3, 0.8, 1.0, 1.3, 3.0], np.float32)
    target = np.stack([x, np.zeros_like(x), np.zeros_like(x)], axis=1)
    origin = np.tile(np.array([0.1, -5, 0.8], np.float32), (len(x), 1))
    color, t = trace(stage, origin, target - origin, lights.astype(np.float32))
    np.testing.assert_allclose(t, 1, atol=1e-4)
    ambient = stage.ambient
    assert color[0, 0] == color[1, 0] == pytest.approx(ambient), "no light reaches the umbra"
    assert ambient < color[2, 0] < color[3, 0] < color[4, 0], "the penumbra brightens outwards"
    cosine = 5 / np.hypot(5, 3.0)
    assert color[5, 0] == pytest.approx(ambient + stage.light_strength * cosine, rel=0.02)
