"""Pictures by graphs over copies of a model, on a CPU where replaying is calling."""

from collections.abc import Iterator

import pytest
import torch

from gs.data.camera import resized_camera
from gs.data.loader import ImageLoader
from gs.data.scene import Scene
from gs.model.gaussians import Gaussians
from gs.training.captured_steps import Body, CudaRecorder, OwnStream
from gs.viewer.copied import MAX_GRAPHS
from gs.viewer.picture import Look, Masks, Show, Subject
from kernels import Capacity
from pruning import MaskGaussianConfig
from pruning.mask_gaussian import MaskGaussian
from tests.gs.graph_like import graph_like

__all__ = ["graph_like"]

ROOM = Capacity(1 << 14, 1 << 18)
GPU_ROOM = Capacity(1 << 17, 1 << 24)

pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder:
    """Stands in for one of CUDA graphs: counts captures and replays, and calls."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, body: Body) -> "Call":
        self.captures += 1
        return Call(self, body)


class Call:
    """A graph that calls what was captured."""

    def __init__(self, recorder: Recorder, body: Body) -> None:
        self._recorder, self._body = recorder, body

    def replay(self) -> None:
        self._recorder.replays += 1
        self._body()


class Shown:
    """A model under training, drawn eagerly and by graphs."""

    def __init__(self, scene: Scene, images: ImageLoader) -> None:
        pruning = MaskGaussianConfig(mask_from_iter=0).build(densify_until=0)
        assert isinstance(pruning, MaskGaussian)
        self.recorder, self.pruning, self.scene = Recorder(), pruning, scene
        self.grow(60)
        background = (0.2, 0.3, 0.4)
        eager, copied = (
            Subject(
                lambda: self.model,
                scene.train,
                images,
                background,
                strategies=[pruning],
                record=record,
            )
            for record in (None, self.recorder)
        )
        self.eager, self.copied = eager, copied
        self.at(1)

    def grow(self, n: int) -> None:
        """Give the model other tensors, of n Gaussians."""
        points = torch.linspace(-0.6, 0.6, 3 * n).reshape(n, 3)[:, [2, 0, 1]].contiguous()
        points = points + 0.2 * torch.sin(torch.arange(3.0 * n)).view(n, 3)
        colors = torch.rand(n, 3, generator=torch.Generator().manual_seed(n))
        self.model = Gaussians.from_points(points, colors, sh_degree=1)
        self.model.params["opacities"].data.fill_(2.0)
        self.pruning.setup(self.model, extent=1.0, iterations=100, seed=0)
        self.model.params["mask_logits"].data.fill_(0.0)  # half of them are drawn

    def at(self, step: int) -> None:
        """Go on to an iteration."""
        self.eager.step = self.copied.step = step

    def difference(self, look: Look, camera: int = 0) -> int:
        """Largest difference between both pictures, in 1/255."""
        view = self.scene.train[camera]
        a, b = (x.draw(view, look, ROOM).pixels.int() for x in (self.eager, self.copied))
        assert (a - a[0, 0]).abs().max() > 50, "nothing is to be seen"
        return int((a - b).abs().max())


@pytest.fixture
def shown(scene: Scene, graph_like: None) -> Iterator[Shown]:
    images = ImageLoader(scene.train)
    yield Shown(scene, images)
    images.close()


@pytest.mark.parametrize("show", ["colours", "Gaussians"])
@pytest.mark.parametrize("masks", ["sampled, as in training", "off"])
def test_replayed_pictures_are_those_drawn_eagerly(shown: Shown, show: Show, masks: Masks) -> None:
    look = Look(show, masks)
    for step in range(1, 6):
        shown.at(step)  # other masks
        assert shown.difference(look, camera=step % 2) == 0
    assert shown.recorder.captures == 1 and shown.recorder.replays == 4
    before = shown.copied.draw(shown.scene.train[0], look, ROOM).pixels.clone()
    shown.model.params["means"].data += 0.1
    after = shown.copied.draw(shown.scene.train[0], look, ROOM).pixels
    assert not torch.equal(before, after), "the copy is of now"


def test_a_graph_outlives_densification_and_pruning(shown: Shown) -> None:
    for n in (60, 61, 63, 20, 50):
        shown.grow(n)
        assert shown.difference(Look()) == 0
    assert shown.recorder.captures == 1 and shown.recorder.replays == 4
    shown.grow(65)  # more than the copy has rows
    assert shown.difference(Look()) == 0
    assert shown.recorder.captures == 2


def test_only_what_was_made_once_is_not_steady(shown: Shown) -> None:
    camera = shown.scene.train[0]
    steady = [shown.copied.draw(camera, Look(), ROOM).steady for _ in range(4)]
    assert steady == [False, False, True, True]
    assert not shown.copied.draw(camera, Look(), ROOM._replace(rows=1 << 15)).steady
    assert shown.eager.draw(camera, Look(), ROOM).steady


def test_depth_and_unknown_counts_are_drawn_eagerly(shown: Shown) -> None:
    for _ in range(3):
        shown.copied.draw(shown.scene.train[0], Look("depth"), ROOM)
        shown.copied.draw(shown.scene.train[0], Look())
    assert shown.recorder.captures == 0


def test_where_capturing_fails_pictures_are_drawn_eagerly(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: Recorder, body: Body) -> Call:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Recorder, "__call__", fails)
    for _ in range(4):
        assert shown.difference(Look()) == 0
    assert caplog.text.count("drawn without graphs") == 1


def test_few_graphs_are_kept(shown: Shown) -> None:
    camera = shown.scene.train[0]
    rooms = [ROOM._replace(rows=ROOM.rows + k) for k in range(MAX_GRAPHS + 2)]
    for room in (ROOM, *rooms, *rooms[-MAX_GRAPHS:]):
        shown.copied.draw(camera, Look(), room)
    assert shown.recorder.captures == len(rooms)
    shown.copied.draw(camera, Look(), rooms[0])
    assert shown.recorder.captures == len(rooms) + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs of CUDA need a GPU")
def test_graphs_of_a_gpu_draw_what_is_drawn_eagerly(scene: Scene) -> None:
    device = torch.device("cuda")
    images = ImageLoader(scene.train, device=device)
    generator = torch.Generator().manual_seed(0)
    sizes = (30_000, 31_001, 90_000, 20_000, 20_001, 20_002)
    with OwnStream(device).current():
        models = [
            Gaussians.from_points(
                torch.randn(n, 3, generator=generator),
                torch.rand(n, 3, generator=generator),
                device=device,
            )
            for n in sizes
        ]
        pruning = MaskGaussianConfig(mask_from_iter=0).build(densify_until=0)
        model = models[0]
        eager, copied = (
            Subject(
                lambda: model,
                scene.train,
                images,
                (0.0, 0.0, 0.0),
                strategies=[pruning],
                record=record,
            )
            for record in (None, CudaRecorder())
        )
        camera = resized_camera(scene.train[0], 640, 480)
        for step, model in enumerate(models, 1):
            pruning.setup(model, extent=1.0, iterations=100, seed=0)
            eager.step = copied.step = step
            for show in ("colours", "Gaussians"):
                look = Look(show)
                a, b = (x.draw(camera, look, GPU_ROOM) for x in (eager, copied))
                assert a.counts is not None and b.counts is not None
                assert torch.equal(a.counts, b.counts)
                # equal depths may be blended in another order
                assert (a.pixels.int() - b.pixels.int()).abs().float().mean() < 0.01
                # the first warms up, the second captures, the third has grown beyond the copy
                assert b.steady == (step > 3)
    images.close()
