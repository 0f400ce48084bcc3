import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import gs.evaluation.render
from gs.data.scene import load_scene
from gs.errors import SplatrimError, run_cli
from gs.evaluation.metrics import compute_metrics, read_image
from gs.evaluation.render import main, render_views
from gs.evaluation.views import evaluate_views, mean_scores, quantize
from gs.model.gaussians import Gaussians
from gs.model.ply import load_ply, save_ply
from gs.model.renderer import render
from gs.run_settings import read_settings

WIDTH, HEIGHT = 20, 16


def model_tensors(n: int = 30) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {
        "means": torch.rand(n, 3, generator=g) - 0.5,
        "quats": torch.randn(n, 4, generator=g),
        "scales": torch.full((n, 3), math.log(0.12)),
        "opacities": torch.full((n,), 2.0),
        "sh0": torch.randn(n, 1, 3, generator=g),
        "shN": 0.2 * torch.randn(n, 15, 3, generator=g),
    }


def look_at(turn: float) -> list[list[float]]:
    """Camera to world, OpenGL axes, on a circle around the origin."""
    c, s = math.cos(turn), math.sin(turn)
    return [[c, 0, s, 3 * s], [0, 1, 0, 0], [-s, 0, c, 3 * c], [0, 0, 0, 1]]


def write_scene(folder: Path, tensors: dict[str, Tensor], *, train: int, test: int) -> None:
    """A Blender scene whose images are 8-bit renderings of a known model."""
    turns = {"train": [0.5 * i for i in range(train)], "test": [0.3 + 0.5 * i for i in range(test)]}
    for split, angles in turns.items():
        (folder / split).mkdir(parents=True)
        frames = []
        for i, turn in enumerate(angles):
            name = f"{split}/r_{i}"
            Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{name}.png")
            frames.append({"file_path": f"./{name}", "transform_matrix": look_at(turn)})
        text = json.dumps({"camera_angle_x": 0.8, "frames": frames})
        (folder / f"transforms_{split}.json").write_text(text)
    scene = load_scene(folder, eval=True, init_points=1)
    gaussians = Gaussians.from_tensors(tensors)
    for camera in [*scene.train, *scene.test]:
        assert camera.image_path is not None
        with torch.no_grad():
            colors = render(gaussians, camera).colors
        Image.fromarray(quantize(colors).numpy()).save(camera.image_path)


def write_run(out: Path, scene: Path, *, iterations: tuple[int, ...] = (30,)) -> dict[str, Tensor]:
    """A finished run whose last model is a little off."""
    settings = {"source_path": str(scene), "eval": True, "white_background": False, "images": None}
    out.mkdir()
    (out / "config.json").write_text(json.dumps({**settings, "resolution": -1}))
    tensors = model_tensors()
    for iteration in iterations:
        tensors = {**tensors, "sh0": tensors["sh0"] + 0.3}
        save_ply(out / f"point_cloud/iteration_{iteration}/point_cloud.ply", tensors)
    return tensors


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    write_scene(folder, model_tensors(), train=3, test=2)
    return folder


def test_outputs_have_the_published_layout(tmp_path: Path, scene: Path) -> None:
    out = tmp_path / "out"
    write_run(out, scene, iterations=(7, 30))
    stats = render_views(out, quiet=True, device="cpu")
    for split, count in (("train", 3), ("test", 2)):
        names = [f"{i:05d}.png" for i in range(count)]
        for kind in ("renders", "gt"):
            folder = out / split / "ours_30" / kind
            assert sorted(p.name for p in folder.iterdir()) == names
            assert read_image(folder / names[-1]).shape == (HEIGHT, WIDTH, 3)
        assert len(stats[split]["views"]) == count
    truth = np.array(Image.open(scene / "test" / "r_1.png"))
    assert np.array_equal(np.array(Image.open(out / "test/ours_30/gt/00001.png")), truth)
    assert stats["fps"] > 0 and (stats["width"], stats["height"]) == (WIDTH, HEIGHT)
    assert json.loads((out / "render_stats.json").read_text())["ours_30"] == stats


