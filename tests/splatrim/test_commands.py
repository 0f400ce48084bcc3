"""The command `splatrim`: its table, help on two screens, wrong words told before torch comes."""

import importlib
import json
import re
import shlex
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest

from gs.cli import DENSIFIERS
from gs.data.demo import write_demo_scene
from gs.errors import SplatrimError
from pruning import METHODS
from splatrim.commands import COMMANDS, EVERYDAY, main, run
from splatrim.flags import Source


def flags_of(text: str) -> set[str]:
    """The long flags that a help text names at the beginning of a line, negated ones as such."""
    starts = [line.strip("│ ") for line in text.splitlines() if re.match(r"^[│ ]*--?\w", line)]
    words = [word for start in starts for word in re.findall(r"(?<![\w-])--\w+", start)]
    return set(words) - {"--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_read_from_the_source_are_those_of_the_parser(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source(COMMANDS[name])
    if not source.flags:
        pytest.skip("its words are its own")
    lines = [""]
    if name == "train":
        lines = [f"--method {m} --densifier {d}" for m, d in product(METHODS, DENSIFIERS)]
        lines.append("--representation neural")
    parsed: set[str] = set()
    for line in lines:
        with pytest.raises(SystemExit):
            importlib.import_module(COMMANDS[name][0]).main([*line.split(), "--help"])
        parsed |= flags_of(capsys.readouterr().out)
    known = {word for flag in source.flags.values() for word in flag.words}
    assert parsed <= known, "not read from the source: add the module to the table"
    missing = {word for word in known if not word.startswith("--no_")} - parsed
    assert not {word for word in missing if len(word) > 2}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_on_two_screens(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(name, ["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"splatrim {name}")
    assert len(lines) <= 100 and max(map(len, lines)) <= 100


def test_everyday_flags_exist_and_the_others_are_a_flag_away(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, everyday in EVERYDAY.items():
        assert not set(everyday) - Source(COMMANDS[name]).flags.keys()
    run("train", ["--help"])
    short = capsys.readouterr().out
    assert "--lambda_dssim" not in short and "--source_path" in short
    listed = re.search(r"^Methods: (.*?);", short, re.MULTILINE | re.DOTALL)
    assert listed is not None
    names = listed[1].replace("\n", " ").split(", ")
    assert names[0] == next(iter(METHODS)) and {*names} == {*METHODS}
    with pytest.raises(SystemExit):
        run("train", ["--help_all", "--method", "3dgs"])
    everything = capsys.readouterr().out
    assert "--lambda_dssim" in everything and "--lambda_mask" not in everything


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian -s x", "there is no command 'trian': did you mean train?"),
        ("juggle", f"there is no command 'juggle': choose {', '.join(COMMANDS)}"),
        ("train --iteratons 5", "there is no flag --iteratons: did you mean --iterations?"),
        ("train --lamda-mask=5", "there is no flag --lamda-mask: did you mean --lambda_mask?"),
        ("train --no_cuda_graph", "--no_cuda_graph: did you mean --no_cuda_graphs?"),
        ("train -x 3", "there is no flag -x: "),
        ("render --skiptrain", "there is no flag --skiptrain: did you mean --skip_train?"),
        ("train -s x --iterations ten", "--iterations ten: expected a whole number"),
        ("train -s x --iterations=1e3", "--iterations 1e3: expected a whole number"),
        ("train -s x --lambda-mask 0,1", "--lambda-mask 0,1: expected a number"),
        ("train -s x --densifier mcmd", "--densifier mcmd: did you mean mcmc?"),
        ("train -s x --recipe slow", "--recipe slow: choose default, fast, faster, momentum"),
        ("train -s x --method mask-gausian", "mask-gausian: did you mean mask-gaussian?"),
        ("train -s x --iterations", "--iterations needs a value: INT"),
        ("train -s x --iterations --eval", "--iterations needs a value: INT"),
        ("train", "-s PATH is missing: Folder of a COLMAP scene"),
        ("view", "-m PATH is missing: Output folder of a run"),
        ("export --format spz=", "--format spz=: did you mean spz?"),
        ("prepare", "PHOTOS is missing: "),
        ("metrics --frobnicate", "no flag --frobnicate: --help_all lists those that there are"),
    ],
)
def test_wrong_words(line: str, message: str) -> None:
    with pytest.raises(SplatrimError, match=re.escape(message)):
        main(shlex.split(line))


def test_a_runs_folder_may_come_first_without_its_flag(tmp_path: Path) -> None:
    for line in ("view OUT", "view -m OUT", "render OUT --skip_train", "metrics OUT", "report OUT"):
        with pytest.raises(SplatrimError, match=f"{tmp_path}/none"):
            main(line.replace("OUT", f"{tmp_path}/none").split())


def test_values_that_are_right_pass(tmp_path: Path) -> None:
    line = f"-s {tmp_path}/none -m {tmp_path}/out --iterations 1_000 --lambda_mask=1e-3 --budget"
    line += " 5 --densifier mcmc --method mask-gaussian --recipe fast -r -1 --seed 4"
    line += " --init_points None"
    with pytest.raises(SplatrimError, match="no such folder|exist"):
        main(["train", *line.split()])


def test_a_typo_is_answered_before_torch_is_imported(repo: Path) -> None:
    code = """
import sys
from gs.errors import SplatrimError
from splatrim.commands import main
try:
    main(["train", "-s", "x", "--iteratons", "5"])
except SplatrimError as error:
    print(error)
main(["train", "--help"])
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    lines = done.stdout.splitlines()
    assert lines[0].endswith("did you mean --iterations?") and lines[-1] == "False"
    # 0.1 s on an idle machine; a process of Python alone can take this long on a busy one
    assert seconds < 5


def test_words_of_other_programs_and_negative_numbers_pass(tmp_path: Path) -> None:
    line = f"-s {tmp_path}/none -m {tmp_path}/out --test_iterations -1 --data_device cpu"
    with pytest.raises(SplatrimError, match="no such folder"):
        main(["train", *line.split(), "--cuda-graphs", "--quiet"])


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in COMMANDS)
    main(["--version"])
    assert capsys.readouterr().out.startswith("splatrim ")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine small views of the built-in scene."""
    folder = tmp_path_factory.mktemp("scenes") / "demo"
    write_demo_scene(folder, views=9, width=40, height=30)
    return folder


def test_train_ends_with_metrics_and_a_report_unless_told_not_to(
    scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = f"train -s {scene} --iterations 2 --quiet"
    main(shlex.split(f"{line} -m {tmp_path}/full --eval"))
    assert (tmp_path / "full" / "report.html").is_file()
    results = json.loads((tmp_path / "full" / "results.json").read_text())
    assert results["ours_2"]["PSNR"] > 5
    assert not (tmp_path / "full" / "train").exists()

    main(shlex.split(f"{line} -m {tmp_path}/no_tests"))
    assert (tmp_path / "no_tests" / "report.html").is_file()
    assert not (tmp_path / "no_tests" / "results.json").exists()

    caplog.set_level("INFO", "splatrim")
    main(shlex.split(f"{line} -m {tmp_path}/plain --eval --no_report"))
    assert not (tmp_path / "plain" / "report.html").exists()
    steps = caplog.messages[-1].removeprefix("next: ").split(" && ")
    assert [step.partition(" -m splatrim ")[2].split()[0] for step in steps] == [
        "render",
        "metrics",
        "report",
    ]
