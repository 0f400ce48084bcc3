"""Neural Gaussians by commands: train, go on, render, report, view, bake; and what is refused."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from gs.bake import BakeConfig, bake_run
from gs.cli import Config, describe
from gs.data.demo import write_demo_scene
from gs.densification.growth import GrowthConfig
from gs.errors import SplatrimError
from gs.evaluation.render import render_views
from gs.model.ply import load_ply
from gs.neural.config import NeuralConfig
from gs.report.sections import write_report
from gs.training.checkpoint import load_checkpoint
from gs.viewer.__main__ import PageConfig, write_run_page

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small copy of the built-in scene: 9 views, two of them for testing."""
    folder = tmp_path_factory.mktemp("scenes") / "demo"
    write_demo_scene(folder, views=9, width=48, height=36)
    return folder


def parse(line: str) -> Config[Any, Any, Any]:
    return train.parse(shlex.split(line))


def test_flags_of_anchors() -> None:
    config = parse(
        "-s scene --representation neural --voxel_size 0.01 --offsets 5 --update_depth 2"
    )
    assert isinstance(config.neural, NeuralConfig) and isinstance(config.densify, GrowthConfig)
    assert (config.neural.voxel_size, config.neural.offsets) == (0.01, 5)
    assert (config.neural.feature_dim, config.densify.update_depth) == (32, 2)
    assert config.densify.densify_until_iter == 15_000
    described = describe(config)
    assert described["representation"] == "neural"
    assert described["neural"]["voxel_size"] == 0.01
    assert "neural" not in describe(parse("-s scene"))
    short = parse("-s scene --representation neural --iterations 3000")
    assert (short.densify.densify_from_iter, short.densify.statistics_from_iter) == (150, 50)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--representation cubes", "unknown --representation 'cubes'"),
        ("--representation neural --densifier mcmc --budget 10", "leave --densifier out"),
        ("--representation neural --offsets 25", "--offsets must be 1 to 24, not 25"),
        ("--representation neural --start_ply x.ply", "make some of the anchors with python -m"),
    ],
)
def test_what_does_not_go_together_is_refused(flags: str, message: str) -> None:
    with pytest.raises(SplatrimError, match=message):
        parse(f"-s scene {flags}")


def test_a_run_by_its_commands(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = (
        f"-s {demo} -m {out} --eval --representation neural --voxel_size 0.4 --offsets 3 --quiet"
        " --feature_dim 8 --device cpu --iterations 12 --checkpoint_iterations 6 --mask_lr 0.2"
        " --test_iterations 12 --save_iterations 6"
    )
    train.main(shlex.split(run))
    settings = json.loads((out / "config.json").read_text())
    assert settings["representation"] == "neural" and settings["neural"]["offsets"] == 3
    once = load_checkpoint(out / "chkpnt6.pth", gaussians=False)
    assert once["params"]["mask_logits"].shape[1:] == (3, 2)

    first = render_views(out, skip_train=True, quiet=True, device="cpu")
    trained = json.loads((out / "history.json").read_text())["test"][-1]["psnr"]
    assert first["test"]["psnr"] == pytest.approx(trained, abs=1e-4)
    train.main(shlex.split(f"{run} --start_checkpoint {out / 'chkpnt6.pth'}"))
    again = render_views(out, skip_train=True, quiet=True, device="cpu")
    assert again["test"] == first["test"]
    with pytest.raises(SplatrimError, match="go on with --representation neural"):
        train.main(
            ["-s", str(demo), "-m", str(out), "--start_checkpoint", str(out / "chkpnt6.pth")]
        )

    found = bake_run(BakeConfig(out, device="cpu", quiet=True))
    assert found["n_gaussians"] == len(load_ply(out / "baked.ply")["means"])
    page = write_report(out).read_text()
    assert "Anchors" in page and "Baked Gaussians" in page
    assert f"{found['psnr_baked']:.2f} dB" in page
    assert write_run_page(PageConfig(out)).stat().st_size > 10_000
    torch.testing.assert_close(found["psnr_neural"], first["test"]["psnr"], rtol=0.0, atol=1e-3)


def test_a_checkpoint_of_gaussians_is_no_start_of_anchors(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = f"-s {demo} -m {out} --eval --quiet --device cpu --iterations 4 --checkpoint_iterations 2"
    train.main(shlex.split(run))
    with pytest.raises(SplatrimError, match="go on with --representation explicit"):
        train.main(
            shlex.split(f"{run} --representation neural --start_checkpoint {out / 'chkpnt2.pth'}")
        )
