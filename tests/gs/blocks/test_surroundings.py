"""Surroundings: images and gradients are those of the whole; what is frozen stays as it is."""

import pytest
import torch

from gs.blocks.surroundings import among, seen_rows
from gs.data.scene import Scene
from gs.model.gaussians import Gaussians
from gs.model.renderer import render
from gs.model.splats import Splats
from gs.model.view import view_of

NAMES = ("means", "quats", "scales", "opacities", "colors", "colors_rest")


@pytest.fixture
def whole(scene: Scene) -> Splats:
    """80 Gaussians as float64 leaves."""
    gaussians = Gaussians.from_points(scene.points, scene.colors, sh_degree=1)
    gaussians.one_up_sh_degree()
    generator = torch.Generator().manual_seed(2)
    p = {k: x.double() for k, x in gaussians.to_tensors().items()}
    p = {k: x + 0.1 * torch.randn(x.shape, generator=generator).double() for k, x in p.items()}
    order = ("means", "quats", "scales", "opacities", "sh0", "shN")
    return Splats(*(p[k].requires_grad_() for k in order), sh_degree=1, raw=True)


def part(splats: Splats, rows: torch.Tensor) -> Splats:
    leaves = {k: getattr(splats, k).detach()[rows].clone().requires_grad_() for k in NAMES}
    return splats._replace(**leaves)


def loss(splats: Splats, scene: Scene) -> torch.Tensor:
    view = view_of(scene.train[2], torch.device("cpu"))
    view = view._replace(viewmats=view.viewmats.double(), Ks=view.Ks.double())
    image = render(splats, view).colors
    weights = torch.rand(image.shape, generator=torch.Generator().manual_seed(1)).double()
    return (image * weights).square().sum()


def test_gradients_are_those_in_the_whole(whole: Splats, scene: Scene) -> None:
    loss(whole, scene).backward()
    owner = torch.arange(80) % 3
    for block in range(3):
        rows, others = (owner == block), (owner != block)
        own, frozen = part(whole, rows), part(whole, others)
        value = loss(among(own, frozen), scene)
        value.backward()
        for name in NAMES:
            got, wanted = getattr(own, name).grad, getattr(whole, name).grad[rows]
            assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-12 * wanted.abs().max()), name
            assert getattr(frozen, name).grad is None
            assert torch.equal(getattr(frozen, name), getattr(whole, name)[others])


def test_one_block_has_no_surroundings(whole: Splats) -> None:
    nothing = part(whole, torch.zeros(80, dtype=torch.bool))
    assert among(whole, nothing) is whole


def test_what_is_not_seen_changes_no_pixel(scene: Scene) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3000, 3, generator=generator) * 6
    gaussians = Gaussians.from_points(points, points.sigmoid(), sh_degree=0)
    gaussians.params["scales"].data += 0.7 * torch.randn(3000, 3, generator=generator)
    p = gaussians.to_tensors()
    rows = seen_rows(scene.train, p["means"], p["scales"])
    assert 0.1 < rows.float().mean() < 0.9
    chosen = Gaussians.from_tensors({k: x[rows] for k, x in p.items()})
    with torch.no_grad():
        for camera in scene.train[:3]:
            a, b = (render(model, camera).colors for model in (gaussians, chosen))
            assert torch.equal(a, b) and a.max() > 0.1


def test_parts_must_be_alike(whole: Splats) -> None:
    with pytest.raises(ValueError, match="expected raw=True and SH degree 1, got raw=False and 1"):
        among(whole, whole._replace(raw=False))
    with pytest.raises(ValueError, match="rows as they are"):
        among(whole, whole._replace(rows=torch.arange(80)))
