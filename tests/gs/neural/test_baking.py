"""Anchors baked into Gaussians: exact where the view has no say, and close where it has."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import gs.bake
from gs.bake import BakeConfig, bake_run
from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.ply import load_ply
from gs.model.renderer import render
from gs.neural.anchors import OFF, Anchors
from gs.neural.baking import MAX_DEGREE, bake, best_views
from gs.neural.config import NeuralConfig
from gs.neural.decoder import net_sizes, split_net
from gs.training.trainer import Trainer

CONFIG = NeuralConfig(feature_dim=8, offsets=3, voxel_size=0.1, view_input="color")

pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(scene: Scene, config: NeuralConfig = CONFIG, *, ignores_view: bool) -> Anchors:
    model = Anchors.from_points(scene.points, config, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in ("features", "offsets"):
            x = model.params[name]
            x.copy_(torch.randn(x.shape, generator=generator))
        for name in ("mlp_opacity", "mlp_cov", "mlp_color") if ignores_view else ():
            w1, *_ = split_net(model.shared.get_parameter(name), net_sizes(config, name))
            w1[:, config.feature_dim : config.feature_dim + 3] = 0.0
    return model


def test_a_decoder_that_ignores_the_view_bakes_exactly(scene: Scene) -> None:
    model = model_of(scene, ignores_view=True)
    baked = bake(model, scene.train)
    still = model.to_ply()
    seen = best_views(model, scene.train, 4)[0].sum(1) > 0
    keep = (still["opacities"].sigmoid() >= 1 / 255) & seen.repeat_interleave(3)
    assert 0.2 < float(keep.float().mean()) < 0.8
    for name in ("means", "scales", "opacities", "sh0"):
        torch.testing.assert_close(baked[name], still[name][keep], rtol=1e-5, atol=2e-6)
    alignment = (baked["quats"] * still["quats"][keep]).sum(1).abs()
    torch.testing.assert_close(alignment, torch.ones_like(alignment), rtol=0.0, atol=1e-6)
    assert baked["shN"].shape[1:] == ((MAX_DEGREE + 1) ** 2 - 1, 3)
    assert float(baked["shN"].abs().max()) < 1e-6
    explicit = Gaussians.from_tensors(baked)
    for camera in (scene.train[0], scene.test[1]):
        got, want = render(explicit, camera).colors, render(model, camera).colors
        error = (got - want).abs()
        # an alpha at the 1/255 test may fall on either side of it
        assert float(error.mean()) < 1e-5 and float(error.max()) < 1 / 255


def test_colours_that_depend_on_the_view_are_fitted(scene: Scene) -> None:
    model = model_of(scene, ignores_view=False)
    baked = bake(model, scene.train)
    assert float(baked["shN"].abs().max()) > 1e-3
    # six views tell four coefficients apart
    assert float(baked["shN"][:, 3:].abs().max()) == 0.0
    constant = baked | {"shN": torch.zeros_like(baked["shN"])}
    errors: list[float] = []
    for tensors in (baked, constant):
        explicit = Gaussians.from_tensors(tensors)
        error = sum(
            float((render(explicit, c).colors - render(model, c).colors).detach().square().mean())
            for c in scene.train
        )
        errors.append(error)
    assert errors[0] < 0.3 * errors[1]


def test_offsets_that_are_off_and_anchors_that_nobody_sees_are_left_out(scene: Scene) -> None:
    model = model_of(scene, ignores_view=True)
    whole = bake(model, scene.train)
    rows = model.rows[OFF]
    keep = model.to_ply()["opacities"].view(-1, 3).sigmoid() >= 1 / 255
    row, column = keep.nonzero()[0].tolist()
    rows[row, column] = True
    assert len(bake(model, scene.train)["means"]) == len(whole["means"]) - 1
    with torch.no_grad():
        model.params["anchors"][row] = torch.tensor([0.0, 0.0, 100.0])
        model.params["scales"][row] = -9.0
    gone = int(keep[row].sum())
    seen_by_some = bake(model, scene.train)
    assert len(seen_by_some["means"]) == len(whole["means"]) - gone
    with pytest.raises(SplatrimError, match="seen in any training view"):
        rows[:] = True
        bake(model, scene.train)


def test_the_views_that_show_most_of_an_anchor_are_taken(scene: Scene) -> None:
    model = model_of(scene, ignores_view=True)
    weights, chosen = best_views(model, scene.train, 6)
    for anchor in (0, 5):
        order = weights[anchor].argsort(descending=True)
        best = {int(c) for c, w in zip(chosen[anchor], weights[anchor], strict=True) if w > 0}
        few, picked = best_views(model, scene.train, 2)
        assert {int(x) for x in picked[anchor]} == {int(x) for x in chosen[anchor][order[:2]]}
        torch.testing.assert_close(few[anchor].sort().values, weights[anchor].sort().values[-2:])
        assert len(best) > 2


def run_of(scene: Scene, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a few steps, whose scene `gs.bake` finds."""
    config = TrainConfig(out, iterations=4, quiet=True, device="cpu", test_iterations=())
    settings = {"iterations": 4, "representation": "neural", "source_path": str(scene.source)}
    dim = dataclasses.replace(CONFIG, view_input="all")
    model = model_of(scene, dim, ignores_view=False)
    Trainer(config, scene, model=model, settings=settings).fit()
    monkeypatch.setattr("gs.bake.load_run_scene", lambda *_, **__: scene)
    return out


def test_the_command_says_what_is_lost_and_polishes(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run_of(scene, tmp_path / "out", monkeypatch)
    gs.bake.main(["-m", str(out), "--polish", "6", "--device", "cpu", "--quiet"])
    found = json.loads((out / "bake.json").read_text())
    tensors = load_ply(out / "baked.ply")
    assert len(tensors["means"]) == found["n_gaussians"] > 50
    assert found["baked_bytes"] == (out / "baked.ply").stat().st_size
    assert abs(found["psnr_neural"] - found["psnr_baked"]) < 1.0
    assert found["psnr_polished"] > found["psnr_baked"]
    polished = out / "baked" / "point_cloud" / "iteration_30006" / "point_cloud.ply"
    assert polished.is_file()
    assert json.loads((out / "baked" / "config.json").read_text())["representation"] == "explicit"
    with pytest.raises(SplatrimError, match="holds Gaussians already"):
        bake_run(BakeConfig(out / "baked", device="cpu"))
