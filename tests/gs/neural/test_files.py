"""Anchors in Scaffold-GS's layout, out and in."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gs.data.ply_table import read_header, read_table
from gs.data.scene import Scene
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.ply import read_offset, save_ply
from gs.model.renderer import render
from gs.neural.anchors import OFF, Anchors
from gs.neural.config import NeuralConfig
from gs.neural.files import property_names
from gs.neural.loading import load_anchors, load_model

CONFIG = NeuralConfig(voxel_size=0.05)

pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(scene: Scene, config: NeuralConfig = CONFIG) -> Anchors:
    names = [camera.image_name for camera in scene.train]
    model = Anchors.from_points(scene.points, config, names=names, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in ("features", "offsets", "scales"):
            x = model.params[name]
            x += 0.5 * torch.randn(x.shape, generator=generator)
    return model


def test_a_vertex_has_the_published_79_properties(scene: Scene, tmp_path: Path) -> None:
    model, path = model_of(scene), tmp_path / "point_cloud.ply"
    model.save(path, (1.0, 2.0, 3.0))
    vertex = read_header(path).element("vertex")
    assert vertex is not None and vertex.n_rows == len(model)
    assert list(vertex.properties) == property_names(32, 10) and len(vertex.properties) == 79
    assert set(vertex.properties.values()) == {"f4"}
    assert read_offset(path) == (1.0, 2.0, 3.0)
    table = read_table(path)
    # axis-major: the first ten are x of all offsets
    offsets = model.params["offsets"].detach()
    for name, want in {"f_offset_3": offsets[:, 3, 0], "f_offset_24": offsets[:, 4, 2]}.items():
        assert np.array_equal(table[name], want.numpy()), name
    assert np.allclose(table["opacity"], -2.1972246) and np.all(table["rot_0"] == 1)
    assert path.stat().st_size - 79 * 4 * len(model) < 3000  # the header


@pytest.mark.parametrize("appearance_dim", [0, 4])
def test_a_model_comes_back_whole(scene: Scene, tmp_path: Path, appearance_dim: int) -> None:
    config = dataclasses.replace(CONFIG, appearance_dim=appearance_dim, view_input="color")
    model, path = model_of(scene, config), tmp_path / "point_cloud.ply"
    model.rows[OFF][2, 7] = model.rows[OFF][5, 0] = True
    model.save(path, (0.0, 0.0, 0.0))
    assert "off_bits" in (read_table(path).dtype.names or ())
    loaded = load_model(path)
    assert isinstance(loaded, Anchors)
    got, want = loaded.state_dict(), model.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], x) for name, x in want.items())
    assert torch.equal(loaded.rows[OFF], model.rows[OFF])
    assert loaded.config.view_input == "color"
    for camera in (scene.train[1], scene.test[0]):
        assert torch.equal(render(loaded, camera).colors, render(model, camera).colors)


def test_published_files_are_read_without_ours(scene: Scene, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, appearance_dim=4)
    model, path = model_of(scene, config), tmp_path / "point_cloud.ply"
    model.save(path, (0.0, 0.0, 0.0))
    (tmp_path / "neural.json").unlink()
    loaded = load_anchors(path)
    assert loaded.exposure(scene.train[0].image_name) == -1  # images have no names there
    test = scene.test[0]
    assert torch.equal(render(loaded, test).colors, render(model, test).colors)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "cov_mlp.pt").unlink(), "decoder belongs beside its anchors"),
        (lambda folder: cut(folder / "cov_mlp.pt"), "cut short or not a decoder's net"),
        (lambda folder: cut(folder / "point_cloud.ply"), "point_cloud.ply is not a complete .ply"),
        (
            lambda folder: (folder / "color_mlp.pt").write_bytes(
                (folder / "opacity_mlp.pt").read_bytes()
            ),
            "does not fit its anchors",
        ),
        (
            lambda folder: (folder / "neural.json").write_text('{"view_input": "none"}'),
            "neural.json",
        ),
    ],
)
def test_files_that_are_broken_are_told(
    scene: Scene, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "point_cloud.ply"
    model_of(scene).save(path, (0.0, 0.0, 0.0))
    spoil(tmp_path)
    with pytest.raises(SplatrimError, match=message):
        load_anchors(path)


def test_a_file_of_gaussians_stays_one(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "point_cloud.ply"
    save_ply(path, Gaussians.from_points(scene.points, scene.colors).to_ply())
    assert isinstance(load_model(path), Gaussians)
    with pytest.raises(SplatrimError, match="not a file of anchors"):
        load_anchors(path)
