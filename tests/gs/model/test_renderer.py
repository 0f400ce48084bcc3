import dataclasses
import inspect
from pathlib import Path

import pytest
import torch

from gs.data.camera import NEAR_PLANE, Camera
from gs.model.gaussians import SH_C0, Gaussians
from gs.model.renderer import render
from gs.model.specs import ParameterSpec
from kernels import rasterization

MASK_LOGITS = ParameterSpec("mask_logits", (2,), lr=0.01, order=35)

WIDTH, HEIGHT = 33, 21


def camera(name: str = "a.png", distance: float = 4.0) -> Camera:
    viewmat = torch.eye(4)
    viewmat[2, 3] = distance
    K = torch.tensor([[30.0, 0, WIDTH / 2], [0, 30.0, HEIGHT / 2], [0, 0, 1]])
    return Camera(name, Path(name), WIDTH, HEIGHT, viewmat, K, WIDTH, HEIGHT)


def model(n: int = 20) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(n, 3, generator=generator)
    gaussians = Gaussians.from_points(points, torch.rand(n, 3, generator=generator))
    with torch.no_grad():
        gaussians.params["shN"].copy_(0.1 * torch.randn(n, 15, 3, generator=generator))
    return gaussians


def test_render_is_one_rasterization() -> None:
    gaussians, view, background = model(), camera(), torch.tensor([0.2, 0.4, 0.6])
    gaussians.active_sh_degree = 2
    out = render(gaussians, view, background=background)
    colors, alphas, _ = rasterization(
        gaussians.params["means"],
        gaussians.params["quats"],
        gaussians.params["scales"].exp(),
        gaussians.params["opacities"].sigmoid(),
        torch.cat([gaussians.params["sh0"], gaussians.params["shN"]], 1),
        view.viewmat[None],
        view.K[None],
        WIDTH,
        HEIGHT,
        near_plane=0.2,
        sh_degree=2,
        backgrounds=background[None],
    )
    assert out.colors.shape == (HEIGHT, WIDTH, 3)
    assert out.alphas.shape == (HEIGHT, WIDTH, 1)
    assert torch.equal(out.colors, colors[0])
    assert torch.equal(out.alphas, alphas[0])
    assert 0.01 < out.alphas.mean() < 0.99


def test_degree_and_other_keywords_are_passed_on() -> None:
    gaussians, view = model(), camera()
    assert gaussians.active_sh_degree == 0
    assert torch.equal(render(gaussians, view).colors, render(gaussians, view, sh_degree=0).colors)
    assert not torch.equal(
        render(gaussians, view).colors, render(gaussians, view, sh_degree=3).colors
    )
    nothing = render(gaussians, view, masks=torch.zeros(20), background=torch.ones(3))
    assert torch.equal(nothing.colors, torch.ones(HEIGHT, WIDTH, 3))
    assert render(gaussians, view, render_mode="ED").colors.shape == (HEIGHT, WIDTH, 1)


@pytest.mark.filterwarnings("ignore:(divide|invalid):RuntimeWarning")
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_opacities_in_place_of_the_models(backend: str) -> None:
    gaussians, view = model(), camera()
    factors = torch.linspace(0.01, 1.0, 20)
    opacities = (gaussians.get_opacities().detach() * factors).requires_grad_()
    out = render(gaussians, view, opacities=opacities, backend=backend)
    out.colors.square().sum().backward()
    assert gaussians.params["opacities"].grad is None

    changed = model()
    changed.params["opacities"].data = torch.logit(opacities.detach())
    want = render(changed, view)
    want.colors.square().sum().backward()
    torch.testing.assert_close(out.colors, want.colors, rtol=1e-4, atol=1e-5)
    o = opacities.detach()
    assert opacities.grad is not None
    v_logits = opacities.grad * o * (1 - o)
    scale = changed.params["opacities"].grad.abs().max().item()
    # Triton's gradients are good to about 2e-4
    torch.testing.assert_close(
        v_logits, changed.params["opacities"].grad, rtol=1e-2, atol=2e-3 * scale
    )
    # not what a factor on alpha does: this reaches fewer pixels
    assert (out.info["radii"] <= render(gaussians, view, masks=factors).info["radii"]).all()
    assert (out.info["radii"] < render(gaussians, view, masks=factors).info["radii"]).any()


@pytest.mark.parametrize(("depth", "kept"), [(0.15, False), (0.25, True)])
def test_near_plane_is_inrias(depth: float, kept: bool) -> None:
    assert NEAR_PLANE == 0.2
    assert inspect.signature(rasterization).parameters["near_plane"].default != NEAR_PLANE
    gaussians = Gaussians.from_points(torch.zeros(1, 3), torch.ones(1, 3))
    view = camera(distance=depth)
    assert view.near == NEAR_PLANE
    assert bool((render(gaussians, view).info["radii"] > 0).all()) is kept


@pytest.mark.parametrize(("near", "kept"), [(0.01, True), (0.05, False)])
def test_near_plane_is_the_cameras(near: float, kept: bool) -> None:
    gaussians = Gaussians.from_points(torch.zeros(1, 3), torch.ones(1, 3))
    view = dataclasses.replace(camera(distance=0.03), near=near)
    assert bool((render(gaussians, view).info["radii"] > 0).all()) is kept


def test_gradients_reach_every_parameter_and_the_image_plane() -> None:
    gaussians = model()
    gaussians.active_sh_degree = 3
    gaussians.add_parameter(MASK_LOGITS, torch.tensor([1.0, 0.0]).repeat(20, 1))
    out = render(gaussians, camera(), mask_logits=gaussians.params["mask_logits"], mask_seed=5)
    out.colors.square().sum().backward()
    for name, parameter in gaussians.params.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    assert out.info["means2d"].grad.shape == (1, 20, 2)
    assert out.info["means2d"].grad.abs().max() > 0


def test_one_large_gaussian_shows_its_colour() -> None:
    color = torch.tensor([[0.9, 0.5, 0.1]])
    gaussians = Gaussians.from_points(torch.zeros(1, 3), color)
    with torch.no_grad():
        gaussians.params["scales"].fill_(3.0)
        gaussians.params["opacities"].fill_(20.0)
    torch.testing.assert_close(gaussians.params["sh0"][:, 0] * SH_C0 + 0.5, color)
    center = render(gaussians, camera()).colors[HEIGHT // 2, WIDTH // 2]
    torch.testing.assert_close(center, 0.99 * color[0], rtol=1e-3, atol=1e-3)
