"""The report's table of exported files."""

from pathlib import Path
from typing import Any

import pytest

from gs.errors import SplatrimError
from gs.evaluation.exported import EXPORTS, note_export
from gs.report.exports import exports
from gs.report.run import load_run
from gs.report.sections import write_report
from gs.run_record import RunRecord, write_record

ENTRY: dict[str, Any] = {
    "file": "export/iteration_30.spz",
    "format": "spz",
    "sh_degree": 3,
    "bytes": 1_060_000,
    "n_gaussians": 9,
    "psnr": 33.554,
    "ply_bytes": 7_330_000,
    "ply_psnr": 33.571,
    "views": 5,
    "split": "test",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a model that was exported twice, once without measuring."""
    (tmp_path / "config.json").write_text('{"method": "opacity"}')
    ply = tmp_path / "point_cloud/iteration_30/point_cloud.ply"
    ply.parent.mkdir(parents=True)
    lines = ["ply", "format binary_little_endian 1.0", "element vertex 0"]
    ply.write_text("\n".join([*lines, "property float opacity", "end_header", ""]))
    write_record(tmp_path, RunRecord("a", {30: "mark"}))
    for entry in (
        ENTRY,
        ENTRY | {"file": "export/iteration_30.splat", "psnr": None, "ply_psnr": None},
    ):
        file = tmp_path / entry["file"]
        file.parent.mkdir(exist_ok=True)
        file.touch()
        note_export(tmp_path, 30, entry)
    return tmp_path


def test_exported_files_stand_beside_the_ply(run: Path) -> None:
    section = exports(load_run(run))
    assert section is not None and section[0] == "Files to send"
    cells = ["export/iteration_30.spz", "1.06", "14%", "33.55", "-0.02"]
    row = "".join(
        f"<td>{x}</td>" if i == 0 else f'<td class="number">{x}</td>' for i, x in enumerate(cells)
    )
    assert row in section[1]
    assert "<td>point_cloud.ply</td>" in section[1] and "7.33" in section[1]
    assert "export/iteration_30.splat" in section[1]
    assert "Files to send" in write_report(run).read_text()


def test_without_exports_there_is_no_section(run: Path) -> None:
    (run / EXPORTS).write_text("{}")
    assert exports(load_run(run)) is None
    (run / EXPORTS).write_text('{"ours_30": 3}')
    with pytest.raises(SplatrimError, match="exports.json is broken"):
        exports(load_run(run))
