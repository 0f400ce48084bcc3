"""Benchmarks: which scenes are there, how they are trained, and what is said of the others."""

from pathlib import Path

import pytest
import torch

from bench.sweep import SweepConfig, plan, run_sweep, scenes_of
from bench.sweep.energy import joules
from bench.sweep.suites import SUITES, find_suite, odd_sizes
from gs.data.demo import write_demo_scene
from gs.errors import SplatrimError


def make(data: Path, *folders: str) -> None:
    for folder in folders:
        (data / folder).mkdir(parents=True)


def test_scenes_are_found_where_they_usually_lie(tmp_path: Path) -> None:
    make(tmp_path, "360_v2/garden/images_4", "room/images_2", "mipnerf360/bonsai/images")
    make(tmp_path, "mipnerf360/bonsai/images_8", "tandt_db/db/playroom/images")
    found, missing = find_suite("mipnerf360", tmp_path)
    assert {one.folder.relative_to(tmp_path).as_posix(): one.words for one in found} == {
        "360_v2/garden": ("-i", "images_4"),
        "room": ("-i", "images_2"),
    }
    assert len(missing) == 7
    assert any("bonsai has no images_2; it is in 360_v2.zip" in line for line in missing)
    assert any(line.startswith("flowers: not in ") for line in missing)
    found, missing = find_suite("mipnerf360", tmp_path, any_size=True)
    assert found[-1].words == ("-i", "images") and len(missing) == 6
    assert [one.folder.name for one in find_suite("db", tmp_path)[0]] == ["playroom"]


def test_blender_scenes_are_over_white(tmp_path: Path) -> None:
    make(tmp_path, "lego/train")
    ((folder, words),), missing = find_suite("nerf_synthetic", tmp_path)
    assert (folder.name, words) == ("lego", ("-w",)) and len(missing) == 7


@pytest.mark.parametrize("name", SUITES)
def test_nothing_there_names_everything(tmp_path: Path, name: str) -> None:
    with pytest.raises(SplatrimError, match="has no scene of") as told:
        find_suite(name, tmp_path)
    assert all(scene.name in str(told.value) for scene in SUITES[name].scenes)
    assert "http" in str(told.value)


def test_a_suite_is_planned_scene_by_scene(tmp_path: Path) -> None:
    make(tmp_path, "garden/images_4", "room/images_2")
    config = SweepConfig(suite="mipnerf360", data=tmp_path, methods=("3dgs",), seeds=(0, 1))
    jobs = plan(config, ["--sh_degree", "1"])
    assert [job.title for job in jobs] == [
        f"{scene} 3dgs seed {seed}" for scene in ("garden", "room") for seed in (0, 1)
    ]
    assert jobs[2].args == tuple("--method 3dgs --seed 0 -i images_2 --sh_degree 1".split())
    assert len(scenes_of(config)[1]) == 7


def test_other_sizes_than_those_of_papers_are_told() -> None:
    runs = [
        {"scene": "bonsai", "width": 800, "height": 533},
        {"scene": "bonsai", "width": 800, "height": 533},
        {"scene": "garden", "width": 1297, "height": 840},
        {"scene": "room", "error": "out of memory"},
    ]
    assert odd_sizes("mipnerf360", runs) == ["bonsai: 800x533, in papers 1559x1039"]


def test_a_suite_runs_and_its_table_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_demo_scene(tmp_path / "truck", views=9, width=24, height=18)
    config = SweepConfig(
        suite="tandt",
        data=tmp_path,
        methods=("3dgs",),
        out=tmp_path / "out",
        device=("cpu",),
        iterations=2,
    )
    (run,) = run_sweep(config, ["--init_points", "30"])
    assert run["energy_joules"] is None and len(run["curve"]) == 1
    assert "missing: train: not in" in capsys.readouterr().out
    lines = (tmp_path / "out" / "sweep.md").read_text().splitlines()
    assert "- truck: 24x18, in papers 979x546" in lines
    assert any(line.startswith("- missing: train: not in") for line in lines)
    assert (tmp_path / "out" / "seconds.png").is_file()


def test_a_cpu_tells_no_energy() -> None:
    assert joules(torch.device("cpu")) is None
