"""--antialiased: what trains and draws so, and which files say it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gs.config import TrainConfig
from gs.data.camera import Camera
from gs.data.scene import Scene
from gs.formats.model_file import is_antialiased, load_model, save_model
from gs.model.gaussians import Gaussians
from gs.model.ply import read_antialiased, save_ply
from gs.model.renderer import render
from gs.neural.loading import load_model as load_trained
from gs.training.trainer import Trainer


def tiny_gaussians() -> Gaussians:
    """Far smaller than a pixel, where the modes differ most."""
    g = torch.Generator().manual_seed(0)
    points = torch.rand(60, 3, generator=g) + torch.tensor([-0.5, -0.5, 3.0])
    model = Gaussians.from_points(points, torch.rand(60, 3, generator=g))
    model.params["scales"].data.fill_(-6.0)
    model.params["opacities"].data.fill_(2.0)
    return model


def camera() -> Camera:
    K = torch.tensor([[60.0, 0, 24], [0, 60, 20], [0, 0, 1]])
    return Camera("a", None, 48, 40, torch.eye(4), K, 48, 40)


def test_a_model_is_drawn_as_it_says() -> None:
    model = tiny_gaussians()
    classic = render(model, camera()).colors
    model.antialiased = True
    faint = render(model, camera()).colors
    assert faint.sum() < 0.5 * classic.sum()
    want = render(model, camera(), rasterize_mode="antialiased").colors
    assert torch.equal(faint, want)
    # and so is what is saved of it
    assert torch.equal(render(model.exported(), camera()).colors, faint)


def test_training_takes_and_saves_it(scene: Scene, tmp_path: Path) -> None:
    losses = []
    for antialiased in (False, True):
        out = tmp_path / str(antialiased)
        config = TrainConfig(out, iterations=12, quiet=True, antialiased=antialiased)
        trainer = Trainer(config, scene)
        trainer.fit()
        ply = out / "point_cloud/iteration_12/point_cloud.ply"
        assert read_antialiased(ply) == antialiased
        model = load_trained(ply)
        assert model.antialiased == antialiased
        with torch.no_grad():
            one, other = (render(m, scene.test[0]).colors for m in (model, trainer.exported()))
        torch.testing.assert_close(one, other)
        losses.append(trainer.tracker.history["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("comment", "found"),
    [
        ("SplatRenderMode: mip", True),
        ("splatrendermode:  MIP", True),
        ("antialiased 1", True),
        ("antialiased 0", False),
        ("SplatRenderMode: default", False),
    ],
)
def test_comments_of_other_programs_are_read(comment: str, found: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    save_ply(path, tiny_gaussians().to_ply(), antialiased=True)
    text = path.read_bytes()
    path.write_bytes(text.replace(b"SplatRenderMode: mip", comment.encode()))
    assert is_antialiased(path) == found
    assert len(load_model(path)["means"]) == 60


@pytest.mark.parametrize("kind", ["ply", "spz", "splat"])
def test_formats_that_can_say_it_do(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    for antialiased in (False, True):
        save_model(path, tiny_gaussians().to_ply(), kind, antialiased=antialiased)
        assert is_antialiased(path) == (antialiased and kind != "splat")
    np.testing.assert_allclose(
        load_model(path)["means"], tiny_gaussians().to_ply()["means"], atol=1e-3
    )


def test_exports_carry_it_along(tmp_path: Path) -> None:
    source, output = tmp_path / "a.ply", tmp_path / "b.spz"
    save_ply(source, tiny_gaussians().to_ply(), antialiased=True)
    words = [sys.executable, "-m", "gs.export", str(source), "--format", "spz", "-o", str(output)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert is_antialiased(output)
    words[words.index("spz")], words[-1] = "splat", str(tmp_path / "b.splat")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "cannot say that the model is to be drawn antialiased" in done.stderr + done.stdout
