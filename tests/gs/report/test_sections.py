import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gs.errors import SplatrimError
from gs.evaluation.readable import duration, frame_rate, milliseconds
from gs.report.charts import (
    MAX_POINTS,
    Series,
    compact,
    line_chart,
    log_ticks,
    moving_average,
    nice_ticks,
)
from gs.report.page import ERROR_COLORS, MAX_IMAGE_WIDTH, data_uri, error_map
from gs.report.run import Run, View, load_run
from gs.report.sections import SECTIONS, main, write_report
from gs.report.views import choose_views

WriteRun = Callable[..., None]


class Checker(HTMLParser):
    """Balanced tags, and every address that the page would open."""

    VOID = ("meta", "img", "line", "circle", "polyline", "rect", "br", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text())
    assert checker.open == []
    return checker


def test_a_whole_run(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "out")
    page = parse(write_report(tmp_path / "out"))
    text = " ".join(page.text)
    for expected in (
        "<garden> & co: mask-gaussian",
        "24.12",  # PSNR of the results, not the trainer's 24.00
        "0.812",
        "0.250",
        "40",
        "80 % below the peak",
        "There is no 3D view: ",
        "4:05",
        "12.5",
        "in use",
        "cam/7.jpg",
        "deep.on",
    ):
        assert expected in text, expected
    html = (tmp_path / "out/report.html").read_text()
    assert html.count("<svg") == 4 and html.count("<figure>") == 12


def test_the_page_needs_nothing_from_outside(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "out")
    page = parse(write_report(tmp_path / "out"))
    assert page.addresses and all(a.startswith("data:image/") for a in page.addresses)
    html = (tmp_path / "out/report.html").read_text()
    assert not re.search(r"https?://|@import|url\(", html)
    assert "default-src 'none'" in html


PARTS = ("history.json", "config.json", "results.json", "per_view.json", "render_stats.json")


@pytest.mark.parametrize("missing", [*PARTS, "test", "point_cloud"])
def test_any_part_may_be_missing(tmp_path: Path, missing: str, write_run: WriteRun) -> None:
    write_run(tmp_path / "out")
    path = tmp_path / "out" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = parse(write_report(tmp_path / "out"))
    assert len(page.text) > 10


@pytest.mark.parametrize("present", [*PARTS, "test", "point_cloud"])
def test_any_part_alone_is_enough(tmp_path: Path, present: str, write_run: WriteRun) -> None:
    write_run(tmp_path / "out")
    for path in list((tmp_path / "out").iterdir()):
        if path.name != present:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if present == "per_view.json":  # says of no model what it is
        with pytest.raises(SplatrimError, match="not the output of a run"):
            write_report(tmp_path / "out")
        return
    parse(write_report(tmp_path / "out"))


def test_a_run_without_test_views_says_how_to_get_them(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "out")
    shutil.rmtree(tmp_path / "out/test")
    assert "splatrim render " in " ".join(parse(write_report(tmp_path / "out")).text)
    config = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps({**config, "eval": False}))
    assert "--eval" in " ".join(parse(write_report(tmp_path / "out")).text)


def test_an_unfinished_or_diverged_run(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "out")
    history = json.loads((tmp_path / "out/history.json").read_text())
    history["loss"][3:] = [float("nan")] * len(history["loss"][3:])
    history["psnr"] = []
    history["test"] = []
    history["timing"] = {}
    (tmp_path / "out/history.json").write_text(json.dumps(history))
    html = write_report(tmp_path / "out").read_text()
    assert html.count("<svg") == 3 and "nan" not in html.lower().split("<script>")[0]


