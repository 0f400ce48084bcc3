"""A resumed run is compared with its start in every setting, and in its scene."""

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from gs.cli import describe
from gs.config import TrainConfig
from gs.data.demo import write_demo_scene
from gs.data.scene import Scene, load_scene
from gs.errors import SplatrimError
from gs.training.same_run import (
    changed_settings,
    check_scene,
    differing_scene,
    scene_entry,
    with_start,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_changed_settings_are_named() -> None:
    before = {
        "optim": {"opacity_lr": 0.05},
        "densify": {"min_opacity": 0.005},
        "pruning": {"lambda_mask": 0.0005, "kept": [1, 2]},
        "seed": 0,
    }
    now = {
        "optim": {"opacity_lr": 0.025, "added": 1},
        "densify": {"min_opacity": 0.005},
        "pruning": {"lambda_mask": 0.1, "kept": (1, 2)},
        "seed": 1,
    }
    assert changed_settings(before, now) == [
        "seed 1 (was 0)",
        "opacity_lr 0.025 (was 0.05)",
        "lambda_mask 0.1 (was 0.0005)",
    ]
    assert changed_settings({}, now) == []
    # a setting that stood in another part
    assert changed_settings({"optim": {"lambda_mask": 0.2}}, now) == ["lambda_mask 0.1 (was 0.2)"]


def test_every_setting_is_compared_but_harmless_ones() -> None:
    before = describe(train.parse(["-s", "scene", "-m", "a"]))
    flags: str = (
        "-s scene -m b --quiet --device cpu --save_iterations 5 --overwrite --no_cuda_graphs"
    )
    assert changed_settings(before, describe(train.parse([*flags.split()]))) == []
    changes: tuple[str, ...] = (
        "-w",
        "-r 2",
        "--lambda_dssim 0.9",
        "--seed 5",
        "--random_background",
        "--sh_degree 1",
        "--eval",
        "-i images_2",
        "--init_points 5",
        "--iterations 20000",
        "--deterministic",
        "--densify_grad_threshold 1e-3",
        "--min_opacity 0.1",
        "--rotation_lr 0.1",
        "--sh_degree_interval 7",
        "--preset gamma",
        "--mask_lr 1",
    )
    for flag in changes:
        config = train.parse(["-s", "scene", "-m", "a", *flag.split()])
        name = flag.split()[0].lstrip("-")
        long = {"w": "white_background", "r": "resolution", "i": "images"}.get(name, name)
        told = changed_settings(before, describe(config))
        assert any(text.startswith(f"{long} ") for text in told), (flag, told)
    config = train.parse(["-s", "scene", "-m", "a", "--densifier", "mcmc"])
    assert "densifier mcmc (was default)" in changed_settings(before, describe(config))


def test_scenes_are_known_by_their_views(scene: Scene) -> None:
    entry = scene_entry(scene)
    assert differing_scene(entry, scene) == ""
    moved = dataclasses.replace(scene, source=Path("elsewhere"))
    assert differing_scene(entry, moved) == ""

    def cameras(**fields: Any) -> Scene:
        first, *rest = scene.train
        return dataclasses.replace(scene, train=[dataclasses.replace(first, **fields), *rest])

    split = dataclasses.replace(scene, train=[*scene.train, *scene.test], test=[])
    assert differing_scene(entry, split) == "it has 8 training views and not 6"
    assert differing_scene(entry, cameras(width=20, height=15)) == (
        "its images have 20x15 pixels and not 40x30"
    )
    assert differing_scene(entry, cameras(image_name="x.png")).startswith("x.png was not a train")
    viewmat = scene.train[0].viewmat.clone()
    viewmat[0, 3] += 0.5
    assert differing_scene(entry, cameras(viewmat=viewmat)) == "its cameras stand elsewhere"
    viewmat[0, 3] -= 0.5 - 1e-5  # of another version's arithmetic
    assert differing_scene(entry, cameras(viewmat=viewmat)) == ""


def test_another_scene_is_refused_unless_asked_for(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    state = {"scene": scene_entry(scene)}
    split = dataclasses.replace(scene, train=[*scene.train, *scene.test], test=[])
    check_scene(state, scene, {})
    with pytest.raises(SplatrimError, match="it has 8 training views and not 6; give --other_sc"):
        check_scene(state, split, {"post_start": None})
    assert not caplog.records
    for settings in ({"other_scene": True}, {"post_start": 30_000}):
        caplog.clear()
        check_scene(state, split, settings)
        assert "it has 8 training views" in caplog.text
    # checkpoints of before, which know the flags only
    old = {"config": {"eval": True, "source_path": "a"}}
    with pytest.raises(SplatrimError, match="eval is False and was True"):
        check_scene(old, scene, {"eval": False, "source_path": "a"})
    check_scene({"config": {}}, scene, {"eval": False})


def test_what_the_model_decides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = {"sh_degree": 1, "rng": {"seed": 4}}
    config = TrainConfig(tmp_path, start_checkpoint=tmp_path / "a.pth", seed=9)
    kept = with_start(config, start)
    assert (kept.sh_degree, kept.seed) == (1, 4)
    assert "sh_degree stays 1" in caplog.text and "seed stays 4" in caplog.text
    caplog.clear()
    assert with_start(kept, start) == kept and not caplog.records
    assert with_start(TrainConfig(tmp_path, seed=9), {"sh_degree": 2, "rng": {}}).seed == 9
    assert not caplog.records and with_start(config, None) == config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, and in run/ a checkpoint of it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("resumed")
    write_demo_scene(folder / "scene", views=9, width=48, height=36)
    line = f"-s {folder}/scene -m {folder}/run --eval --quiet --device cpu --iterations 3"
    train.main([*line.split(), "--checkpoint_iterations", "2", "--init_points", "60"])
    return folder


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--eval -r 2", "24x18 pixels and not 48x36"),
        ("", "it has 9 training views and not 7"),
        ("--eval -w", "white_background True (was False)"),
        ("--eval --lambda_dssim 0.9", "lambda_dssim 0.9 (was 0.2)"),
        ("--eval --random_background", "random_background True"),
        ("--eval --seed 5", "seed stays 0"),
        ("--eval --sh_degree 1", "sh_degree stays 3"),
        ("--eval -r 2 --other_scene", "24x18 pixels and not 48x36"),
    ],
)
def test_changes_are_told_or_refused(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, flags: str, told: str
) -> None:
    line = f"-s {folder}/scene -m {tmp_path}/out --quiet --device cpu --iterations 3 --init_points"
    words = [*line.split(), "60", "--start_checkpoint", f"{folder}/run/chkpnt2.pth"]
    config = train.parse([*words, *flags.split()])
    with caplog.at_level(logging.WARNING):
        if flags in ("", "--eval -r 2"):
            with pytest.raises(SplatrimError) as caught:
                train.build_trainer(config)
            assert told in str(caught.value) and "--other_scene" in str(caught.value)
        else:
            train.build_trainer(config)
            assert told in caplog.text


def test_a_scene_may_move(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(folder / "scene", tmp_path / "moved")
    line = f"-s {tmp_path}/moved -m {tmp_path}/out --eval --quiet --device cpu --iterations 3"
    words = [*line.split(), "--init_points", "60"]
    trainer = train.build_trainer(
        train.parse([*words, "--start_checkpoint", f"{folder}/run/chkpnt2.pth"])
    )
    assert trainer.step == 2 and "source_path" in caplog.text
    assert len(load_scene(tmp_path / "moved", eval=True).train) == 7
