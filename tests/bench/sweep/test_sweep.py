"""A sweep: what it plans, runs, resumes, records and writes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.sweep import SweepConfig, main, parse_method, plan, run_sweep
from bench.sweep import run as sweep_run
from bench.sweep.plots import curve_of, family, plot, plot_seconds
from bench.sweep.run import RECORD, RESULT, error_line, load_result
from bench.sweep.table import MEAN_OF_SCENES, markdown, summarize, with_ratios
from gs.data.demo import write_demo_scene
from gs.errors import SplatrimError
from gs.run_record import saved_checkpoints


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "solids"
    write_demo_scene(folder, views=9, width=48, height=36)
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def figures(method: str, psnr: float, n: int, **more: Any) -> dict[str, Any]:
    run = {"scene": "garden", "method": method, "seed": 0, "psnr": psnr, "n_gaussians": n}
    run |= {"ssim": 0.8, "ply_bytes": 248 * n, "train_seconds": 61.25, "peak_memory_mb": 1234.5}
    run |= {"energy_joules": 15_500.0}
    return run | {"fps": 512.5, "device": "GPU", "times_comparable": True} | more


def test_methods_are_read() -> None:
    method = parse_method("mask-gaussian:alpha")
    assert (method.name, method.preset, method.is_post) == ("mask-gaussian", "alpha", False)
    method = parse_method("post:mask-gaussian")
    assert (method.name, method.preset, method.is_post) == ("mask-gaussian", None, True)
    assert method.label == "post:mask-gaussian"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "unknown method 'magic': choose"),
        ("mask-gaussian:omega", "no preset 'omega': choose beta"),
        ("post:3dgs", "would train 3dgs after 3dgs"),
    ],
)
def test_impossible_methods(text: str, message: str) -> None:
    with pytest.raises(SplatrimError, match=message):
        parse_method(text)


def test_a_plan_names_every_run(tmp_path: Path) -> None:
    scenes = (tmp_path / "a", tmp_path / "b")
    for folder in scenes:
        folder.mkdir()
    config = SweepConfig(
        scenes,
        methods=("post:mask-gaussian:alpha",),
        out=tmp_path / "out",
        seeds=(0, 7),
        iterations=900,
        post_iterations=300,
        resolution=4,
    )
    jobs = plan(config, ["--sh_degree", "1"])
    folders = [str(job.folder.relative_to(tmp_path / "out")) for job in jobs]
    # the runs that the others start from were not asked for, and come first
    assert folders[:4] == [
        "a/3dgs/seed0",
        "a/3dgs/seed7",
        "a/post.mask-gaussian.alpha/seed0",
        "a/post.mask-gaussian.alpha/seed7",
    ]
    assert folders[4:] == [name.replace("a/", "b/", 1) for name in folders[:4]]
    line = "--method 3dgs --seed 7 --iterations 900 -r 4 --sh_degree 1"
    assert " ".join(jobs[1].args) == line and jobs[1].start_from is None
    line = "--method mask-gaussian --seed 7 --preset alpha --iterations 30300 -r 4 --sh_degree 1"
    assert " ".join(jobs[3].args) == line and jobs[3].start_from == jobs[1].folder


def test_a_method_may_have_flags_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    config = SweepConfig(
        (tmp_path / "a",), ("mask-gaussian:beta+densifier=taming+budget=2x",), tmp_path / "out"
    )
    (job,) = plan(config, ["--sh_degree", "1"])
    line = "--method mask-gaussian --seed 0 --preset beta --densifier taming --budget 2x"
    assert " ".join(job.args) == line + " --sh_degree 1"
    with pytest.raises(SplatrimError, match="give flags as \\+flag=value"):
        plan(SweepConfig((tmp_path / "a",), ("3dgs+quick",)), [])


def test_impossible_sweeps(tmp_path: Path) -> None:
    (tmp_path / "x" / "same").mkdir(parents=True)
    (tmp_path / "y" / "same").mkdir(parents=True)
    twice = (tmp_path / "x" / "same", tmp_path / "y" / "same")
    with pytest.raises(SplatrimError, match="two scenes are called same"):
        plan(SweepConfig(twice), [])
    with pytest.raises(SplatrimError, match="no such scene: .*absent"):
        plan(SweepConfig((tmp_path / "absent",)), [])
    with pytest.raises(SplatrimError, match="either --scenes or --suite"):
        plan(SweepConfig(), [])
    with pytest.raises(SplatrimError, match="either --scenes or --suite"):
        plan(SweepConfig(twice[:1], suite="db"), [])
    with pytest.raises(SplatrimError, match="--jobs must be at least 1"):
        plan(SweepConfig(twice[:1], jobs=0), [])


def test_a_sweep_runs_fails_resumes(
    scene: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    out = tmp_path / "out"
    words = ["--scenes", str(scene), str(broken), "--methods", "3dgs", "--iterations", "3"]
    words += ["--out", str(out), "--device", "cpu", "--", "--init_points", "60"]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    assert "1 of 2 runs failed" in capsys.readouterr().err

    saved = json.loads((out / "sweep.json").read_text())
    good, bad = saved["runs"]
    folder = out / "solids/3dgs/seed0"
    assert good["n_gaussians"] == 60 and good["n_test_views"] == 2
    assert 5 < good["psnr"] < 40 and 0 < good["ssim"] < 1
    assert good["fps"] > 0 and good["train_seconds"] > 0 and good["peak_memory_mb"] > 50
    assert (good["width"], good["height"]) == (48, 36)
    assert good["ratio"] == 0 and good["difference"] == 0 and good["times_comparable"]
    assert json.loads((folder / "results.json").read_text())["ours_3"]["PSNR"] == good["psnr"]
    assert not (folder / "test").exists()
    assert "broken" in bad["error"] and "\n" not in bad["error"]
    assert not (out / "broken/3dgs/seed0" / RESULT).exists()
    assert "seed 0: " + bad["error"] in (out / "sweep.md").read_text()
    with Image.open(out / "sweep.png") as image:
        assert image.format == "PNG"

    # again: nothing is trained twice, what failed is tried again
    kept = (folder / RESULT).read_bytes(), (folder / "history.json").stat().st_mtime_ns
    commands: list[list[str]] = []

    def refuse(self: Any, command: list[str], log: Any) -> int:
        commands.append(command)
        raise SplatrimError("still\nbroken")

    monkeypatch.setattr(sweep_run.Runner, "_wait", refuse)
    with pytest.raises(SystemExit):
        main(words)
    (command,) = commands
    assert command[command.index("-s") + 1] == str(broken)
    assert kept == ((folder / RESULT).read_bytes(), (folder / "history.json").stat().st_mtime_ns)
    assert "seed 0: still\n" in (out / "sweep.md").read_text()

    # a run that was trained but not measured is only measured
    (folder / RESULT).unlink()
    with pytest.raises(SystemExit), monkeypatch.context() as patch:
        patch.setattr(sweep_run, "render_views", lambda *a, **k: 1 / 0)
        main(words)
    assert "ZeroDivisionError: division by zero" in (out / "sweep.md").read_text()
    with pytest.raises(SystemExit):
        main(words)
    again = json.loads((folder / RESULT).read_text())
    assert again["psnr"] == good["psnr"] and again["train_seconds"] == good["train_seconds"]

    # other settings are not taken for the same run
    words[words.index("3")] = "4"
    with pytest.raises(SplatrimError, match="trained with other arguments: give another --out"):
        main(words)


def test_ctrl_c_saves_and_the_next_sweep_goes_on(
    scene: Path, tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--scenes", str(scene), "--methods", "3dgs", "--out", str(tmp_path), "--device", "cpu"]
    words += ["--iterations", "200", "--", "--init_points", "40", "--test_iterations", "-1"]
    command = [sys.executable, "-m", "bench.sweep", *words]
    process = subprocess.Popen(command, cwd=repo, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "solids/3dgs/seed0"
    deadline = time.monotonic() + 120
    while not (folder / "train.log").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    *_, checkpoint = saved_checkpoints(folder).values()
    assert not (folder / RESULT).exists()
    assert not json.loads((folder / RECORD).read_text())["trained"]

    commands: list[list[str]] = []

    def record(self: Any, command: list[str], log: Any) -> int:
        commands.append(command)
        return 1

    monkeypatch.setattr(sweep_run.Runner, "_wait", record)
    with pytest.raises(SystemExit):
        main(words)
    (again,) = commands
    assert again[again.index("--start_checkpoint") + 1] == str(checkpoint)


def test_post_training_starts_from_the_finished_3dgs_run(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SweepConfig((scene,), ("post:mask-gaussian",), tmp_path, device=("cpu",))
    job = plan(config, [])[1]
    commands: list[list[str]] = []
    runner = sweep_run.Runner(devices=["cpu"], n_parallel=1, keep_images=False)
    monkeypatch.setattr(runner, "_wait", lambda command, log: commands.append(command) or 0)
    ply = tmp_path / "solids/3dgs/seed0/point_cloud/iteration_30/point_cloud.ply"
    ply.parent.mkdir(parents=True)
    ply.touch()
    assert "3dgs run that it starts from has not finished" in runner.run(job)["error"]
    assert not commands
    (tmp_path / "solids/3dgs/seed0" / RESULT).write_text("{}")
    assert "has no saved model" in runner.run(job)["error"]
    assert commands[0][commands[0].index("--start_ply") + 1] == str(ply)


def test_folders_of_others_are_left_alone(scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "solids/3dgs/seed0"
    folder.mkdir(parents=True)
    (folder / "precious.txt").write_text("mine")
    (run,) = run_sweep(SweepConfig((scene,), ("3dgs",), tmp_path, iterations=1, device=("cpu",)))
    assert "is in the way" in run["error"]
    assert (folder / "precious.txt").read_text() == "mine"


def test_broken_results_are_refused(scene: Path, tmp_path: Path) -> None:
    (job,) = plan(SweepConfig((scene,), ("3dgs",), tmp_path), [])
    assert load_result(job) is None
    job.folder.mkdir(parents=True)
    (job.folder / RESULT).write_text("[]")
    with pytest.raises(SplatrimError, match="does not hold a run's figures"):
        load_result(job)


def test_error_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("error: of an earlier try\n")
    begin = log.stat().st_size
    assert error_line(log, begin, 3) == "exit status 3"
    with open(log, "a") as file:
        file.write("a warning\nerror: no such scene\nbye\n\n")
    assert error_line(log, begin, 2) == "no such scene"
    with open(log, "w") as file:
        file.write("Traceback (most recent call last):\n  ...\nValueError: odd\n")
    assert error_line(log, 0, 1) == "ValueError: odd"
    assert error_line(log, 0, -9) == "ended by signal 9: ValueError: odd"


def test_ratios_and_differences_are_of_the_same_scene_and_seed() -> None:
    runs = [
        figures("3dgs", 27.0, 1000),
        figures("3dgs", 28.0, 2000, seed=1),
        figures("mask-gaussian", 26.5, 400),
        figures("mask-gaussian", 28.25, 500, seed=1),
        figures("mask-gaussian", 20.0, 10, scene="other"),
    ]
    rows = with_ratios(runs)
    assert [row.get("ratio") for row in rows] == [0.0, 0.0, 0.6, 0.75, None]
    assert [row.get("difference") for row in rows] == [0.0, 0.0, -0.5, 0.25, None]


def test_the_table(tmp_path: Path) -> None:
    runs = [
        figures("3dgs", 27.0, 1_000_000, lpips=0.25),
        figures("mask-gaussian:alpha", 27.125, 400_000, lpips=0.125),
        {"scene": "garden", "method": "lp-3dgs", "seed": 0, "error": "out of memory"},
        figures("3dgs", 30.0, 500_000, scene="bonsai"),
        figures("mask-gaussian:alpha", 29.5, 100_000, scene="bonsai", times_comparable=False),
    ]
    rows = summarize(runs)
    lines = markdown(rows).splitlines()
    garden, bonsai = lines.index("## garden"), lines.index("## bonsai")
    mean = lines.index(f"## {MEAN_OF_SCENES}")
    assert garden < bonsai < mean
    assert lines[garden + 4 : garden + 7] == [
        "| 3dgs | 27.00 |  | 0.8000 | 0.2500 | 1,000,000 |  | 248.0 | 61.2 s"
        " | 1,234 | 15.5 | 512.5 |",
        "| mask-gaussian:alpha | 27.12 | +0.12 | 0.8000 | 0.1250 | 400,000 | 60.0% | 99.2 | 61.2 s"
        " | 1,234 | 15.5 | 512.5 |",
        "| lp-3dgs | failed | – | – | – | – | – | – | – | – | – | – |",
    ]
    assert "- lp-3dgs, seed 0: out of memory" in lines
    assert lines[bonsai + 5].startswith("| mask-gaussian:alpha | 29.50 | -0.50 | 0.8000 | – |")
    assert lines[bonsai + 5].endswith("| 80.0% | 24.8 | 61.2 s * | 1,234 | 15.5 * | 512.5 * |")
    # lp-3dgs has not finished, LPIPS is not known everywhere
    assert lines[mean + 4].startswith("| 3dgs | 28.50 |  | 0.8000 | – | 750,000 |")
    assert lines[mean + 5].startswith("| mask-gaussian:alpha | 28.31 | -0.19 |")
    assert "lp-3dgs" not in "".join(lines[mean:])
    assert "not comparable" in lines[-1] and "Device: GPU." in lines
    # columns fit their heading, in Markdown's sense
    assert {line.count("|") for line in lines if line.startswith("|")} == {13}

    plot(rows, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 900
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 50
    plot([], tmp_path / "empty.png")


def test_energy_is_shown_where_it_is_known() -> None:
    known, unknown = figures("3dgs", 27.0, 1000), figures("mask-gaussian", 26.5, 400)
    del unknown["energy_joules"]
    assert "energy, kJ" in markdown(summarize([known, unknown]))
    text = markdown(summarize([unknown]), ["missing: room"])
    assert "nergy" not in text and "- missing: room" in text.splitlines()


def test_curves_are_over_the_seconds_of_the_log(tmp_path: Path) -> None:
    tests = [{"step": 50, "psnr": 20.0}, {"step": 150, "psnr": 25.0}, {"step": 300, "psnr": 26.0}]
    curve = curve_of({"step": [100, 200, 300], "seconds": [1.0, 3.0, 7.0], "test": tests})
    assert curve == [[1.0, 20.0], [2.0, 25.0], [7.0, 26.0]]
    assert curve_of({"test": tests}) == [] and curve_of({}) == []
    rows = summarize([figures("3dgs+budget=1x", 26.0, 10), figures("3dgs+budget=2x", 27.0, 20)])
    plot_seconds(rows, tmp_path / "without.png")
    rows[0]["curves"] = [curve]
    plot_seconds(rows, tmp_path / "with.png")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
    assert family("3dgs+budget=1x") == family("3dgs+budget=2x") != family("3dgs")


def test_seeds_are_averaged() -> None:
    runs = [
        figures("3dgs", 27.0, 1000),
        figures("3dgs", 28.0, 2000, seed=1),
        {"scene": "garden", "method": "3dgs", "seed": 2, "error": "broke"},
    ]
    (row,) = summarize(runs)
    assert (row["psnr"], row["n_gaussians"], row["n_seeds"]) == (27.5, 1500, 2)
    assert row["psnr_std"] == pytest.approx(0.5**0.5)
    assert row["errors"] == ["seed 2: broke"]
    assert "| 3dgs | 27.50 ± 0.71 |" in markdown([row])
