"""--config: the settings of a run begin another command line; --start_ply counts on."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from gs import cli
from gs.cli import Config, describe
from gs.errors import SplatrimError
from pruning import METHODS


def parse(line: str) -> Config:
    return cli.parse(shlex.split(line), METHODS, "")


def same(a: Config, b: Config) -> bool:
    """Whether two lines ask for the same run, but for where it is written."""

    def plain(config: Config) -> Config:
        train = dataclasses.replace(config.train, model_path=Path("out"))
        choice = dataclasses.replace(config.choice, config=None)
        return dataclasses.replace(config, train=train, choice=choice)

    return plain(a) == plain(b)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--eval -r 4 -w -i images_4 --test_iterations --iterations 600 --preset gamma --seed 3",
        "--method lp-3dgs --densifier mcmc --budget 3x --noise_lr 4e3 --no_cuda_graphs",
        "--recipe fast --lambda_mask 0.01 --densify_until_iter 7",
        "--start_ply model.ply --iterations 2000 --lambda_mask 0.2",
        "--schedule scaled --iterations 15000 --init_points 50 --random_background",
        "--demo --no_baseline",
        "--representation neural --offsets 3 --iterations 900",
    ],
)
def test_a_config_file_is_the_run_that_wrote_it(tmp_path: Path, line: str) -> None:
    first = parse(f"-s /scene -m {tmp_path} {line}")
    (tmp_path / "config.json").write_text(json.dumps({**describe(first), "run": "a"}))
    assert same(parse(f"--config {tmp_path}/config.json"), first)
    again = parse(f"--config {tmp_path} -m elsewhere")
    assert again.train.model_path == Path("elsewhere") and same(again, first)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The config.json of a short run with settings of its own."""
    line = "-s /scene -m /out --eval --iterations 600 --lambda_mask 0.3 --opacity_lr 0.07"
    config = parse(f"{line} --densifier taming --budget 9x")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(describe(config)))
    return path


def test_flags_win_over_the_file(written: Path) -> None:
    config = parse(f"--config {written} --lambda_mask 0.5 --no_eval -s other")
    assert (config.pruning.lambda_mask, config.scene.eval) == (0.5, False)
    assert (config.scene.source_path, config.optim.opacity_lr) == (Path("other"), 0.07)


def test_another_length_scales_the_schedule_and_keeps_what_was_given(written: Path) -> None:
    config = parse(f"--config {written} --iterations 3000")
    wanted = "-s /scene --eval --iterations 3000 --lambda_mask 0.3 --opacity_lr 0.07"
    assert same(config, parse(f"{wanted} --densifier taming --budget 9x"))


def test_another_method_or_densifier_has_its_own_settings(written: Path) -> None:
    config = parse(f"--config {written} --method 3dgs")
    wanted = "-s /scene --eval --iterations 600 --opacity_lr 0.07 --method 3dgs"
    assert same(config, parse(f"{wanted} --densifier taming --budget 9x"))
    config = parse(f"--config {written} --densifier mcmc")
    assert config.densify.budget == "5x" and config.pruning.lambda_mask == 0.3


def test_a_new_start_of_a_finished_model_brings_the_preset_for_it(written: Path) -> None:
    config = parse(f"--config {written} --start_ply a.ply --densifier default --iterations 100")
    assert (config.choice.preset, config.train.post_start) == ("post", 30_000)
    assert config.train.iterations == 30_100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is not the config.json of a run of this program"),
        ('{"method": "magic", "iterations": 5}', "unknown --method 'magic'"),
        ('{"method": 3, "iterations": 5}', "method: expected text"),
        ('{"method": "3dgs", "iterations": 5, "densifier": [2]}', "is not the config.json"),
        ("[", "config.json"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SplatrimError, match=message):
        parse(f"--config {tmp_path} -s x")
    with pytest.raises(SplatrimError, match="none.json"):
        parse(f"--config {tmp_path}/none.json -s x")


def test_iterations_after_a_finished_ply_are_so_many_more() -> None:
    more = parse("-s x --start_ply any.ply --iterations 2000")
    beyond = parse("-s x --start_ply any.ply --iterations 32000")
    assert more.train.iterations == 32_000 and same(more, beyond)
    assert more.pruning.mask_until_iter == 32_000
    assert more.optim.position_lr_max_steps == 32_000
