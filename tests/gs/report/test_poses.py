"""The report's section on refined poses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gs.errors import SplatrimError
from gs.report.poses import poses
from gs.report.run import load_run
from gs.report.sections import write_report

UNIT = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]


def entry(name: str, split: str, degrees: float, distance: float) -> dict[str, Any]:
    about = {"name": name, "split": split, "viewmat": UNIT}
    return {**about, "degrees": degrees, "distance": distance}


CAMERAS = [
    entry("<a>.png", "train", 0.25, 0.02),
    entry("b.png", "train", 0.5, 0.04),
    entry("c.png", "train", 0.75, 0.0),
    entry("d.png", "test", 0.125, 0.0),
]


@pytest.fixture
def refined(tmp_path: Path, write_run: Callable[..., None]) -> Path:
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "point_cloud" / "iteration_300" / "poses.json"
    path.write_text(json.dumps({"test_poses": "fitted", "extent": 2.0, "cameras": CAMERAS}))
    return tmp_path / "run"


def test_the_section_says_how_far_poses_moved(refined: Path) -> None:
    found = poses(load_run(refined))
    assert found is not None
    title, html = found
    assert title == "Camera poses"
    assert "0.500° (median), 0.750° at most" in html
    assert "1.000 % of the extent (median), 2.000 % of the extent at most" in html
    assert "Test images: turned by" in html and "0.125° (median)" in html
    assert "fitted to their own images, with the model frozen" in html
    assert "&lt;a&gt;.png" in html and "<a>.png" not in html
    assert html.index("c.png") < html.index("b.png")  # those that turned most come first
    assert "Camera poses" in write_report(refined).read_text()


def test_runs_without_refinement_have_no_section(
    tmp_path: Path, write_run: Callable[..., None]
) -> None:
    write_run(tmp_path / "run")
    assert poses(load_run(tmp_path / "run")) is None


def test_a_broken_file_is_a_sentence(refined: Path) -> None:
    path = refined / "point_cloud" / "iteration_300" / "poses.json"
    for broken, said in (
        ({"test_poses": "guessed"}, "expected fitted, aligned, given"),
        ({"cameras": [{**CAMERAS[0], "viewmat": UNIT[:3]}]}, "four rows of four numbers"),
        ({"cameras": [{**CAMERAS[0], "degrees": -1.0}]}, "degrees"),
    ):
        whole = {"test_poses": "given", "extent": 2.0, "cameras": CAMERAS}
        path.write_text(json.dumps(whole | broken))
        with pytest.raises(SplatrimError, match=said):
            poses(load_run(refined))