def test_one_psnr_for_trainer_files_and_metrics(tmp_path: Path, scene: Path) -> None:
    """The .ply rendered again, and its PNGs measured, give what evaluating the model gave."""
    out = tmp_path / "out"
    tensors = write_run(out, scene)
    test = load_scene(scene, eval=True, init_points=1).test

    class Truth:
        def __getitem__(self, index: int) -> Tensor:
            path = test[index].image_path
            assert path is not None
            return read_image(path)

        def prefetch(self, indices: list[int]) -> None:
            assert all(index < len(test) for index in indices)

    scores = evaluate_views(Gaussians.from_tensors(tensors), test, Truth(), torch.zeros(3))
    want = mean_scores(scores)
    assert 10 < want["psnr"] < 40 and want["ssim"] < 0.999
    stats = render_views(out, skip_train=True, quiet=True, device="cpu")
    assert stats["test"]["psnr"] == pytest.approx(want["psnr"], abs=1e-4)
    assert stats["test"]["views"] == [score.name for score in scores]
    assert "train" not in stats and not (out / "train").exists()
    results = compute_metrics([out], device="cpu")[str(out)]["ours_30"]
    assert results["PSNR"] == pytest.approx(want["psnr"], abs=1e-4)
    assert results["SSIM"] == pytest.approx(want["ssim"], abs=1e-5)


def test_the_true_model_is_found_to_be_perfect(tmp_path: Path, scene: Path) -> None:
    out = tmp_path / "out"
    write_run(out, scene)
    save_ply(out / "point_cloud/iteration_31/point_cloud.ply", model_tensors())
    stats = render_views(out, skip_train=True, quiet=True, device="cpu")
    assert stats["test"]["psnr"] > 60


def test_stale_views_go_and_stats_of_other_models_stay(tmp_path: Path, scene: Path) -> None:
    out = tmp_path / "out"
    write_run(out, scene, iterations=(7, 30))
    render_views(out, iteration=7, skip_train=True, quiet=True, device="cpu")
    stale = out / "test/ours_30/renders/00002.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    render_views(out, skip_train=True, quiet=True, device="cpu")
    assert not stale.exists()
    assert set(json.loads((out / "render_stats.json").read_text())) == {"ours_7", "ours_30"}


def test_a_moved_scene_is_given_with_s(tmp_path: Path, scene: Path) -> None:
    write_run(tmp_path / "out", tmp_path / "gone")
    with pytest.raises(SplatrimError, match="gone"):
        render_views(tmp_path / "out", quiet=True, device="cpu")
    args = ["-m", str(tmp_path / "out"), "-s", str(scene), "--skip_train", "--quiet"]
    main([*args, "--device", "cpu"])
    assert (tmp_path / "out/test/ours_30/renders/00001.png").is_file()
    assert not (tmp_path / "out/train").exists()


def test_real_cfg_args(data_root: Path, tmp_path: Path) -> None:
    source = data_root / "golden" / "maskgaussian_run" / "cfg_args"
    if not source.is_file():
        pytest.skip(f"no {source}")
    shutil.copy(source, tmp_path)
    settings = read_settings(tmp_path)
    assert settings["source_path"] == "data/fox" and settings["eval"] is True


def test_bad_runs_write_nothing(
    tmp_path: Path, scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SplatrimError, match="no such folder"):
        render_views(tmp_path / "absent")
    with pytest.raises(SplatrimError, match="not the output of a run"):
        render_views(tmp_path)
    out = tmp_path / "out"
    tensors = write_run(out, scene)
    tensors["means"][:, 0] = math.nan
    save_ply(out / "point_cloud/iteration_30/point_cloud.ply", tensors)
    before = sorted(str(p) for p in out.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: main(["-m", str(out), "--quiet"]))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "30 of 30 Gaussians have NaN" in error
    assert sorted(str(p) for p in out.rglob("*")) == before


def test_a_full_disk_names_the_file(
    tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_run(out, scene)

    class Full:
        @staticmethod
        def fromarray(array: np.ndarray) -> "Full":
            return Full()

        def save(self, file: object, *args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(gs.evaluation.render, "Image", Full)
    with pytest.raises(SplatrimError, match=r"renders/00000\.png: No space left"):
        render_views(out, quiet=True, device="cpu")
    assert not list(out.rglob("*.png")) and not list(out.rglob("*.tmp"))


def test_all_degrees_of_a_saved_model_are_rendered(tmp_path: Path) -> None:
    save_ply(tmp_path / "x.ply", model_tensors())
    assert Gaussians.from_tensors(load_ply(tmp_path / "x.ply")).active_sh_degree == 3


@pytest.mark.gpu
def test_rendering_speed_on_a_gpu(tmp_path: Path, scene: Path) -> None:
    write_run(tmp_path / "out", scene)
    on_gpu = render_views(tmp_path / "out", quiet=True, device="cuda")
    on_cpu = render_views(tmp_path / "out", quiet=True, device="cpu")
    assert on_gpu["fps"] > 0 and on_gpu["device"] != "CPU"
    assert on_gpu["test"]["psnr"] == pytest.approx(on_cpu["test"]["psnr"], abs=0.01)
