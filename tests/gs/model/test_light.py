"""Light as a part of a model: its file, held-out views, gains, and what a broken file says."""

import json
from pathlib import Path

import pytest
import torch

from gs.data.camera import Camera
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.light import (
    FILE,
    NAME,
    Kind,
    Light,
    add_saved_light,
    as_taken,
    lens_name,
    light_of,
    save_light,
)


def camera(name: str, width: int = 6) -> Camera:
    return Camera(name, None, width, 4, torch.eye(4), torch.eye(3), width, 4)


CAMERAS = [camera("left/0.png"), camera("left/1.png"), camera("right/0.png")]


def model_with(kind: Kind) -> Gaussians:
    """Three images in the light of random numbers."""
    g = torch.Generator().manual_seed(3)
    model = Gaussians.from_points(torch.rand(4, 3, generator=g), torch.rand(4, 3, generator=g))
    light = Light.of_cameras(kind, CAMERAS)
    for parameter in light.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=g)
    model.shared.add_module(NAME, light)
    return model


@pytest.mark.parametrize("kind", ["affine", "ppisp"])
def test_a_file_keeps_all_of_it(kind: Kind, tmp_path: Path) -> None:
    model = model_with(kind)
    save_light(model, tmp_path)
    other = Gaussians.from_tensors(model.to_tensors())
    add_saved_light(other, tmp_path)
    colors = torch.rand(4, 6, 3, generator=torch.Generator().manual_seed(0))
    for one in [*CAMERAS, camera("left/9.png"), camera("up/9.png")]:
        assert torch.equal(as_taken(other, colors, one), as_taken(model, colors, one))
    light = light_of(other)
    assert light is not None and not any(p.requires_grad for p in light.parameters())


def test_a_model_without_light_writes_and_changes_nothing(tmp_path: Path) -> None:
    model = Gaussians.from_points(torch.rand(4, 3), torch.rand(4, 3))
    save_light(model, tmp_path)
    add_saved_light(model, tmp_path)
    assert light_of(model) is None and not any(tmp_path.iterdir())
    colors = torch.rand(4, 6, 3)
    assert as_taken(model, colors, CAMERAS[0]) is colors


def test_affine_rows_are_written_as_3dgs_does(tmp_path: Path) -> None:
    model = model_with("affine")
    save_light(model, tmp_path)
    light = light_of(model)
    assert light is not None
    entry = json.loads((tmp_path / FILE).read_text())["images"]["left/1.png"]
    torch.testing.assert_close(torch.tensor(entry).flatten(), light.rows.detach()[1])


def test_held_out_views_have_the_mean_light() -> None:
    light = light_of(model_with("affine"))
    assert light is not None
    colors = torch.rand(4, 6, 3, generator=torch.Generator().manual_seed(0))
    each = [light.as_taken(colors, one) for one in CAMERAS]
    assert not torch.equal(each[0], each[1])
    mean = light.as_taken(colors, camera("elsewhere.png"))
    # affine in the row
    torch.testing.assert_close(mean, torch.stack(each).mean(0))


def test_held_out_views_keep_their_lens() -> None:
    light = light_of(model_with("ppisp"))
    assert light is not None and light.lens_names == ["left 6x4", "right 6x4"]
    white = torch.ones(4, 6, 3)
    left, right, unknown = (
        light.as_taken(white, camera(f"{folder}/new.png")) for folder in ("left", "right", "up")
    )
    assert not torch.equal(left, right)
    # no lens, no falloff
    assert unknown.flatten(0, 1).unique(dim=0).shape[0] == 1
    assert left.flatten(0, 1).unique(dim=0).shape[0] > 1


def test_gains_say_what_a_grey_is_multiplied_by() -> None:
    light = Light.of_cameras("ppisp", CAMERAS)
    light.rows.data[1, 0] = 1.0
    gains = light.gains()
    assert gains["left/0.png"] == pytest.approx((1.0, 1.0, 1.0), abs=1e-4)
    assert gains["left/1.png"] == pytest.approx((2.0, 2.0, 2.0), abs=1e-4)


def test_images_of_one_folder_and_size_share_a_lens() -> None:
    names = [lens_name(one) for one in (*CAMERAS, camera("left/2.png", width=8), camera("a.png"))]
    assert names == ["left 6x4", "left 6x4", "right 6x4", "left 8x4", ". 6x4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "affine or ppisp"),
        ({"images": {"a": [1.0] * 9}, "lens_of": {}}, "a lens of each image"),
        ({"images": {"left/0.png": [1.0] * 8}}, "9 numbers"),
        ({"lenses": {"left 6x4": [0.0], "right 6x4": [0.0]}}, "15 numbers"),
        ({"kind": "affine"}, "broken"),
    ],
)
def test_a_broken_file_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    save_light(model_with("ppisp"), tmp_path)
    data = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(data | change))
    model = Gaussians.from_points(torch.rand(4, 3), torch.rand(4, 3))
    with pytest.raises(SplatrimError, match=message):
        add_saved_light(model, tmp_path)
