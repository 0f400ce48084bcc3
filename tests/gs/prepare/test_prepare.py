"""From photographs to a scene: the whole way on a small one, going on, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gs.data.scene import load_scene
from gs.errors import SplatrimError
from gs.prepare import prepare, reconstruction
from gs.prepare.prepare import STEPS, PrepareConfig, main, prepare_scene

VIEWS, WIDTH, HEIGHT, FOCAL = 10, 320, 240, 300.0


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten views into the corner of a room whose floor and walls have spots all over."""
    folder = tmp_path_factory.mktemp("scenes") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    walls = [_spots(rng) for _ in range(3)]
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for index, eye in enumerate(_eyes()):
        forward = -eye / np.linalg.norm(eye)
        right = np.cross(forward, (0, 0, 1.0))
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        pixels = np.stack([(x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL, np.ones_like(x)], -1)
        rays = pixels @ np.stack([right, down, forward])
        distances = np.where(rays < 0, -eye / np.where(rays < 0, rays, -1), np.inf)
        wall = distances.argmin(-1)
        hits = eye + rays * distances.min(-1)[..., None]
        image = np.zeros((HEIGHT, WIDTH), np.uint8)
        for axis in range(3):
            u, v = np.moveaxis(np.delete(hits, axis, -1), -1, 0)
            rows, columns = ((w * 100).astype(int) % 512 for w in (u, v))
            image = np.where(wall == axis, walls[axis][rows, columns], image)
        Image.fromarray(image).convert("RGB").save(folder / f"{index}.png")
    return folder


def _eyes() -> np.ndarray:  # [VIEWS, 3]
    angles = np.linspace(0.45, 1.1, VIEWS)
    return np.stack([4 * np.cos(angles), 4 * np.sin(angles), 2 + 0.5 * np.sin(5 * angles)], 1)


def _spots(rng: np.random.Generator) -> np.ndarray:  # [512, 512] uint8
    """Smooth spots of several sizes."""
    total = np.zeros((512, 512))
    for size in (16, 32, 64, 128):
        noise = Image.fromarray(rng.random((size, size)).astype(np.float32))
        total += np.asarray(noise.resize((512, 512), Image.Resampling.BICUBIC))
    return np.clip((total / 4 - 0.2) * 400, 0, 255).astype(np.uint8)


def test_photographs_become_a_scene_that_has_their_cameras(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene, work = tmp_path / "scene", tmp_path / "scene.preparing"
    line = [str(photos), str(scene), "--quiet", "--features", "2000"]

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reconstruction, "undistort", interrupted)
        main(line)
    assert not scene.exists() and (work / "progress.json").is_file()
    with pytest.raises(SplatrimError, match=r"begun with another --features \(2000\)"):
        main([*line[:3], "--features", "1999"])

    monkeypatch.setattr(reconstruction, "extract_features", None)  # not to be called again
    caplog.set_level("INFO", "splatrim")
    main(line)
    assert "going on after pictures, features, matches, model" in caplog.text
    assert not work.exists()
    assert sorted(path.name for path in scene.iterdir()) == ["images", "prepare.json", "sparse"]
    assert [*json.loads((scene / "prepare.json").read_text())["seconds"]] == [*STEPS]

    made = load_scene(scene)
    assert len(made.train) == VIEWS and len(made.points) > 100
    # the same places up to a similarity: distances between cameras are in proportion
    ours = np.stack([camera.position.numpy() for camera in made.train])
    ratios = _distances(ours) / _distances(_eyes())
    assert ratios.std() < 0.02 * ratios.mean()
    assert re.search(r"next: .* train -s .*scene -m output/scene --eval", caplog.text)

    with pytest.raises(SplatrimError, match="is there already and not empty"):
        main(line)


def test_the_next_step_trains_beside_the_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "prepare_scene", lambda config: {})
    caplog.set_level("INFO", "splatrim")
    main(["photos", "output/fox"])
    assert "-s output/fox -m output/fox_model --eval" in caplog.text


def _distances(positions: np.ndarray) -> np.ndarray:
    """Distances of all from the first."""
    return np.linalg.norm(positions[1:] - positions[0], axis=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none", "scene"], "no such folder or video: none"),
        (["a.txt", "scene"], r"a\.txt is neither a folder nor a video"),
        (["photos", "photos/scene"], "lies within the photographs"),
        (["photos", "full"], "full is there already"),
        (["photos", "scene", "--matching", "vocabulary"], "needs --vocab_tree FILE"),
        (["photos", "scene", "--vocab_tree", "tree.bin"], r"no such file: tree\.bin"),
        (["photos", "scene", "--width", "0"], "--width must be"),
        (["photos", "scene", "--fps", "0"], "--fps must be positive"),
        (["photos", "taken"], r"taken\.preparing is in the way"),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "full", "taken.preparing"):
        Path(name).mkdir()
        Path(name, "file").touch()
    Path("a.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SplatrimError, match=message):
        main(words)
    assert sorted(tmp_path.rglob("*")) == before


def test_videos_are_matched_in_order(tmp_path: Path) -> None:
    (tmp_path / "v.MP4").touch()
    assert PrepareConfig(tmp_path / "v.MP4", tmp_path / "scene").how == "sequential"
    assert PrepareConfig(tmp_path, tmp_path / "scene").how == "exhaustive"
    config = PrepareConfig(tmp_path / "v.MP4", tmp_path / "scene", matching="exhaustive")
    assert config.how == "exhaustive"


def test_photographs_that_show_nothing_in_common(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        noise = rng.integers(0, 255, (60, 80, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{name}.png")
    config = PrepareConfig(tmp_path / "photos", tmp_path / "scene", quiet=True)
    with pytest.raises(SplatrimError, match="no two photographs could be placed"):
        prepare_scene(config)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"], "other flags may be tried"


@pytest.mark.parametrize("n", [2, 4, 7])
def test_few_pictures_that_hang_together(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, n: int
) -> None:
    names = {f"{k}.png" for k in range(n)}

    def placed(*_: object, **__: object) -> reconstruction.Placed:
        return reconstruction.Placed(names, 50, 0.5)

    for name in ("extract_features", "match"):
        monkeypatch.setattr(reconstruction, name, lambda *_, **__: None)
    monkeypatch.setattr(reconstruction, "reconstruct", placed)
    monkeypatch.setattr(reconstruction, "undistort", lambda chosen, photos, to, tell: to.mkdir())
    config = PrepareConfig(photos, tmp_path / "scene", matching="sequential", quiet=True)
    if n == 2:
        with pytest.raises(SplatrimError, match="only 2 of 10 pictures .* --matching exhaustive"):
            prepare_scene(config)
        assert not any(tmp_path.iterdir())
        return
    prepare_scene(config)
    assert ("--matching exhaustive" in caplog.text) == (n == 4)
    assert "not placed: " in caplog.text


def test_training_on_photographs_offers_the_command(photos: Path) -> None:
    with pytest.raises(SplatrimError, match=r"make a scene of them with `.* prepare .*photos "):
        load_scene(photos)
