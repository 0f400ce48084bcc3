"""Exposure compensation in training: it finds what was done to images, captured and resumed too."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gs.config import TrainConfig
from gs.data.scene import Scene
from gs.densification.mcmc import MCMCConfig
from gs.densification.taming import TamingConfig
from gs.errors import SplatrimError
from gs.model.light import FILE, NAME, Kind, light_of
from gs.model.rates import OptimConfig
from gs.training.checkpoint import load_checkpoint
from gs.training.exposure import Exposure, affine_rate, ppisp_rate
from gs.training.sharded_step import runs_on_ranks
from gs.training.start import finished, load_start
from gs.training.strategy import Strategy
from gs.training.trainer import Trainer
from pruning import METHODS
from tests.gs.graph_like import graph_like
from tests.gs.training.test_step import (
    DENSIFY,
    HISTORY,
    MASKS,
    assert_same,
    captured,
    make,
    state_of,
)

__all__ = ["graph_like"]

pytestmark = pytest.mark.usefixtures("one_thread", "graph_like")


def varied(scene: Scene, folder: Path) -> tuple[Scene, dict[str, np.ndarray]]:
    """The scene with images that are darker, each by its own factors; and these by name."""
    folder.mkdir()
    rng, cameras, gains = np.random.default_rng(0), [], {}
    for k, camera in enumerate(scene.train):
        assert camera.image_path is not None
        gain = rng.uniform(0.5, 0.95) * rng.uniform(0.95, 1.05, 3)
        pixels = np.array(Image.open(camera.image_path).convert("RGB")) * gain
        path = folder / f"{k}.png"
        Image.fromarray(np.rint(pixels).astype(np.uint8)).save(path)
        cameras.append(dataclasses.replace(camera, image_path=path))
        gains[camera.image_name] = gain
    return dataclasses.replace(scene, train=cameras), gains


def light_rows(trainer: Trainer) -> torch.Tensor:
    light = light_of(trainer.gaussians)
    assert light is not None
    return light.rows.detach()


def long_trained(scene: Scene, out: Path, *strategies: Strategy) -> Trainer:
    length = 300
    config = TrainConfig(out, iterations=length, sh_degree=0, quiet=True, device="cpu")
    optim = OptimConfig().scaled(length / 30_000)
    trainer = Trainer(config, scene, strategies=strategies, optim=optim)
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def changed(
    scene: Scene, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Scene, dict[str, np.ndarray], float]:
    """The scene in varied light, what each image has of it, and the loss of training on it."""
    folder = tmp_path_factory.mktemp("varied")
    varied_scene, gains = varied(scene, folder / "images")
    plain = long_trained(varied_scene, folder / "without")
    assert not (folder / "without/point_cloud/iteration_300" / FILE).exists()
    return varied_scene, gains, plain.tracker.history["loss"][-1]


@pytest.mark.parametrize("kind", ["affine", "ppisp"])
def test_it_finds_what_was_done_to_images(
    kind: Kind, changed: tuple[Scene, dict[str, np.ndarray], float], tmp_path: Path
) -> None:
    varied_scene, gains, plain_loss = changed
    trainer = long_trained(varied_scene, tmp_path, Exposure(kind, varied_scene.train))
    light = light_of(trainer.gaussians)
    assert light is not None
    measured = light.gains()
    found = np.log(np.array([measured[name] for name in gains]))
    want = np.log(np.array([*gains.values()]))
    # a common factor may be the scene's as well
    brightness = [x.mean(1) - x.mean() for x in (found, want)]
    # of six numbers; vignetting and colours of PPISP take some of it
    assert np.corrcoef(*brightness)[0, 1] > 0.8
    assert trainer.tracker.history["loss"][-1] < 0.8 * plain_loss
    assert (tmp_path / "point_cloud/iteration_300" / FILE).is_file()


@pytest.mark.parametrize("kind", ["affine", "ppisp"])
@pytest.mark.parametrize("batch", [1, 3])
def test_captured_steps_are_those_taken_in_parts(
    kind: Kind, batch: int, scene: Scene, tmp_path: Path
) -> None:
    def strategies() -> list[Strategy]:
        return [DENSIFY.build(), MASKS.build(densify_until=24), Exposure(kind, scene.train)]

    run = {"batch": batch, "iterations": batch * 32, "random_background": True}
    parts = make(scene, tmp_path / "parts", *strategies(), **run)
    parts.fit()
    whole = make(scene, tmp_path / "whole", *strategies(), **run)
    graphs = captured(whole, lambda k: k % 2 == 1)
    whole.fit()
    assert graphs.plans.count("replay") > 1 and graphs.misfits > 1
    assert_same(whole, parts, ("n_gaussians",) if batch > 1 else HISTORY)
    rows = light_rows(whole)
    assert (rows - rows[:1]).abs().max() > 1e-4  # each image has its own


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_resumes_exactly(method: str, scene: Scene, tmp_path: Path) -> None:
    settings = METHODS[method].preset(next(iter(METHODS[method].PRESETS))).scaled(24 / 30_000)

    def build(out: str, **options: object) -> Trainer:
        pruner = settings.build(densify_until=20)
        strategies = DENSIFY.build(), pruner, Exposure("ppisp", scene.train)
        return make(scene, tmp_path / out, *strategies, iterations=24, **options)

    whole = build("whole", checkpoint_iterations=(11,))
    whole.fit()
    start = load_checkpoint(tmp_path / "whole" / "chkpnt11.pth")
    resumed = build("resumed", start=start)
    resumed.fit()
    assert state_of(resumed).keys() == state_of(whole).keys()
    for name, x in state_of(whole).items():
        assert torch.equal(state_of(resumed)[name], x), name
    assert f"{NAME}.rows" in state_of(whole)


@pytest.mark.parametrize(
    "densifier",
    [MCMCConfig(budget="1.2x"), TamingConfig(budget="1.5x")],
    ids=["mcmc", "taming"],
)
def test_other_densifiers_know_it(
    densifier: MCMCConfig | TamingConfig, scene: Scene, tmp_path: Path
) -> None:
    often = {"densify_from_iter": 4, "densify_until_iter": 20, "densification_interval": 6}
    densifier = dataclasses.replace(densifier, **often)
    trainer = make(scene, tmp_path, densifier.build(), Exposure("affine", scene.train))
    trainer.fit()
    assert len(trainer.gaussians) != 80 and light_rows(trainer).isfinite().all()


def test_post_training_keeps_light_where_it_goes_on(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = {"iterations": 10, "checkpoint_iterations": (10,), "settings": {"exposure": "affine"}}
    trainer = make(scene, tmp_path / "out", Exposure("affine", scene.train), **run)
    trainer.fit()
    path, rows = tmp_path / "out" / "chkpnt10.pth", light_rows(trainer)
    caplog.clear()

    def start(exposure: str) -> dict:
        config = TrainConfig(
            tmp_path / "new",
            iterations=20,
            start_checkpoint=path,
            post_start=10,
            exposure=exposure,  # type: ignore[arg-type]
        )
        found = load_start(config, "3dgs", METHODS)
        assert found is not None
        return found

    assert torch.equal(start("affine")["shared"][f"{NAME}.rows"], rows)
    assert not caplog.text
    assert not start("none")["shared"] and "is not used" in caplog.text
    going_on = make(
        scene,
        tmp_path / "on",
        Exposure("affine", scene.train),
        start=finished(start("affine")),
        iterations=20,
    )
    assert torch.equal(light_rows(going_on), rows)


def test_evaluation_shows_training_views_in_their_light(scene: Scene, tmp_path: Path) -> None:
    trainer = make(scene, tmp_path, Exposure("affine", scene.train))
    before = trainer.evaluate(1)
    light_rows(trainer)[5] *= 0.2  # the one training view that is looked at
    after = trainer.evaluate(2)
    assert after["train"] < before["train"] - 3
    assert after["test"] == pytest.approx(before["test"], abs=2)


def test_it_needs_one_gpu(scene: Scene) -> None:
    assert not runs_on_ranks(Exposure("affine", scene.train))


def test_a_checkpoint_with_light_needs_the_flag(scene: Scene, tmp_path: Path) -> None:
    run = {"iterations": 6, "checkpoint_iterations": (4,)}
    make(scene, tmp_path / "out", Exposure("affine", scene.train), **run).fit()
    start = load_checkpoint(tmp_path / "out" / "chkpnt4.pth")
    with pytest.raises(SplatrimError, match=r"does not know \(light.rows\)"):
        make(scene, tmp_path / "new", start=start, iterations=6)


@pytest.mark.parametrize("rate", [affine_rate, ppisp_rate])
def test_rates_fall_and_are_larger_in_short_runs(rate: Callable[[OptimConfig, int], float]) -> None:
    long, short = OptimConfig(), OptimConfig().scaled(0.1)
    falling = [rate(long, step) for step in (600, 10_000, 30_000, 40_000)]
    assert falling[0] > falling[1] > falling[2] == falling[3] > 0
    assert rate(short, 3000) == pytest.approx(rate(long, 30_000) * 0.1 ** (-1 / 3))
    assert ppisp_rate(long, 1) < 0.05 * ppisp_rate(long, 500)
    assert affine_rate(long, 0) == pytest.approx(1e-3)
