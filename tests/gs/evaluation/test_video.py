import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import gs.evaluation.video
from gs.data.camera import cameras_json
from gs.data.demo import write_demo_scene
from gs.data.scene import load_scene
from gs.errors import SplatrimError
from gs.evaluation.camera_path import orbit
from gs.evaluation.render import main
from gs.evaluation.video import Flight, film, write_video
from gs.evaluation.views import psnr, quantize
from gs.model.gaussians import Gaussians
from gs.model.ply import save_ply
from gs.model.renderer import render
from gs.run_record import RunRecord, write_record

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")

WIDTH, HEIGHT = 64, 48


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model is the points of a small scene."""
    root = tmp_path_factory.mktemp("filmed")
    write_demo_scene(root / "scene", views=8, width=WIDTH, height=HEIGHT)
    scene = load_scene(root / "scene", eval=True)
    model = Gaussians.from_points(scene.points[::4], scene.colors[::4]).to_tensors()
    model["opacities"] = torch.full_like(model["opacities"], 3.0)
    save_ply(root / "run/point_cloud/iteration_7/point_cloud.ply", model)
    write_record(root / "run", RunRecord("a", {7: "mark"}))
    settings = {"source_path": str(root / "scene"), "eval": True, "resolution": -1}
    (root / "run/config.json").write_text(json.dumps(settings))
    (root / "run/cameras.json").write_text(json.dumps(cameras_json(scene.train, scene.test)))
    return root / "run"


def read_frames(file: Path) -> tuple[dict[str, Any], NDArray[np.uint8]]:  # [F, H, W, 3]
    reader = imageio_ffmpeg.read_frames(str(file))
    about = next(reader)
    width, height = about["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    return about, np.stack(frames)


def test_a_video_shows_the_flight(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "out.mp4"
    args = ["-m", str(run), "--video", str(file), "--seconds", "0.6", "--fps", "10", "--quiet"]
    main([*args, "--views", "color", "mask", "--device", "cpu"])
    about, frames = read_frames(file)
    assert about["codec"] == "h264" and about["fps"] == 10 and frames.shape[0] == 6
    assert frames.shape[1:] == (HEIGHT, 2 * WIDTH, 3)
    scene = load_scene(run.parent / "scene", eval=True, init_points=1)
    views = sorted([*scene.train, *scene.test], key=lambda view: view.image_name)
    model = Gaussians.from_tensors(_tensors(run))
    for frame, camera in zip(frames, orbit(views, 6), strict=True):
        with torch.no_grad():
            out = render(model, camera)
        # H.264 with its coarser colours costs something
        shown = torch.from_numpy(frame.copy())
        assert psnr(shown[:, :WIDTH], quantize(out.colors)) > 25
        assert psnr(shown[:, WIDTH:], quantize(out.alphas.expand(-1, -1, 3))) > 25
    assert sorted(path.name for path in file.parent.iterdir()) == ["out.mp4"]


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    from gs.model.ply import load_ply

    return load_ply(run / "point_cloud/iteration_7/point_cloud.ply")


def test_depth_is_brighter_where_it_is_nearer(run: Path) -> None:
    scene = load_scene(run.parent / "scene", eval=True, init_points=1)
    model, camera = Gaussians.from_tensors(_tensors(run)), scene.train[0]
    (frame,) = film(model, [camera], ["depth"], torch.zeros(3))
    with torch.no_grad():
        out = render(model, camera, render_mode="ED")
    solid = (out.alphas > 0.95)[..., 0].numpy()
    depth, light = out.colors[..., 0].numpy()[solid], frame.astype(float).sum(axis=2)[solid]
    near, far = depth < np.quantile(depth, 0.2), depth > np.quantile(depth, 0.8)
    assert light[near].min() > light[far].mean() + 100
    nothing = Gaussians.from_tensors(_tensors(run))
    nothing.params["opacities"].data.fill_(-30.0)
    (black,) = film(nothing, [camera], ["depth"], torch.ones(3))
    assert black.max() == 0


@pytest.mark.parametrize("path", ["interpolate", "file"])
def test_other_paths_and_sizes(run: Path, tmp_path: Path, path: str) -> None:
    path = str(run / "cameras.json") if path == "file" else path
    flight = Flight(path, ("color",), 0.5, 10, width=41)
    assert write_video(tmp_path / "out.mp4", run, flight, device="cpu", quiet=True) == 5
    _, frames = read_frames(tmp_path / "out.mp4")
    assert frames.shape == (5, 30, 40, 3) and frames.std() > 10


def test_where_the_scene_is_gone_the_runs_cameras_will_do(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent = shutil.copytree(run, tmp_path / "sent")
    (sent / "config.json").write_text(json.dumps({"source_path": "/nowhere", "eval": True}))
    for path in ("orbit", "interpolate"):
        flight = Flight(path, ("color",), 0.2, 10)
        assert write_video(tmp_path / "out.mp4", sent, flight, device="cpu", quiet=True) == 2
        assert "cameras are those of " in caplog.text
    (sent / "cameras.json").unlink()
    with pytest.raises(SplatrimError, match="nowhere"):
        write_video(tmp_path / "out.mp4", sent, Flight(), device="cpu", quiet=True)


def test_wrong_flags_get_a_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SplatrimError, match="give a name that ends in .mp4"):
        write_video(tmp_path / "out.gif", run, Flight())
    with pytest.raises(SplatrimError, match="--views normals: choose of color, depth, mask"):
        write_video(tmp_path / "out.mp4", run, Flight(views=("normals",)))
    with pytest.raises(SplatrimError, match="are no frame"):
        write_video(tmp_path / "out.mp4", run, Flight(seconds=0.001))
    with pytest.raises(SplatrimError, match="no_such_path"):
        write_video(tmp_path / "out.mp4", run, Flight("no_such_path"), device="cpu")
    with pytest.raises(SplatrimError, match="--path is for a video: give --video NAME.mp4 too"):
        main(["-m", str(run), "--path", "interpolate"])
    with pytest.raises(SplatrimError, match="--seconds must be positive"):
        main(["-m", str(run), "--video", "x.mp4", "--seconds", "0"])
    assert not list(tmp_path.iterdir())


def test_without_imageio_ffmpeg_the_extra_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(SplatrimError, match=r'imageio-ffmpeg: `pip install "splatrim\[video\]"`'):
        write_video(tmp_path / "out.mp4", run, Flight())


def test_a_failing_ffmpeg_leaves_no_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gs.evaluation.video, "CODEC", "no_such_codec")
    flight = Flight(seconds=0.5, fps=10)
    with pytest.raises(SplatrimError, match="ffmpeg"):
        write_video(tmp_path / "out.mp4", run, flight, device="cpu", quiet=True)
    assert not list(tmp_path.iterdir())
