"""Surroundings: images and gradients are those of the whole; what is frozen stays as it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.blocks.step import compare_within
from gs.blocks.surroundings import find_surroundings, reached_boxes, seen_rows
from gs.data.scene import Scene
from gs.model.gaussians import Gaussians
from gs.model.renderer import render
from gs.model.splats import Frozen, Splats
from gs.model.view import View, view_of
from kernels import photometric_gradient

NAMES = ("means", "quats", "scales", "opacities", "colors", "colors_rest")
CPU = torch.device("cpu")


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


def part(splats: Splats, rows: Tensor) -> Splats:
    leaves = {k: getattr(splats, k).detach()[rows].clone().requires_grad_() for k in NAMES}
    return splats._replace(**leaves)


def frozen_part(splats: Splats, rows: Tensor, boxes: Tensor | None = None) -> Frozen:
    tensors = {k: getattr(splats, k).detach()[rows] for k in NAMES}
    ids = torch.arange(len(rows), dtype=torch.int32)[rows]
    return Frozen(splats._replace(**tensors), ids, None, boxes)


def view_in(scene: Scene, place: int) -> View:
    view = view_of(scene.train[place], CPU, place)
    return view._replace(viewmats=view.viewmats.double(), Ks=view.Ks.double())


def target_of(scene: Scene) -> Tensor:
    camera = scene.train[2]
    shape = camera.height, camera.width, 3
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 255).to(torch.uint8)


def photometric(splats: Splats, scene: Scene, box: Tensor | None = None) -> Tensor:
    """The loss with everything behind it, and its value."""
    image = render(splats, view_in(scene, 2)).colors
    target = target_of(scene)
    if box is None:
        values, v = photometric_gradient(image.detach(), target.double() / 255)
    else:
        values, v = compare_within(image, target, box, 0.2)
    image.backward(v)
    return values


def test_gradients_are_those_in_the_whole(whole: Splats, scene: Scene) -> None:
    photometric(whole, scene)
    owner = torch.arange(80) % 3
    for block in range(3):
        frozen = frozen_part(whole, owner != block)
        before = [x.clone() for x in frozen.splats if isinstance(x, Tensor)]
        own = part(whole, owner == block)._replace(frozen=frozen)
        photometric(own, scene)
        for name in NAMES:
            got, wanted = getattr(own, name).grad, getattr(whole, name).grad[owner == block]
            assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-12 * wanted.abs().max()), name
        after = [x for x in frozen.splats if isinstance(x, Tensor)]
        assert all(map(torch.equal, before, after)) and not any(x.requires_grad for x in after)


@pytest.mark.parametrize("corner", [-1, 1])
def test_gradients_within_a_box_are_those_of_the_whole_image(
    write_scene: Callable[..., Scene], turned_view: Callable[[float], Tensor], corner: int
) -> None:
    """Own Gaussians in a corner: elsewhere the image is wrong, and counts as perfect."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(150, 3, generator=generator) * 2 - 1
    scene = write_scene(points, points.sigmoid(), [turned_view(0.1 * i) for i in range(4)], 3,
                        (120, 90), 130.0)  # fmt: skip
    gaussians = Gaussians.from_points(points, points.sigmoid(), sh_degree=1)
    gaussians.params["scales"].data -= 0.9
    p = {k: x.double() for k, x in gaussians.to_tensors().items()}
    order = ("means", "quats", "scales", "opacities", "sh0", "shN")
    whole = Splats(*(p[k].requires_grad_() for k in order), sh_degree=1, raw=True)
    is_own = (corner * points[:, 0] > 0.5) & (corner * points[:, 1] > 0.4)
    own_model = Gaussians({k: x[is_own] for k, x in gaussians.to_tensors().items()})
    boxes = reached_boxes(own_model, scene.train)
    left, top, right, bottom = boxes[2].tolist()
    assert (right - left) * (bottom - top) < 0.7 * 120 * 90 and right > left and bottom > top

    values = photometric(whole, scene)
    own = part(whole, is_own)._replace(frozen=frozen_part(whole, ~is_own, boxes))
    image = render(own, view_in(scene, 2)).colors
    exact = render(whole, view_in(scene, 2)).colors
    inside = image[top:bottom, left:right], exact[top:bottom, left:right]
    assert torch.allclose(*inside, atol=1e-12) and not torch.allclose(image, exact, atol=1e-3)
    photometric(own, scene, boxes[2])
    for name in NAMES:
        got, wanted = getattr(own, name).grad, getattr(whole, name).grad[is_own]
        assert wanted.abs().max() > 0
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-12 * wanted.abs().max()), name
    assert float(values[0]) > 0


