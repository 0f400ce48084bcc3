"""The built-in scene: repeatable bytes, an ordinary COLMAP scene, geometry that fits its images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gs.data.demo import main, write_demo_scene
from gs.data.loader import ImageLoader
from gs.data.scene import Scene, load_scene
from gs.errors import SplatrimError

SIZE: dict[str, Any] = {"views": 9, "width": 48, "height": 36}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "scene"
    write_demo_scene(path, **SIZE)
    return path


@pytest.fixture(scope="module")
def scene(folder: Path) -> Scene:
    return load_scene(folder, eval=True)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_layout(folder: Path, scene: Scene) -> None:
    names = sorted(content(folder))
    assert [name for name in names if name.startswith("images/")] == [
        f"images/view_{index:03d}.png" for index in range(9)
    ]
    assert {"sparse/0/cameras.bin", "sparse/0/images.bin", "sparse/0/points3D.bin"} <= set(names)
    assert scene.kind == "colmap" and (len(scene.train), len(scene.test)) == (7, 2)
    assert scene.points.shape == (6000, 3)
    assert 3 < scene.extent < 5


def test_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_demo_scene(tmp_path / "again", **SIZE)
    assert content(tmp_path / "again") == content(folder)
    write_demo_scene(tmp_path / "other", seed=1, **SIZE)
    other = content(tmp_path / "other")
    assert other["images/view_000.png"] != content(folder)["images/view_000.png"]


def test_points_lie_where_the_images_show_them(scene: Scene) -> None:
    cameras = scene.train + scene.test
    errors, mirrored = [], []
    with ImageLoader(cameras) as loader:
        for index, camera in enumerate(cameras):
            local = scene.points @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
            pixel = local @ camera.K.T
            at = (pixel[:, :2] / pixel[:, 2:]).floor().long()
            inside = (local[:, 2] > 0) & (at >= 0).all(dim=1)
            inside &= (at[:, 0] < camera.width) & (at[:, 1] < camera.height)
            for image, kept in ((loader[index], errors), (loader[index].flip(1), mirrored)):
                seen = image[at[:, 1] * inside, at[:, 0] * inside].float() / 255
                error = (seen - scene.colors).abs().mean(dim=1)
                kept.append(torch.where(inside, error, torch.inf))
    # A point is where at least the view shows it that it was taken from; others may hide it.
    assert (torch.stack(errors).amin(dim=0) < 0.03).float().mean() > 0.9
    assert (torch.cat(errors) < 0.03).sum() > 1.5 * (torch.cat(mirrored) < 0.03).sum()


def test_images_are_worth_looking_at(scene: Scene) -> None:
    with ImageLoader(scene.train) as loader:
        for index in range(len(scene.train)):
            image = loader[index].numpy().astype(np.float32)
            assert image.std() > 30, "contrast"
            assert 60 < image.mean() < 190, "exposure"
            assert (image >= 255).mean() < 0.05, "burnt out"


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(SplatrimError, match="not empty"):
        write_demo_scene(tmp_path, **SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gs.data.demo.write_model", fail)
    with pytest.raises(SplatrimError, match="cannot write .*scene: No space left on device"):
        write_demo_scene(tmp_path / "scene", views=1, width=8, height=6)
    assert not list(tmp_path.iterdir())


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="views, width, height"):
        write_demo_scene(tmp_path / "x", views=0)


def test_varied_light_is_a_factor_on_linear_light(folder: Path, tmp_path: Path) -> None:
    write_demo_scene(tmp_path / "varied", varied_light=True, **SIZE)
    gains = json.loads((tmp_path / "varied" / "gains.json").read_text())
    assert len({tuple(gain) for gain in gains.values()}) == 9
    for name, gain in gains.items():
        before, after = (
            (np.array(Image.open(where / "images" / name)) / 255.0) ** 2.2
            for where in (folder, tmp_path / "varied")
        )
        assert np.abs(after - before * gain).max() < 0.012  # both are rounded
        assert max(gain) <= 1.0
    assert not (tmp_path / "varied" / "masks").exists()


def test_a_moving_object_is_masked_where_it_is(folder: Path, tmp_path: Path) -> None:
    write_demo_scene(tmp_path / "moving", moving_object=True, **SIZE)
    scene = load_scene(tmp_path / "moving", eval=True)
    masked = {camera.image_name for camera in scene.train if camera.mask_path is not None}
    assert masked == {f"view_{k:03d}.png" for k in (1, 3, 5, 7)}
    assert all(camera.mask_path is None for camera in scene.test)
    with ImageLoader(scene.train) as loader:
        for k, camera in enumerate(scene.train):
            clean = np.array(Image.open(folder / "images" / camera.image_name))
            changed = (loader[k][..., :3].numpy() != clean).any(-1)
            hidden = loader[k][..., 3].numpy() == 0
            assert not (changed & ~hidden).any()
            assert changed.any() == (camera.image_name in masked)
            assert hidden.mean() < 0.2


def test_the_city_has_other_faults(tmp_path: Path) -> None:
    with pytest.raises(SplatrimError, match="its own --exposure"):
        main([str(tmp_path / "city"), "--city", "--varied_light"])