def test_bad_input(tmp_path: Path, write_run: WriteRun) -> None:
    with pytest.raises(SplatrimError, match="no such folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(SplatrimError, match="not the output of a run"):
        write_report(tmp_path)
    write_run(tmp_path / "out")
    (tmp_path / "out/results.json").write_text("[1]")
    with pytest.raises(SplatrimError, match=r"results\.json is broken"):
        write_report(tmp_path / "out")
    (tmp_path / "out/results.json").write_text("{")
    with pytest.raises(SplatrimError, match="not valid JSON"):
        write_report(tmp_path / "out")
    assert not (tmp_path / "out/report.html").exists()


def test_sections_can_be_added(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "out")

    def extra(run: Run) -> tuple[str, str]:
        return "Pruning & quality", f"<p>{len(run.views)} views</p>"

    html = write_report(tmp_path / "out", sections=(*SECTIONS, extra)).read_text()
    assert "<h2>Pruning &amp; quality</h2><p>8 views</p>" in html


def test_the_latest_model_is_reported(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "out")
    shutil.copytree(tmp_path / "out/test/ours_300", tmp_path / "out/test/ours_1000")
    run = load_run(tmp_path / "out")
    assert run.iteration == 1000 and len(run.views) == 8 and run.views[0].scores == {}


def test_command_line(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "out")
    main(["-m", str(tmp_path / "out")])
    assert (tmp_path / "out/report.html").is_file()


def view(i: int, psnr: float | None) -> View:
    scores = {} if psnr is None else {"PSNR": psnr}
    return View(f"{i:05d}.png", str(i), Path(), Path(), scores)


def test_choose_views_takes_worst_middle_and_best() -> None:
    views = [view(i, 20.0 + (i * 7) % 11) for i in range(11)]
    assert [v.scores["PSNR"] for v in choose_views(views, 3)] == [20.0, 25.0, 30.0]
    assert [v.name for v in choose_views(views[:2], 3)] == ["0", "1"]
    unmeasured = [view(i, None) for i in range(5)]
    assert [v.name for v in choose_views(unmeasured, 3)] == ["0", "2", "4"]


def test_duration() -> None:
    cases = {0.04: ("0.0", "s"), 59.96: ("1:00", "min"), 245: ("4:05", "min"), 3725: ("1:02", "h")}
    for seconds, expected in cases.items():
        assert duration(seconds) == expected


def test_rates_of_slow_renderers_are_times() -> None:
    rates = {1234.6: ("1,235", "frames/s"), 12.5: ("12.5", "frames/s"), 1.0: ("1", "frames/s")}
    rates |= {0.0981: ("10.2", "s per view"), 0.004: ("4:10", "min per view")}
    for fps, expected in rates.items():
        assert frame_rate(fps) == expected
    texts = {0.526: "0.526 ms", 80: "80 ms", 10_200: "10.2 s"}
    assert {ms: milliseconds(ms) for ms in texts} == texts


def test_error_map_scale() -> None:
    colors = error_map(np.array([[0.0, 0.05, 0.1, 0.7]], np.float32), 0.1)
    hexes = ["#" + bytes(pixel).hex() for pixel in colors[0]]
    assert hexes == [ERROR_COLORS[0], ERROR_COLORS[4], ERROR_COLORS[8], ERROR_COLORS[8]]


def test_data_uri_keeps_small_images_exact_and_shrinks_large_ones() -> None:
    import base64
    import io

    def decode(uri: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))

    small = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    assert np.array_equal(np.array(decode(data_uri(small))), small)
    large = decode(data_uri(np.zeros((1000, 3000, 3), np.uint8)))
    assert large.size == (MAX_IMAGE_WIDTH, MAX_IMAGE_WIDTH // 3)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 0.27, [0.0, 0.1, 0.2, 0.3]),
        (14_266, 18_998, [14_000, 15_000, 16_000, 17_000, 18_000, 19_000]),
        (3.0, 3.0, [2.6, 2.8, 3.0, 3.2, 3.4]),
    ],
)
def test_nice_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high, 5, cover=True) == pytest.approx(ticks)


def test_nice_ticks_at_any_scale() -> None:
    for low, high in [(1e-9, 3e-9), (-5.0, 5.0), (0.0, 0.0), (1e8, 1e8 + 1), (0, 1e12)]:
        ticks = nice_ticks(low, high, 5, cover=True)
        assert 2 <= len(ticks) <= 8 and ticks == sorted(set(ticks))
        assert ticks[0] <= low and ticks[-1] >= high


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.013, 0.3, [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]),
        (5.0, 5.0, [5.0, 10.0]),
        (1e-6, 1.0, [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0]),
        (1e-9, 1e9, [1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e9]),
    ],
)
def test_log_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_a_logarithmic_axis_shows_what_is_above_zero() -> None:
    html = line_chart(
        [Series("loss", [0, 1, 2, 3], [1.0, 0.1, 0.0, 0.01])],
        x_label="iteration",
        y_label="Loss",
        log_y=True,
    )
    (series,) = chart_points(html)
    heights = [point[1] for point in series["points"]]
    assert len(heights) == 3
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)


def test_moving_average_and_compact() -> None:
    assert moving_average([1.0, 2.0, 6.0, float("nan")], 3) == [1.5, 3.0, 4.0, 6.0]
    texts = [compact(v) for v in (0, 950, 12_345, 4.5e6, 0.25)]
    assert texts == ["0", "950", "12.3k", "4.5M", "0.25"]


def chart_points(html: str) -> list[dict[str, Any]]:
    checker = Checker()
    data: list[str] = []
    checker.handle_starttag = lambda tag, attrs: data.extend(  # type: ignore[method-assign]
        v or "" for k, v in attrs if k == "data-chart"
    )
    checker.handle_endtag = lambda tag: None  # type: ignore[method-assign]
    checker.feed(html)
    return json.loads(data[0])["series"]


def test_line_chart() -> None:
    steps = list(range(10_000))
    series = [
        Series("a <b>", steps, [float(s) for s in steps]),
        Series("b", [0, 5], [1.0, float("inf")], color=2, style="points"),
    ]
    html = line_chart(series, x_label="iteration", y_label="value")
    assert "a &lt;b&gt;" in html and html.count('class="key') == 2
    a, b = chart_points(html)
    assert len(a["points"]) <= MAX_POINTS + 1 and a["points"][-1][2] == 9999
    assert len(b["points"]) == 1
    assert line_chart([Series("x", [], [])], x_label="x", y_label="y") == ""
