"""The built-in scene through a lens: what is written, and that a model of it is drawn alike."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gs import Gaussians, load_scene, render
from gs.data.demo import write_demo_scene
from gs.data.demo_lens import COEFFICIENTS, demo_lens, rays_of
from gs.data.loader import ImageLoader
from gs.errors import SplatrimError

pytest.importorskip("pycolmap")


@pytest.mark.parametrize("model", COEFFICIENTS)
def test_rays_project_to_their_pixels(model: str) -> None:
    from gs.data.posed import PosedImage, camera_of

    lens = demo_lens(model.lower(), 64, 48, 53.0)
    x, y = (np.array(v, np.float64) for v in ([0.5, 20.25, 63.5, 31.0], [0.5, 40.0, 47.5, 23.0]))
    rays = rays_of(lens)(x, y)
    posed = PosedImage("a", Path("a"), lens, np.eye(3), np.zeros(3))
    pixels, depths = camera_of(posed, lens, (64, 48)).project(torch.from_numpy(rays))
    assert (depths > 0).all()
    assert np.allclose(pixels.numpy(), np.stack([x, y], -1), atol=1e-4)


def test_a_scene_is_seen_as_it_was_ray_cast(tmp_path: Path) -> None:
    """Points of the scene, as small Gaussians, have the colours of the photographs."""
    write_demo_scene(tmp_path / "s", views=3, width=48, height=36, lens="opencv_fisheye")
    scene = load_scene(tmp_path / "s", distortion="native", resolution=1)
    camera = scene.train[0]
    assert (camera.width, camera.height, camera.undistortion) == (48, 36, None)
    points, colors = scene.points, scene.colors
    model = Gaussians.from_points(points, colors, sh_degree=0)
    with torch.no_grad():
        out = render(model, camera, backend="reference")
    with ImageLoader([camera]) as images:
        want = images[0] / 255
    shown = out.alphas[..., 0] > 0.4
    assert shown.float().mean() > 0.5
    colors = (out.colors / out.alphas.clamp_min(1e-3))[shown]
    error = (colors - want[shown]).square().mean()
    assert error < 0.008  # as blurred as starting points are
    # nothing like it in a mirror
    assert (colors - torch.flip(want, (1,))[shown]).square().mean() > 2 * error


def test_no_such_lens(tmp_path: Path) -> None:
    with pytest.raises(SplatrimError, match="--lens bulb: choose one of pinhole, simple_radial"):
        write_demo_scene(tmp_path / "s", lens="bulb")
    assert not (tmp_path / "s").exists()
