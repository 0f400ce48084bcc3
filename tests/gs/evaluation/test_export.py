import json
import shutil
from pathlib import Path

import pytest
import torch

from gs.data.demo import write_demo_scene
from gs.data.scene import load_scene
from gs.errors import SplatrimError
from gs.evaluation.export import ExportConfig, export, main
from gs.evaluation.exported import EXPORTS, read_exports
from gs.evaluation.render import render_views
from gs.formats.model_file import format_of, load_model
from gs.model.gaussians import Gaussians
from gs.model.ply import load_ply, save_ply
from gs.run_record import RunRecord, write_record


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a small scene whose model is the scene's points, with some colour by direction."""
    root = tmp_path_factory.mktemp("finished")
    write_demo_scene(root / "scene", views=9, width=32, height=24)
    scene = load_scene(root / "scene", eval=True)
    model = Gaussians.from_points(scene.points[::4], scene.colors[::4]).to_tensors()
    model["opacities"] = torch.full_like(model["opacities"], 3.0)
    generator = torch.Generator().manual_seed(0)
    model["shN"] = 0.1 * torch.randn(model["shN"].shape, generator=generator)
    run = root / "run"
    save_ply(run / "point_cloud/iteration_7/point_cloud.ply", model)
    write_record(run, RunRecord("a", {7: "mark"}))
    settings = {"source_path": str(root / "scene"), "eval": True, "resolution": -1}
    (run / "config.json").write_text(json.dumps(settings))
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("kind", ["spz", "compressed.ply", "splat", "glb"])
def test_an_export_is_measured_and_noted(
    run: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="splatrim")
    main([str(run), "--format", kind, "--device", "cpu"])
    file = run / "export" / f"iteration_7.{kind}"
    assert format_of(file) == kind
    (entry,) = read_exports(run, 7).values()
    assert entry["file"] == f"export/iteration_7.{kind}" and entry["bytes"] == file.stat().st_size
    assert entry["ply_bytes"] == (run / "point_cloud/iteration_7/point_cloud.ply").stat().st_size
    stats = render_views(run, skip_train=True, quiet=True, device="cpu")
    assert entry["views"] == 2 and entry["split"] == "test"
    assert entry["ply_psnr"] == pytest.approx(stats["test"]["psnr"], abs=1e-4)
    change = entry["psnr"] - entry["ply_psnr"]
    told = f"PSNR {entry['psnr']:.2f}, {round(change, 2) + 0.0:+.2f} dB on 2 test views"
    assert told in caplog.text
    # this model's colours by direction are noise, which .splat does without
    assert abs(change) < (1e-3 if kind == "glb" else 1.0)


def test_noted_psnr_is_that_of_the_file(run: Path) -> None:
    """The file put in the place of the run's .ply renders as well as noted."""
    entry = export(ExportConfig(run, format="splat", device="cpu"))
    save_ply(
        run / "point_cloud/iteration_7/point_cloud.ply",
        load_model(run / "export/iteration_7.splat"),
    )
    stats = render_views(run, skip_train=True, quiet=True, device="cpu")
    assert stats["test"]["psnr"] == pytest.approx(entry["psnr"], abs=1e-4)
    assert entry["psnr"] != entry["ply_psnr"] and entry["sh_degree"] == 0


def test_sh_degree_makes_smaller_files(run: Path) -> None:
    sizes = [
        export(ExportConfig(run, format="spz", sh_degree=degree, views=0))["bytes"]
        for degree in (3, 2, 1, 0)
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[3] < 0.6 * sizes[0]
    (entry,) = read_exports(run, 7).values()
    assert entry["sh_degree"] == 0 and entry["psnr"] is None and entry["views"] == 0


def test_back_to_ply(run: Path, tmp_path: Path) -> None:
    export(ExportConfig(run, format="glb", output=tmp_path / "x.glb", views=0))
    assert not (run / EXPORTS).exists(), "the file is not the run's"
    entry = export(ExportConfig(tmp_path / "x.glb", format="ply"))
    assert Path(entry["file"]) == tmp_path / "x.ply"
    want, got = load_ply(run / "point_cloud/iteration_7/point_cloud.ply"), load_ply(entry["file"])
    assert torch.equal(got["means"], want["means"]) and torch.equal(got["shN"], want["shN"])
    export(ExportConfig(tmp_path / "x.glb", format="compressed.ply"))
    assert format_of(tmp_path / "x.compressed.ply") == "compressed.ply"
    export(ExportConfig(tmp_path / "x.compressed.ply", format="spz"))
    assert format_of(tmp_path / "x.spz") == "spz"


def test_exports_of_a_model_that_was_saved_again_are_forgotten(run: Path) -> None:
    export(ExportConfig(run, views=0))
    export(ExportConfig(run, format="splat", views=0))
    assert list(read_exports(run, 7)) == ["iteration_7.spz", "iteration_7.splat"]
    (run / "export/iteration_7.splat").unlink()
    assert list(read_exports(run, 7)) == ["iteration_7.spz"]
    write_record(run, RunRecord("a", {7: "another"}))
    assert read_exports(run, 7) == {}
    export(ExportConfig(run, format="glb", views=0))
    assert list(read_exports(run, 7)) == ["iteration_7.glb"]
    (run / EXPORTS).write_text("{broken")
    export(ExportConfig(run, views=0))
    assert list(read_exports(run, 7)) == ["iteration_7.spz"]


def test_without_its_scene_a_model_is_exported_and_not_measured(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = json.loads((run / "config.json").read_text())
    moved = settings["source_path"]
    (run / "config.json").write_text(json.dumps(settings | {"source_path": "/nowhere"}))
    assert export(ExportConfig(run, device="cpu"))["psnr"] is None
    assert "the change in quality is not measured: " in caplog.text
    assert export(ExportConfig(run, source_path=Path(moved), device="cpu"))["psnr"] > 10
    with pytest.raises(SplatrimError):
        export(ExportConfig(run, source_path=Path("/nowhere"), device="cpu"))


def test_wrong_input_gets_a_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SplatrimError, match="no such file"):
        export(ExportConfig(tmp_path / "absent"))
    with pytest.raises(SplatrimError, match="has no model of iteration 8; it has 7"):
        export(ExportConfig(run, iteration=8))
    with pytest.raises(SplatrimError, match="--sh_degree 4: choose 0, 1, 2 or 3"):
        ExportConfig(run, sh_degree=4)
    with pytest.raises(SplatrimError, match="--views must be at least 0"):
        ExportConfig(run, views=-1)
    (tmp_path / "note.ply").write_text("hello")
    with pytest.raises(SplatrimError, match="not a complete .ply file"):
        export(ExportConfig(tmp_path / "note.ply"))
    model = run / "point_cloud/iteration_7/point_cloud.ply"
    with pytest.raises(SplatrimError, match="is the model itself: give another --output"):
        export(ExportConfig(run, format="ply", output=model))
    with pytest.raises(SplatrimError, match="the model itself"):
        export(ExportConfig(model, format="ply"))


def test_a_shift_that_the_format_cannot_tell_is_warned_of(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_ply(run / "point_cloud/iteration_7/point_cloud.ply")
    save_ply(tmp_path / "far.ply", model, world_offset=(5e5, 0.0, 2.0))
    export(ExportConfig(tmp_path / "far.ply", format="glb"))
    assert "shifted" not in caplog.text
    export(ExportConfig(tmp_path / "far.ply", format="spz"))
    assert "spz cannot say that the scene is shifted by (500000.0, 0.0, 2.0)" in caplog.text