def test_values_within_a_box_are_means_over_it(scene: Scene) -> None:
    target = target_of(scene)
    image = target.double() / 255 + 0.1
    box = torch.tensor([8, 0, 24, 16], dtype=torch.int32)
    values, v_colors = compare_within(image, target, box, 0.2)
    assert float(values[1]) == pytest.approx(0.1)  # of L1
    assert float(values[4]) <= 0.01 + 1e-9
    outside = v_colors.clone()
    outside[:16, 8:24] = 0
    assert not outside.any() and v_colors.any()


def test_what_is_not_seen_changes_no_pixel(scene: Scene) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3000, 3, generator=generator) * 6
    gaussians = Gaussians.from_points(points, points.sigmoid(), sh_degree=0)
    gaussians.params["scales"].data += 0.7 * torch.randn(3000, 3, generator=generator)
    p = gaussians.to_tensors()
    boxes = torch.tensor([[4, 6, 17, 13]] * 3)
    for chosen_boxes in (None, boxes):
        rows = seen_rows(scene.train[:3], p["means"], p["scales"], chosen_boxes)
        assert 0.05 < rows.float().mean() < 0.9
        chosen = Gaussians.from_tensors({k: x[rows] for k, x in p.items()})
        with torch.no_grad():
            for camera in scene.train[:3]:
                a, b = (render(model, camera).colors for model in (gaussians, chosen))
                if chosen_boxes is not None:
                    assert not torch.equal(a, b)
                    a, b = a[6:13, 4:17], b[6:13, 4:17]
                assert torch.equal(a, b) and a.max() > 0.1


def test_boxes_hold_what_is_reached_and_nothing_is_zeros(scene: Scene) -> None:
    gaussians = Gaussians.from_points(scene.points, scene.colors, sh_degree=0)
    gaussians.params["scales"].data -= 1.0
    gaussians.params["means"].data *= torch.tensor([0.1, 0.1, 1.0])
    for camera, box in zip(scene.train, reached_boxes(gaussians, scene.train), strict=True):
        alphas = render(gaussians, camera).alphas.squeeze(-1)
        left, top, right, bottom = box.tolist()
        assert 0 <= left < right <= camera.width and 0 <= top < bottom <= camera.height
        alphas[top:bottom, left:right] = 0
        assert not alphas.any()
    gaussians.params["means"].data += 100.0
    assert not reached_boxes(gaussians, scene.train).any()


def shown(gaussians: Gaussians, rows: Tensor) -> dict[str, Any]:
    params = {k: x[rows] for k, x in gaussians.to_tensors().items()}
    logits = torch.randn(int(rows.sum()), 2, generator=torch.Generator().manual_seed(0))
    return {**params, "mask_logits": logits, "ids": gaussians.rows["ids"][rows]}


def test_surroundings_are_the_seen_of_all_other_blocks(scene: Scene) -> None:
    gaussians = Gaussians.from_points(scene.points, scene.colors, sh_degree=1)
    gaussians.params["means"].data[::4] += 50.0  # nobody sees these
    owner = torch.arange(80) % 3
    others = [
        shown(gaussians, owner == 1),
        shown(gaussians, owner == 2),
        shown(gaussians, owner > 5),
    ]
    frozen = find_surroundings(others, scene.train, None, CPU, sh_degree=1)
    assert frozen is not None and frozen.mask_logits is not None
    seen = (owner > 0) & (torch.arange(80) % 4 > 0)
    wanted = torch.cat([((owner == k) & seen).nonzero()[:, 0] for k in (1, 2)])
    assert torch.equal(frozen.ids.long(), wanted) and len(frozen.mask_logits) == len(wanted)
    assert torch.equal(frozen.splats.means, gaussians.params["means"][wanted])
    nothing = [shown(gaussians, torch.arange(80) % 4 == 0)]
    assert find_surroundings(nothing, scene.train, None, CPU, sh_degree=1) is None
