"""The live viewer: pictures, what they leave alone, and a browser that looks on."""

import dataclasses
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gs.config import TrainConfig
from gs.data.camera import Camera
from gs.data.demo import write_demo_scene
from gs.data.loader import ImageLoader
from gs.data.scene import Scene, load_scene
from gs.errors import SplatrimError
from gs.evaluation.views import quantize
from gs.model.gaussians import Gaussians
from gs.model.renderer import render
from gs.training.trainer import Trainer
from gs.viewer import live, window
from gs.viewer.live import LiveViewer, serve
from gs.viewer.pace import Pace
from gs.viewer.picture import Look, Subject, beside, depth_colors, fitted
from gs.viewer.studio import MAX_PLACES, Landing, Studio
from pruning import MaskGaussianConfig

COLORS = 200  # the page without a picture has fewer

pytestmark = pytest.mark.usefixtures("one_thread")


class Guest:
    """Somebody with a camera of the scene."""

    def __init__(self, camera: Camera) -> None:
        self.own, self.waits, self.moving, self.drawn_at = camera, True, False, 0.0
        self.pictures: list[NDArray[np.uint8]] = []

    def size(self, scale: float) -> tuple[int, int]:
        return round(self.own.width * scale), round(self.own.height * scale)

    def camera(self, width: int, height: int, near: float) -> Camera:
        return fitted(self.own, width, height)

    def show(self, pixels: NDArray[np.uint8]) -> None:
        self.pictures.append(pixels.copy())


class Panel:
    """A window without a server."""

    def __init__(self, *guests: Guest) -> None:
        self.guests, self.changed = guests, threading.Event()
        self.look, self.rate, self.paused, self.chosen = Look(), 10.0, False, None
        self.lines: list[str] = []

    def visitors(self) -> tuple[Guest, ...]:
        return self.guests

    def offer(self, cameras: list[Camera], points: NDArray[np.float64]) -> None:
        assert points.shape[1] == 3

    def tell(self, text: str) -> None:
        self.lines.append(text)

    def close(self) -> None:
        pass


def trainer(scene: Scene, out: Path, *observers: Any, iterations: int = 20) -> Trainer:
    pruning = MaskGaussianConfig(mask_from_iter=0)
    return Trainer(
        TrainConfig(out, iterations=iterations, quiet=True, device="cpu"),
        scene,
        strategies=[pruning.build(densify_until=0)],
        observers=observers,
    )


@pytest.fixture
def subject(scene: Scene) -> Iterator[Subject]:
    model = Gaussians.from_points(scene.points, scene.colors, sh_degree=0)
    model.params["opacities"].data.fill_(2.0)
    images = ImageLoader(scene.train)
    yield Subject(lambda: model, scene.train, images, (0.0, 0.0, 0.0))
    images.close()


