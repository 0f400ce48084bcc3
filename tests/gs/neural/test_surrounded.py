"""Anchors among frozen others: images, gradients and statistics are those of the whole."""

import pytest
import torch
from torch import Tensor

from gs.data.scene import Scene
from gs.densification.growth import (
    GRADIENTS,
    OPACITIES,
    VIEWS,
    VISITS,
    GrowthConfig,
    add_statistics,
)
from gs.model.renderer import render
from gs.model.view import view_of
from gs.neural.anchors import OFF, Anchors
from gs.neural.config import NeuralConfig
from gs.neural.decoder import NETS
from gs.neural.momentum import Teacher, consistency, decoder_of
from gs.neural.surrounded import (
    SurroundedAnchors,
    adopt,
    joined_anchors,
    parts_of,
    seen_from,
    shared_parameters,
)
from tests.gs.neural.test_anchors import model_of

CONFIG = NeuralConfig(feature_dim=8, offsets=3, voxel_size=0.05, appearance_dim=2)

pytestmark = pytest.mark.usefixtures("one_thread")


def whole_of(scene: Scene) -> Anchors:
    model = model_of(scene, CONFIG, tuple(camera.image_name for camera in scene.train))
    model.rows[OFF][::5, 1] = True
    return model


def block_of(whole: Anchors, mine: Tensor) -> SurroundedAnchors:
    part = parts_of(whole, mine)
    off = part.pop(OFF)
    block = SurroundedAnchors(part, CONFIG, dict(shared_parameters(whole)), whole.names)
    block.rows[OFF] = off
    block.surround(joined_anchors(whole, [parts_of(whole, ~mine)]))
    block.share(shared_parameters(whole))
    return block


def halves(model: Anchors) -> Tensor:
    return model.params["anchors"][:, 0].detach() < 0.1


def test_image_and_gradients_of_its_rows_are_those_in_the_whole(scene: Scene) -> None:
    whole = whole_of(scene)
    mine, camera = halves(whole), scene.train[1]
    block = block_of(whole, mine)
    weights = torch.rand(camera.height, camera.width, 3, generator=torch.Generator().manual_seed(2))
    pictures, gradients = [], []
    for model in (whole, block):
        whole.zero_grad()
        out = render(model, camera)
        (out.colors * weights).sum().backward()
        pictures.append(out.colors)
        gradients.append({name: p.grad for name, p in model.params.items() if p.grad is not None})
    torch.testing.assert_close(*pictures, atol=1e-5, rtol=0)
    for name in ("features", "offsets", "scales"):
        want, got = gradients[0][name][mine], gradients[1][name]
        assert float(want.abs().max()) > 0
        assert float((got - want).norm()) < 1e-4 * float(want.norm()), name
    assert block.around is not None
    assert all(p.grad is None for p in block.around.params.values())
    assert all(getattr(block.shared, name) is getattr(whole.shared, name) for name in NETS)


def test_statistics_and_losses_know_its_rows_only(scene: Scene) -> None:
    whole, camera = whole_of(scene), scene.train[1]
    block, alone = block_of(whole, halves(whole)), block_of(whole, halves(whole))
    alone.surround(None)
    growth, teacher = GrowthConfig().build(), Teacher(decoder_of(whole), 0.9)
    for weights in teacher.nets.values():
        weights.mul_(0.9)
    found = []
    for model in (block, alone):
        growth.setup(model, extent=1.0, iterations=10, seed=0)
        out = render(model, camera)
        assert out.splats is not None and out.view is not None
        terms = growth.loss(1, model, out), consistency(model, out.splats, out.view, teacher)
        assert terms[0] is not None
        (out.colors.sum() + terms[0] + terms[1]).backward()
        add_statistics(model, out)
        found.append((terms[0], terms[1], {n: model.rows[n] for n in (OPACITIES, VISITS, VIEWS)}))
        assert float(model.rows[GRADIENTS].sum()) > 0
    for got, want in zip(found[0][:2], found[1][:2], strict=True):
        assert float(got) == pytest.approx(float(want), rel=1e-6) and float(got) > 0
    for name, want in found[1][2].items():
        assert torch.equal(found[0][2][name], want), name


def test_places_known_beforehand_say_what_is_missing(scene: Scene) -> None:
    whole = whole_of(scene)
    block = block_of(whole, halves(whole))
    block.surround(joined_anchors(whole, [parts_of(whole)] * 4))
    view = view_of(scene.train[1], torch.device("cpu"), 1)
    wide = block.splats(view)
    assert block.around is not None and wide.frozen is not None and len(wide.frozen.ids) > 64
    narrow = block.splats_within(view)
    assert narrow.missing is not None and int(narrow.missing) == 0
    block.around._seen = 0.0  # forgets what it learnt
    short = block.splats_within(view)
    assert short.missing is not None and int(short.missing) > 0


def test_what_no_camera_sees_is_left_out(scene: Scene) -> None:
    whole, camera = whole_of(scene), scene.train[1]
    part = seen_from([camera], parts_of(whole), torch.device("cpu"))
    assert 0 < len(part["anchors"])
    with torch.no_grad():
        whole.params["anchors"][::2] += 100.0
    fewer = seen_from([camera, camera], parts_of(whole), torch.device("cpu"))
    assert len(fewer["anchors"]) <= len(whole) / 2 < len(whole)
    nothing = seen_from([], parts_of(whole), torch.device("cpu"))
    assert len(nothing["anchors"]) == 0 and joined_anchors(whole, [nothing]) is None


def test_adopted_parameters_are_the_same_objects(scene: Scene) -> None:
    first, second = whole_of(scene), whole_of(scene)
    adopt(second, shared_parameters(first))
    with torch.no_grad():
        first.shared.get_parameter("mlp_color").add_(1.0)
    a, b = (render(model, scene.train[0]).colors for model in (first, second))
    assert torch.equal(a, b)
