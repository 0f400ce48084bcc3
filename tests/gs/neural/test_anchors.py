"""Anchors as a model: their start, what a view is decoded into, appearances, offsets gone."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from gs.data.scene import Scene
from gs.model.model import Model
from gs.model.rates import OptimConfig
from gs.model.renderer import render
from gs.model.rows import NoneLeft, keep_parts
from gs.model.view import View, view_of
from gs.neural.anchors import OFF, Anchors
from gs.neural.config import NeuralConfig, falling
from gs.neural.decoder import fresh_decoder, kernel_weights, net_sizes, split_net
from kernels import n_weights

CONFIG = NeuralConfig(feature_dim=8, offsets=3, voxel_size=0.05)
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(scene: Scene, config: NeuralConfig = CONFIG, names: tuple[str, ...] = ()) -> Anchors:
    """Anchors with features and offsets that are not 0."""
    model = Anchors.from_points(scene.points, config, names=names)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in ("features", "offsets"):
            x = model.params[name]
            x.copy_(torch.randn(x.shape, generator=generator))
    return model


def test_the_start_has_an_anchor_in_each_cell_with_points() -> None:
    points = torch.tensor([[0.0, 0, 0], [0.01, 0, 0], [0.1, 0, 0], [0.1, 0.24, 0], [0.3, 0, -0.1]])
    model = Anchors.from_points(points, dataclasses.replace(CONFIG, voxel_size=0.1))
    got = sorted(map(tuple, model.params["anchors"].mul(10).round().int().tolist()))
    assert got == [(0, 0, 0), (1, 0, 0), (1, 2, 0), (3, 0, -1)]
    assert float(model.params["features"].abs().max()) == 0.0
    # the first anchor's neighbours are .1, .224 and .316 away
    first = model.params["anchors"].norm(dim=1).argmin()
    want = 0.5 * math.log((0.01 + 0.05 + 0.1) / 3)
    assert model.params["scales"][first].tolist() == pytest.approx([want] * 6, rel=1e-5)


def test_a_voxel_size_of_0_is_that_of_the_points() -> None:
    points = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"), -1).view(-1, 3)
    model = Anchors.from_points(points, dataclasses.replace(CONFIG, voxel_size=0.0))
    assert model.grid == pytest.approx(1.0) and len(model) == 64


def test_a_view_is_drawn_from_the_offsets_of_the_anchors_it_sees(scene: Scene) -> None:
    model, camera = model_of(scene), scene.train[0]
    out = render(model, camera)
    splats = out.splats
    assert splats is not None and splats.rows is not None
    assert len(splats.means) == 3 * len(splats.rows) and len(splats.rows) % 64 == 0
    seen = splats.rows[splats.rows >= 0]
    assert len(seen) == len(model)  # the camera sees all
    assert float(splats.opacities[len(seen) * 3 :].abs().max() if len(seen) % 64 else 0) == 0.0
    assert float(out.alphas.max()) > 0.05
    out.colors.square().sum().backward()
    for name in ("features", "offsets", "scales"):
        gradient = model.params[name].grad
        assert gradient is not None and float(gradient.abs().max()) > 0, name
    assert model.params["anchors"].grad is None
    for name in ("mlp_opacity", "mlp_cov", "mlp_color"):
        gradient = model.shared.get_parameter(name).grad
        assert gradient is not None and float(gradient.abs().max()) > 0, name


def turned_away(camera_view: View) -> View:
    viewmats = camera_view.viewmats.clone()
    viewmats[:, :3] *= torch.tensor([-1.0, 1.0, -1.0])[:, None]
    return camera_view._replace(viewmats=viewmats)


def no_anchor(model: Anchors) -> Anchors:
    empty = {name: x.detach()[:0] for name, x in model.params.items()}
    return Anchors(empty, model.config, dict(model.shared.state_dict()))


@pytest.mark.parametrize("why", ["behind", "empty", "negative"])
def test_where_nothing_is_drawn_there_is_background_and_no_gradient(scene: Scene, why: str) -> None:
    model, view = model_of(scene), view_of(scene.train[0], CPU)
    if why == "behind":
        view = turned_away(view)
    elif why == "empty":
        model = no_anchor(model)
    else:
        with torch.no_grad():  # W2 = 0, b2 = -1: every opacity is tanh(-1)
            sizes = net_sizes(CONFIG, "mlp_opacity")
            _, _, w2, b2 = split_net(model.shared.get_parameter("mlp_opacity"), sizes)
            w2.zero_()
            b2.fill_(-1.0)
    background = torch.tensor([0.2, 0.5, 0.7])
    out = render(model.splats(view), view, background=background)
    assert torch.equal(out.colors, background.expand_as(out.colors))
    out.colors.sum().backward()
    parameters = [*model.params.values(), *model.shared.parameters()]
    gradients = [p.grad for p in parameters if p.grad is not None]
    assert len(gradients) == 6
    assert all(float(g.abs().sum()) == 0.0 for g in gradients)


def test_room_that_is_too_small_is_told(scene: Scene) -> None:
    model, view = model_of(scene), view_of(scene.train[0], CPU)
    within = model.splats_within(view)  # nothing is known yet
    assert within.rows is not None and within.missing is not None
    assert len(within.rows) == 64 and within.missing.tolist() == [max(len(model) - 64, 0)]
    whole = model.splats(view)
    again = model.splats_within(view)
    assert again.missing is not None and again.rows is not None and whole.rows is not None
    assert again.missing.tolist() == [0]
    n = len(whole.means)
    assert len(again.means) >= n and torch.equal(again.means[:n], whole.means)


def test_gather_and_scatter_are_each_other_s_inverse(scene: Scene) -> None:
    model, view = model_of(scene), view_of(scene.train[0], CPU)
    splats = model.splats(view)._replace(rows=torch.tensor([2, 0, -1], dtype=torch.int32))
    splats = splats._replace(means=splats.means[:9])
    values = torch.arange(len(model) * 3.0)
    drawn = splats.gather(values)
    assert drawn[:6].tolist() == [6.0, 7.0, 8.0, 0.0, 1.0, 2.0]
    back = splats.scatter(drawn, len(model))
    want = torch.zeros_like(values)
    want[:3], want[6:9] = values[:3], values[6:9]
    assert torch.equal(back, want)


def test_offsets_that_are_off_are_not_drawn_and_empty_anchors_go(scene: Scene) -> None:
    model, camera = model_of(scene), scene.train[0]
    n = len(model)
    keep = torch.ones(n, 3, dtype=torch.bool)
    keep[0], keep[1, 2] = False, False
    ids = model.rows["ids"].clone()
    keep_parts(model, None, keep.flatten())
    assert model.rows["ids"].tolist() == ids[1:].tolist()
    assert model.rows[OFF].nonzero().tolist() == [[0, 2]]
    splats = model.splats(view_of(camera, CPU))
    assert splats.rows is not None
    place = int((splats.rows == 0).nonzero())
    assert float(splats.opacities[3 * place + 2]) == 0.0 != float(splats.opacities[3 * place])
    with pytest.raises(NoneLeft):
        keep_parts(model, None, torch.zeros(3 * len(model), dtype=torch.bool))
    exported = model.exported(torch.arange(3 * len(model)) < 6)
    assert len(exported) == 2 and exported.rows[OFF].tolist() == [
        [False, False, True],
        [False, False, False],
    ]
    assert model.part_ids()[:4].tolist() == [3, 4, 5, 6]


def test_appearances_are_by_image_and_mean_elsewhere(scene: Scene) -> None:
    names = tuple(camera.image_name for camera in scene.train)
    config = dataclasses.replace(CONFIG, appearance_dim=4)
    model = model_of(scene, config, names)
    table = model.shared.get_parameter("appearance")
    assert table.shape == (6, 4)
    assert [model.exposure(name) for name in (names[2], "other.png")] == [2, -1]
    first = render(model, scene.train[2]).colors
    with torch.no_grad():
        table[2] += 3.0
    assert not torch.allclose(render(model, scene.train[2]).colors, first)
    seen = render(model, scene.test[0]).colors
    with torch.no_grad():  # the mean stays
        table[2] -= 3.0
        table[0] += 3.0
    torch.testing.assert_close(render(model, scene.test[0]).colors, seen)
    render(model, scene.train[1]).colors.sum().backward()
    assert table.grad is not None and table.grad.abs().sum(1).nonzero().flatten().tolist() == [1]


def test_an_image_s_part_of_the_colour_net_goes_into_its_bias() -> None:
    config = NeuralConfig(appearance_dim=5)
    shared = fresh_decoder(config, 3, seed=0)
    nets = shared["mlp_opacity"], shared["mlp_cov"], shared["mlp_color"]
    sizes = net_sizes(config, "mlp_color")
    assert sizes == (40, 32, 30)
    weights = kernel_weights(config, nets, shared["appearance"], torch.tensor([1]).int())
    w1, b1, w2, b2 = split_net(weights.split(n_weights(32, 10))[2], (35, 32, 30))
    own = split_net(nets[2], sizes)
    x = torch.randn(35, generator=torch.Generator().manual_seed(2))
    hidden = own[0] @ torch.cat([x, shared["appearance"][1]]) + own[1]
    torch.testing.assert_close(w1 @ x + b1, hidden)
    assert torch.equal(w2, own[2]) and torch.equal(b2, own[3])


def test_rates_are_the_published_ones(scene: Scene) -> None:
    model: Model = model_of(scene)
    optim = OptimConfig()
    specs = {**model.specs, **model.shared_specs}
    want = {
        "anchors": (0.0, 0.0),
        "offsets": (0.02, 0.0002),  # times the extent
        "features": (0.0075, 0.0075),
        "scales": (0.007, 0.007),
        "mlp_opacity": (0.002, 2e-5),
        "mlp_cov": (0.004, 0.004),
        "mlp_color": (0.008, 5e-5),
    }
    for name, rates in want.items():
        got = [specs[name].rate(optim, 2.0, step) for step in (0, 30_000)]
        assert got == pytest.approx(rates), name
    assert falling(1.0, 0.01)(optim, 1.0, 15_000) == pytest.approx(0.1)


def test_what_is_saved_without_a_view_has_all_offsets(scene: Scene) -> None:
    model = model_of(scene)
    tensors = model.to_ply()
    n = 3 * len(model)
    assert tensors["means"].shape == (n, 3) and tensors["shN"].shape == (n, 0, 3)
    p = model.params
    means = p["anchors"][:, None] + p["offsets"] * p["scales"][:, None, :3].exp()
    torch.testing.assert_close(tensors["means"], means.flatten(0, 1).detach())
    assert all(bool(x.isfinite().all()) for x in tensors.values())


def test_points_that_make_no_model_are_refused() -> None:
    for points in (torch.zeros(0, 3), torch.zeros(3, 2)):
        with pytest.raises(ValueError, match="expected"):
            Anchors.from_points(points, CONFIG)
    with pytest.raises(ValueError, match="not finite"):
        Anchors.from_points(torch.full((5, 3), math.nan), CONFIG)


def test_the_folder_of_a_model_is_its_own(tmp_path: Path, scene: Scene) -> None:
    model = model_of(scene)
    model.save(tmp_path / "a" / "point_cloud.ply", (0.0, 0.0, 0.0))
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {
        "point_cloud.ply",
        "opacity_mlp.pt",
        "cov_mlp.pt",
        "color_mlp.pt",
        "neural.json",
    }