def test_a_training_that_is_looked_at_ends_as_another(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = trainer(scene, tmp_path / "a")
    alone.fit()
    monkeypatch.setattr(live, "GLANCE", 0.0)
    monkeypatch.setattr(Pace, "due", lambda *_, **__: True)
    guest = Guest(scene.test[0])
    panel: Any = Panel(guest)
    viewer = LiveViewer(panel)
    looked_at = trainer(scene, tmp_path / "b", viewer)
    looked_at.fit()
    viewer.close()
    assert len(guest.pictures) >= 5
    assert "Iteration" in panel.lines[0]
    for name, x in alone.gaussians.to_tensors().items():
        assert torch.equal(x, looked_at.gaussians.to_tensors()[name]), name


def test_pictures_are_the_renderers_own(subject: Subject, scene: Scene) -> None:
    guest, look = Guest(scene.test[0]), Look()
    studio = Studio(subject, Pace())
    studio.draw(guest, look, None, scale=1.0)
    studio.close()
    want = render(subject.model(), scene.test[0], background=torch.zeros(3)).colors
    assert np.abs(guest.pictures[0].astype(int) - quantize(want).numpy().astype(int)).max() <= 1
    assert studio.pace.total > 0


def test_pictures_land_where_others_of_their_size_did() -> None:
    landing = Landing()
    images = [torch.full((k, 2, 3), k, dtype=torch.uint8) for k in range(1, MAX_PLACES + 1)]
    places = [landing.to_host(image) for image in images]
    for place, image in zip(places, images, strict=True):
        assert torch.equal(place, image)
        assert landing.to_host(image + 1).data_ptr() == place.data_ptr()
        assert torch.equal(place, image + 1)
    landing.to_host(torch.zeros(MAX_PLACES + 1, 2, 3))
    assert len(landing._places) == MAX_PLACES
    assert landing.to_host(images[1]).data_ptr() == places[1].data_ptr()


def test_depth_gaussians_and_a_view_beside_its_image(subject: Subject, scene: Scene) -> None:
    camera = scene.train[1]
    colors = subject.draw(camera, Look()).pixels
    depth = subject.draw(camera, Look(show="depth")).pixels
    small = subject.draw(camera, Look(show="Gaussians", size=0.1)).pixels
    large = subject.draw(camera, Look(show="Gaussians", size=1.0)).pixels
    assert len({colors.numpy().tobytes(), depth.numpy().tobytes(), small.numpy().tobytes()}) == 3
    lit = [int((x.float().sum(-1) > 0).sum()) for x in (small, large)]
    assert 0 < lit[0] < 0.7 * lit[1]
    guest = Guest(camera)
    studio = Studio(subject, Pace())
    studio.draw(guest, Look(), 1, scale=4.0)
    studio.close()
    width, height = 4 * camera.width, 4 * camera.height
    picture = torch.from_numpy(guest.pictures[0])
    assert picture.shape == (height, width, 3)
    half = picture[height // 4 : -height // 4]
    left, right = half[:, : width // 2], half[:, width // 2 :]
    truth = subject.images[1]
    doubled = truth.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(right, doubled) and not torch.equal(left, right)


def test_a_camera_without_an_image_is_shown_alone(scene: Scene, subject: Subject) -> None:
    bare = dataclasses.replace(scene.train[0], image_path=None)
    subject.cameras = [bare]
    guest = Guest(bare)
    studio = Studio(subject, Pace())
    studio.draw(guest, Look(), 0, scale=2.0)
    studio.close()
    assert guest.pictures[0].shape[:2] == (2 * bare.height, 2 * bare.width)


def test_near_things_are_brighter_than_far_ones() -> None:
    depths, alphas = torch.tensor([[[1.0], [4.0], [9.0]]]), torch.tensor([[[1.0], [1.0], [0.0]]])
    sums = depth_colors(depths, alphas).float().sum(-1)[0].tolist()
    assert sums[0] > sums[1] > sums[2] == 0


def test_two_images_of_other_sizes_stand_side_by_side() -> None:
    left, right = torch.full((4, 6, 3), 10).byte(), torch.full((8, 12, 3), 200).byte()
    canvas = beside(left, right, 20, 8)
    assert canvas.shape == (8, 20, 3)
    assert int((canvas == 10).all(-1).sum()) == int((canvas == 200).all(-1).sum()) == 24


def test_masks_are_sampled_or_kept(scene: Scene, tmp_path: Path) -> None:
    run = trainer(scene, tmp_path / "out", iterations=3)
    run.fit()
    logits = run.gaussians.params["mask_logits"].data
    logits[:40] = torch.tensor([-9.0, 9.0])  # never sampled
    logits[40:] = torch.tensor([9.0, -9.0])  # always
    subject = Subject(
        lambda: run.gaussians,
        scene.train,
        run.images,
        (0.0, 0.0, 0.0),
        strategies=run.strategies,
        exported=run.exported,
    )
    subject.step = 3
    camera = scene.train[0]
    sampled = subject.draw(camera, Look()).pixels
    kept = subject.draw(camera, Look(masks="kept, as saved")).pixels
    everything = subject.draw(camera, Look(masks="off")).pixels
    assert (sampled.int() - kept.int()).abs().max() <= 1
    assert (sampled.int() - everything.int()).abs().max() > 20


def test_a_pause_is_no_training_time_and_ends_when_asked_to_stop(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "GLANCE", 0.0)
    panel: Any = Panel(Guest(scene.test[0]))
    viewer = LiveViewer(panel)
    run = trainer(scene, tmp_path / "out", viewer)
    panel.paused = True
    timer = threading.Timer(1.5, lambda: setattr(panel, "paused", False))
    timer.start()
    started = time.perf_counter()
    run.fit()
    took = time.perf_counter() - started
    assert took > 1.5 and run.tracker.seconds < took - 1.0
    assert any("Paused" in line for line in panel.lines)
    panel.paused = True
    stopping = trainer(scene, tmp_path / "stopped", viewer)
    threading.Timer(0.5, lambda: setattr(stopping.stepper, "wants_stop", True)).start()
    assert stopping.fit() is not None
    viewer.close()


class Quick(Pace):
    """As if every picture took a millisecond, however busy the machine is."""

    def spent(
        self, cost: float, *, moved: bool, scale: float | None = None, steady: bool = True
    ) -> None:
        super().spent(1e-3, moved=moved, scale=scale, steady=steady)


def test_who_has_seen_everything_gets_no_picture_of_what_rests(
    subject: Subject, scene: Scene
) -> None:
    guest = Guest(scene.test[0])
    studio = Studio(subject, Quick())
    panel: Any = Panel(guest)
    for _ in range(10):
        serve(panel, studio, trains=False)
        while studio.is_busy:
            time.sleep(0.001)
    studio.close()
    sizes = [picture.shape[1] / scene.test[0].width for picture in guest.pictures]
    assert sizes == [0.25, 1.0], "a small one at once, then a sharp one"


def test_a_missing_viser_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with (
        pytest.raises(SplatrimError, match=r"pip install 'splatrim\[viewer\]'"),
        live.watching(True, "127.0.0.1", 0),
    ):
        pass


def test_quaternions_are_rotations() -> None:
    half = np.sqrt(0.5)
    turn = window.rotation(np.array([half, 0, 0, half]))
    assert np.allclose(turn @ [1, 0, 0], [0, 1, 0])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "scene"
    write_demo_scene(folder, views=9, width=48, height=36)
    return folder


@pytest.fixture
def training(demo: Path, tmp_path: Path, repo: Path) -> Iterator[str]:
    """The address of the viewer of a training that goes on and on."""
    pytest.importorskip("viser")
    command = [sys.executable, "train.py", "-s", str(demo), "-m", str(tmp_path / "out")]
    command += ["--iterations", "100000", "--viewer", "--viewer_port", "8931", "--device", "cpu"]
    command += ["--eval", "--densify_until_iter", "0", "--test_iterations", "100000"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command, cwd=repo, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        ends, address = time.monotonic() + 120, None
        while address is None:
            text = (tmp_path / "log").read_text()
            assert process.poll() is None and time.monotonic() < ends, text
            found = re.search(r"viewer: (http://\S+)", text)
            address = found and found[1]
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def test_a_browser_pauses_and_looks_around(browser: Any, training: str) -> None:
    browser.open(training, 800, 600)
    text = "document.body.innerText"
    browser.wait_for(f"/Iteration [1-9]/.test({text})")
    label = (
        "[...document.querySelectorAll('button')].find(b => /^(Pause|Go on)$/.test(b.innerText))"
    )
    browser.evaluate(f"{label}.click()")
    browser.wait_for(f"/Paused at iteration/.test({text}) && {label}.innerText === 'Go on'")
    at = browser.evaluate(f"{text}.match(/iteration ([\\d,]+)/)[1]")
    before = resting(browser)
    browser.drag([(300, 400), (360, 410), (430, 420)])
    ends = time.monotonic() + 60
    while difference(before, resting(browser)) < 4:
        assert time.monotonic() < ends, "the picture did not change"
    assert browser.evaluate(f"{text}.match(/iteration ([\\d,]+)/)[1]") == at
    browser.evaluate(f"{label}.click()")
    browser.wait_for(
        f"Number({text}.match(/Iteration ([\\d,]+)/)?.[1].replace(',', '')) > {at.replace(',', '')}"
    )


def resting(browser: Any) -> NDArray[np.uint8]:
    """The picture without the panel, once there is one and it no longer changes."""
    before = browser.screenshot()[100:, :450]
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        time.sleep(0.5)
        after = browser.screenshot()[100:, :450]
        colors = len(np.unique(after.reshape(-1, 3), axis=0))
        if difference(before, after) < 0.5 and colors > COLORS:
            return after
        before = after
    raise TimeoutError("the picture does not rest")


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def test_a_finished_model_is_shown(
    demo: Path, tmp_path: Path, browser: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("viser")
    scene = load_scene(demo, eval=True)
    run = Trainer(
        TrainConfig(tmp_path / "out", iterations=5, quiet=True, device="cpu"),
        scene,
        settings={"source_path": str(demo), "eval": True},
    )
    run.fit()
    stopped = threading.Event()
    caplog.set_level(logging.INFO, "splatrim")
    thread = threading.Thread(
        target=live.show_run, args=(tmp_path / "out",), kwargs={"port": 8951, "stopped": stopped}
    )
    thread.start()
    try:
        while "viewer: http" not in caplog.text:
            time.sleep(0.05)
        found = re.search(r"viewer: (http://\S+)", caplog.text)
        assert found is not None
        browser.open(found[1], 800, 600)
        browser.wait_for("/iteration 5 · [\\d,]+ Gaussians/.test(document.body.innerText)")
        resting(browser)
    finally:
        stopped.set()
        thread.join()
