"""Cameras that are taken along, and poses fitted with the model frozen."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gs.data.camera import Camera
from gs.data.loader import ImageLoader
from gs.data.scene import Scene
from gs.evaluation.pose_fit import aligned_cameras, fit_poses, similarity
from gs.evaluation.views import evaluate_views, mean_scores
from gs.model.gaussians import Gaussians
from gs.model.poses import compose, motion, with_pose
from kernels.reference.poses import rigid_exponential

pytestmark = pytest.mark.usefixtures("one_thread")


def cameras_at(viewmats: list[Tensor]) -> list[Camera]:
    return [Camera(str(k), None, 8, 6, V, torch.eye(3), 8, 6) for k, V in enumerate(viewmats)]


def test_a_similarity_is_found_again() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(9, 3, generator=g).double()
    R = rigid_exponential(torch.randn(6, generator=g).double() * 0.5)[:, :3]
    R = torch.linalg.qr(R)[0] * torch.linalg.qr(R)[1].diagonal().sign()
    t = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    s, rotation, shift = similarity(x, 1.7 * x @ R.T + t)
    assert s == pytest.approx(1.7)
    torch.testing.assert_close(rotation, R, rtol=0, atol=1e-9)
    torch.testing.assert_close(shift, t, rtol=0, atol=1e-9)


def test_mirrored_points_get_a_rotation() -> None:
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double()
    _, R, _ = similarity(x, x * torch.tensor([1.0, 1.0, -1.0]))
    assert torch.linalg.det(R).item() == pytest.approx(1.0)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_points_on_a_line_are_shifted_only(n: int) -> None:
    x = torch.arange(n).double()[:, None] * torch.tensor([1.0, 2.0, 3.0])
    s, R, t = similarity(x, 2.0 * x + 1.0)
    assert s == 1.0 and torch.equal(R, torch.eye(3).double())
    torch.testing.assert_close(t, (2.0 * x + 1.0).mean(0) - x.mean(0))


def test_cameras_are_taken_along(turned_view: Callable[[float], Tensor]) -> None:
    g = torch.Generator().manual_seed(1)
    given = []
    for k in range(6):
        view = turned_view(0.6 * k)
        view[:3, 3] += 0.3 * torch.randn(3, generator=g)
        given.append(view)
    before = cameras_at(given)
    world = torch.eye(4, dtype=torch.float64)
    world[:3] = rigid_exponential(torch.tensor([0.3, -0.1, 0.2, 0.1, 0.3, -0.2]).double())
    after = [with_pose(c, c.viewmat.double() @ torch.linalg.inv(world)) for c in before]
    moved = aligned_cameras(before[4:], before[:4], after[:4])
    for a, b in zip(moved, after[4:], strict=True):
        degrees, distance = motion(a.viewmat, b.viewmat)
        assert degrees < 1e-3 and distance < 1e-5
    assert aligned_cameras([], before, after) == []


def test_motion_has_the_digits_of_small_and_large_angles() -> None:
    V = torch.eye(4).double()
    for degrees in (1e-4, 1.0, 90.0, 179.0):
        xi = torch.tensor([0.0, 0.0, 0.0, 0.0, math.radians(degrees) / 256, 0.0]).double()
        turn = rigid_exponential(xi)
        moved = V
        for _ in range(256):  # the series is for small steps
            moved = compose(turn, moved)
        assert motion(V, moved)[0] == pytest.approx(degrees, rel=1e-5)
    shift = torch.eye(3, 4).double()
    shift[:, 3] = torch.tensor([3.0, 0.0, 4.0])
    assert motion(V, compose(shift, V)) == pytest.approx((0.0, 5.0))


def test_a_fitted_pose_shows_its_image(
    write_scene: Callable[..., Scene], turned_view: Callable[[float], Tensor]
) -> None:
    g = torch.Generator().manual_seed(0)
    points, colors = torch.rand(40, 3, generator=g) * 2 - 1, torch.rand(40, 3, generator=g)
    scene = write_scene(points, colors, [turned_view(0.4 * k) for k in range(3)], 1, (32, 24), 36)
    model = Gaussians.from_points(points, colors, sh_degree=0)
    model.params["opacities"].data.fill_(3.0)
    before = {name: x.detach().clone() for name, x in model.params.items()}
    shift = torch.eye(3, 4, dtype=torch.float64)
    shift[:, 3] = torch.tensor([0.02, -0.03, 0.02])
    off = [with_pose(c, compose(shift, c.viewmat.double())) for c in scene.test]
    black = torch.zeros(3)
    with ImageLoader([*scene.train, *scene.test]) as images:
        found = fit_poses(model, off, images, black, indices=(1, 2), unit=scene.extent)

        def quality(test: list[Camera]) -> float:
            cameras = [*scene.train, *test]
            return mean_scores(evaluate_views(model, cameras, images, black, indices=(1, 2)))[
                "psnr"
            ]

        assert quality(found) > quality(off) + 10.0
    # the model is frozen
    assert all(torch.equal(x, before[name]) for name, x in model.params.items())
    assert all(x.grad is None for x in model.params.values())
    assert [dataclasses.replace(a, viewmat=b.viewmat) == b for a, b in zip(found, off, strict=True)]
