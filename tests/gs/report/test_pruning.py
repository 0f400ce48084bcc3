"""Histograms, and the report's sections on pruning."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from gs.errors import SplatrimError
from gs.model.histograms import unit_histogram
from gs.model.ply import load_opacities, save_ply
from gs.report.charts import histogram_chart
from gs.report.pruning import chosen_point, distributions, prunings
from gs.report.run import Run, load_run
from gs.report.sections import write_report

CURVE = [{"ratio": i / 10, "n_gaussians": 1000 - 100 * i, "psnr": 30.0 - i} for i in range(10)]
ENTRY: dict[str, Any] = {
    "iteration": 16_000,
    "n_gaussians": 1000,
    "n_left": 750,
    "histogram": {"edges": [0.001, 0.01, 0.1, 1.0], "counts": [5, 0, 20], "n_zero": 7},
    "curve": CURVE,
}


def write_model(out: Path, opacities: list[float]) -> Path:
    n = len(opacities)
    path = out / "point_cloud/iteration_30/point_cloud.ply"
    save_ply(
        path,
        {
            "means": torch.zeros(n, 3),
            "quats": torch.ones(n, 4),
            "scales": torch.zeros(n, 3),
            "opacities": torch.tensor(opacities).logit(),
            "sh0": torch.zeros(n, 1, 3),
        },
    )
    return path


class Rects(HTMLParser):
    """The bars of a chart, and what its script is told."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.bars: list[dict[str, float]] = []
        self.data: dict[str, Any] = {}
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "rect":
            self.bars.append({k: float(given[k] or "") for k in ("x", "y", "width", "height")})
        if "data-chart" in given:
            self.data = json.loads(given["data-chart"] or "")

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_unit_histogram() -> None:
    found = unit_histogram(torch.tensor([0.0, 0.1, 0.25, 0.99, 1.0, float("nan")]), bins=4)
    assert found == {"edges": [0.0, 0.25, 0.5, 0.75, 1.0], "counts": [2, 1, 0, 2]}
    assert unit_histogram(torch.zeros(0), bins=2)["counts"] == [0, 0]


def test_opacities_of_a_file(tmp_path: Path) -> None:
    path = write_model(tmp_path, [0.25, 0.5, 0.875])
    assert torch.allclose(load_opacities(path), torch.tensor([0.25, 0.5, 0.875]))
    (tmp_path / "empty.ply").write_text("ply\n")
    with pytest.raises(SplatrimError, match=r"empty\.ply is not a complete"):
        load_opacities(tmp_path / "empty.ply")


def test_bars_have_the_heights_of_their_counts() -> None:
    chart = Rects(histogram_chart([0, 0.5, 1.0], [30, 10], x_label="x", y_label="y"))
    a, b = chart.bars
    assert a["height"] == pytest.approx(3 * b["height"], abs=0.2)
    assert a["x"] + a["width"] == pytest.approx(b["x"], abs=0.02)
    assert a["width"] == pytest.approx(b["width"], abs=0.02)
    points = chart.data["series"][0]["points"]
    assert [p[2:] for p in points] == [["0 to 0.5", "30"], ["0.5 to 1", "10"]]
    assert histogram_chart([0, 1], [0], x_label="x", y_label="y") == ""


def test_logarithmic_bars() -> None:
    html = histogram_chart([0.01, 1.0, 100.0], [1, 2000], x_label="x", y_label="y", log_x=True)
    chart = Rects(html)
    assert chart.bars[0]["width"] == pytest.approx(chart.bars[1]["width"], abs=0.02)
    assert [t for t in chart.texts if t in ("0.01", "0.1", "1", "10", "100")] == [
        "0.01",
        "0.1",
        "1",
        "10",
        "100",
    ]
    # less than a decade: its ends
    html = histogram_chart([2.0, 2.5, 3.0], [1, 2], x_label="x", y_label="y", log_x=True)
    assert {"2", "3"} <= set(Rects(html).texts)
    with pytest.raises(ValueError, match="2 edges do not enclose 2 bars"):
        histogram_chart([0, 1], [1, 2], x_label="x", y_label="y")


def test_logarithmic_heights() -> None:
    html = histogram_chart([0, 1, 2, 3], [0, 9, 999], x_label="x", y_label="y", log_y=True)
    chart = Rects(html)
    few, many = chart.bars
    assert many["height"] == pytest.approx(3 * few["height"], abs=0.3)
    assert {"0", "1", "10", "100", "1k"} <= set(chart.texts)


def test_the_chosen_point_lies_on_the_curve() -> None:
    assert chosen_point(ENTRY) == pytest.approx((0.25, 27.5))
    assert chosen_point(ENTRY | {"n_left": 900}) == pytest.approx((0.1, 29.0))
    assert chosen_point(ENTRY | {"n_left": 1000}) == pytest.approx((0.0, 30.0))
    assert chosen_point(ENTRY | {"n_left": 50}) is None
    assert chosen_point(ENTRY | {"curve": []}) is None
    assert chosen_point({"curve": CURVE}) is None


def run_with(**more: Any) -> Run:
    return Run(Path("out"), {}, {}, None, {}, {}, None, None, (), **more)


def test_the_pruning_section() -> None:
    assert prunings(run_with()) is None
    section = prunings(run_with(prunings=(ENTRY, ENTRY | {"iteration": 24_000})))
    assert section is not None and section[0] == "Pruning"
    html = section[1]
    assert html.count("<svg") == 4
    text = " ".join(Rects(html).texts)
    assert "Iteration 16,000: 750 of 1,000 Gaussians stay, 25.0 % go. 7 score 0" in text
    assert "Iteration 24,000" in text and "this run" in text
    # without a curve there is still the histogram; with neither there is nothing
    section = prunings(run_with(prunings=(ENTRY | {"curve": []},)))
    assert section is not None and section[1].count("<svg") == 1
    empty = ENTRY | {"curve": [], "histogram": {"edges": [], "counts": [], "n_zero": 1000}}
    assert prunings(run_with(prunings=(empty,))) is None


def test_the_distributions() -> None:
    assert distributions(run_with()) is None
    found = unit_histogram(torch.rand(100))
    given = {"histograms": {"x": found}}
    for more, charts in ((given, 1), (given | {"opacities": found}, 2)):
        section = distributions(run_with(**more))
        assert section is not None and section[1].count("<svg") == charts


def test_the_report_of_a_pruned_run(tmp_path: Path) -> None:
    write_model(tmp_path, [0.1, 0.2, 0.9])
    (tmp_path / "pruning.json").write_text(json.dumps([ENTRY]))
    masks = unit_histogram(torch.tensor([0.1, 0.9])) | {"label": "probability"}
    (tmp_path / "history.json").write_text(json.dumps({"step": [1], "masks": masks, "other": None}))
    run = load_run(tmp_path)
    assert run.opacities is not None and sum(run.opacities["counts"]) == 3
    assert run.histograms == {"masks": masks} and run.prunings == (ENTRY,)
    html = write_report(tmp_path).read_text()
    assert html.count("<svg") == 4
    assert "Gaussians by probability" in html
    assert html.index("<h2>Pruning</h2>") < html.index("<h2>Gaussians</h2>")
    (tmp_path / "pruning.json").write_text("{}")
    with pytest.raises(SplatrimError, match=r"pruning\.json is broken: expected a list"):
        write_report(tmp_path)
