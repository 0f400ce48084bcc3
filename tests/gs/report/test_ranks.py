"""The report's section on ranks."""

import json
from pathlib import Path

import pytest

from gs.errors import SplatrimError
from gs.report.ranks import ranks
from gs.report.run import load_run
from gs.report.sections import write_report

ENTRY = {
    "rank": 1,
    "device": "cuda:1",
    "n_gaussians": 1234567,
    "sent_mb": 88.4,
    "seconds": {"project": 1.25, "picture": 7.5, "exchange": 2.0},
    "peak_memory_mb": 2345.6,
}


def test_a_row_per_rank(tmp_path: Path) -> None:
    history = {"settings": {"method": "3dgs"}, "ranks": [{**ENTRY, "rank": 0}, ENTRY]}
    (tmp_path / "history.json").write_text(json.dumps(history))
    found = ranks(load_run(tmp_path))
    assert found is not None
    title, html = found
    assert title == "Ranks" and html.count("1,234,567") == 2
    assert all(text in html for text in ("cuda:1", "88", "7.5", "2,346"))
    assert "Ranks" in write_report(tmp_path).read_text()


def test_one_rank_has_no_section(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(json.dumps({"settings": {}}))
    assert ranks(load_run(tmp_path)) is None


def test_broken_entries_are_a_sentence(tmp_path: Path) -> None:
    broken = {"ranks": [{**ENTRY, "n_gaussians": "many"}]}
    (tmp_path / "history.json").write_text(json.dumps(broken))
    with pytest.raises(SplatrimError, match="n_gaussians"):
        load_run(tmp_path)
