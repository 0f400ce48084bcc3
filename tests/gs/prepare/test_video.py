"""From a video to a scene that trains: the whole way, with frames that moved among sharp ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from gs.config import TrainConfig
from gs.data.scene import load_scene
from gs.errors import SplatrimError
from gs.prepare.prepare import main
from gs.training.trainer import Trainer
from tests.gs.prepare.test_prepare import HEIGHT, VIEWS, WIDTH, photos

__all__ = ["photos"]

PER_VIEW = 3  # frames, of which one is sharp
FPS = 15

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def video(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ffmpeg: Any = pytest.importorskip("imageio_ffmpeg", reason="videos need imageio-ffmpeg")
    path = tmp_path_factory.mktemp("video") / "walk.mp4"
    writer = ffmpeg.write_frames(str(path), (WIDTH, HEIGHT), fps=FPS, quality=9)
    writer.send(None)
    for index in range(VIEWS):
        sharp = Image.open(photos / f"{index}.png")
        for k in range(PER_VIEW):
            moved = k != index % PER_VIEW
            frame = sharp.filter(ImageFilter.BoxBlur(4)) if moved else sharp
            writer.send(np.ascontiguousarray(np.asarray(frame)))
    writer.close()
    return path


def test_a_video_becomes_a_scene_that_trains(video: Path, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycolmap", reason="placing pictures needs pycolmap")
    folder = tmp_path / "scene"
    main([str(video), str(folder), "--quiet", "--features", "1000", "--fps", str(FPS / PER_VIEW)])
    scene = load_scene(folder)
    assert len(scene.train) == VIEWS and len(scene.points) > 100
    for index in range(VIEWS):
        frame, photo = (
            np.asarray(Image.open(path).convert("L").resize((80, 60)), dtype=float)
            for path in (folder / "images" / f"{index:05d}.jpg", photos / f"{index}.png")
        )
        # the sharp one was taken: undistorting moves little, and a blur of 9 pixels much
        inner = slice(5, -5), slice(5, -5)
        assert np.abs(frame[inner] - photo[inner]).mean() < 14, index
    config = TrainConfig(tmp_path / "out", iterations=12, quiet=True, device="cpu", sh_degree=0)
    run = Trainer(config, load_scene(folder, resolution=4))
    before = run.evaluate(0)["train"]
    run.fit()
    assert run.evaluate(12)["train"] > before + 0.3


def test_a_video_of_too_few_frames_says_what_to_do(video: Path, tmp_path: Path) -> None:
    with pytest.raises(SplatrimError, match="gave 1 frames: .* raise --fps"):
        main([str(video), str(tmp_path / "scene"), "--quiet", "--fps", "0.4"])
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(SplatrimError, match=r"cannot read the video .*broken\.mp4"):
        main([str(tmp_path / "broken.mp4"), str(tmp_path / "scene"), "--quiet"])
