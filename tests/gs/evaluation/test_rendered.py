"""Rendered views and figures are those of the model that is saved now, or are left out."""

import json
from pathlib import Path

import pytest
import torch

from gs.data.demo import write_demo_scene
from gs.errors import SplatrimError
from gs.evaluation.metrics import compute_metrics
from gs.evaluation.render import render_views
from gs.evaluation.rendered import is_current, read_per_view, read_results, read_stats
from gs.model.gaussians import Gaussians
from gs.model.ply import save_ply
from gs.report.sections import load_run
from gs.run_record import RunRecord, model_file, write_record


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "demo"
    write_demo_scene(folder, views=9, width=32, height=24)
    return folder


@pytest.fixture
def out(scene: Path, tmp_path: Path) -> Path:
    """A run whose models of iterations 20 and, of another run, 40 are saved and rendered."""
    settings = {"source_path": str(scene), "eval": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(30, 3, generator=generator)
    for iteration in (20, 40):
        model = Gaussians.from_points(points, points, sh_degree=0)
        save_ply(model_file(tmp_path, iteration), model.to_tensors())
        render_views(tmp_path, iteration=iteration, skip_train=True, quiet=True, device="cpu")
    compute_metrics([tmp_path], device="cpu")
    assert list(read_results(tmp_path)) == ["ours_20", "ours_40"]
    write_record(tmp_path, RunRecord("b", {20: "mark"}))
    return tmp_path


def test_views_of_another_model_are_not_measured(
    out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SplatrimError, match="no rendered test views: .* render -m"):
        compute_metrics([out], device="cpu")
    assert "ours_20 is left out" in caplog.text and "ours_40 is left out" in caplog.text
    assert load_run(out).results == {} and load_run(out).views == ()
    assert load_run(out).iteration == 20

    render_views(out, skip_train=True, quiet=True, device="cpu")
    assert read_stats(out)["ours_20"]["model"] == "mark"
    assert "ours_20" not in read_results(out) and "ours_20" not in read_per_view(out)
    assert list(compute_metrics([out], device="cpu")[str(out)]) == ["ours_20"]
    assert list(read_results(out)) == ["ours_20"]
    assert load_run(out).results and load_run(out).views

    # the run saves that model anew
    write_record(out, RunRecord("b", {20: "other"}))
    assert not is_current(out, "ours_20", read_stats(out))
    assert load_run(out).results == {} and load_run(out).views == ()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("results.json", '{"ours_20": {"PSNR": "x"}}'),
        ("results.json", '{"ours_20": [1]}'),
        ("results.json", '{"ours_20": {"PSNR": NaN}}'),
        ("per_view.json", '{"ours_20": []}'),
        ("per_view.json", '{"ours_20": {"PSNR": 3}}'),
        ("render_stats.json", '{"ours_20": []}'),
        ("render_stats.json", '{"ours_20": {"test": {"views": 4}}}'),
        ("render_stats.json", '{"ours_20": {"fps": "fast"}}'),
        ("render_stats.json", "3"),
    ],
)
def test_broken_figures_are_named(out: Path, file: str, text: str) -> None:
    (out / file).write_text(text)
    with pytest.raises(SplatrimError, match=rf"{file} is broken: .*expected"):
        load_run(out)
    if file == "render_stats.json":  # rendering writes it anew
        render_views(out, skip_train=True, quiet=True, device="cpu")
        assert list(read_stats(out)) == ["ours_20"]
