"""Cameras and images of a stage: sizes, intrinsics, means over areas, and runs that use them."""

from pathlib import Path

import pytest
import torch

from gs.config import TrainConfig
from gs.data.loader import ImageLoader
from gs.data.scene import Scene
from gs.model.view import pack_view, unpack_view
from gs.training import pictures
from gs.training.checkpoint import load_checkpoint
from gs.training.pictures import Pictures, reduced_camera, reduced_image
from gs.training.strategy import StepContext, Strategy
from gs.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_reduced_camera_sees_the_same(scene: Scene) -> None:
    camera = scene.train[0]  # 40 x 30
    half = reduced_camera(camera, 4)
    assert (half.width, half.height) == (10, 8)
    corners = torch.tensor([[-0.4, -0.3, 1.0], [0.1, 0.2, 1.0]])
    full = (corners @ camera.K.T)[:, :2] / torch.tensor([40.0, 30.0])
    small = (corners @ half.K.T)[:, :2] / torch.tensor([10.0, 8.0])
    torch.testing.assert_close(small, full)
    assert reduced_camera(camera, 1) is camera
    assert (reduced_camera(camera, 1000).width, reduced_camera(camera, 1000).height) == (1, 1)


def test_a_reduced_image_has_means_over_areas() -> None:
    image = (torch.rand(6, 8, 3, generator=torch.Generator().manual_seed(0)) * 255).byte()
    want = image.double().view(3, 2, 4, 2, 3).mean((1, 3)).round()
    got = reduced_image(image, 4, 3)
    assert got.dtype == torch.uint8 and got.is_contiguous()
    # the mean in float32 may round a half to the other side
    assert (got.double() - want).abs().max() <= 1 and (got.double() == want).float().mean() > 0.9
    assert reduced_image(image, 5, 4).shape == (4, 5, 3)


def test_images_views_and_cameras_go_together(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ImageLoader(scene.train) as images:
        shown = Pictures(images)
        assert shown[1] is images[1] and shown.cameras is images.cameras
        shown.reduce(2)
        assert shown[1].shape == (15, 20, 3) and shown[1] is shown[1]
        assert (shown.cameras[1].width, shown.cameras[1].height) == (20, 15)
        view = unpack_view(torch.from_numpy(shown.views[1]), 20, 15, 0.2)
        assert torch.equal(view.Ks[0], shown.cameras[1].K) and view.exposure.tolist() == [1]
        shown.reduce(1)
        assert shown[1] is images[1]
        assert (shown.views[1] == pack_view(scene.train[1], 1)).all()
        monkeypatch.setattr(pictures, "MAX_BYTES", 0)
        shown.reduce(2)
        assert torch.equal(shown[1], shown[1]) and shown[1] is not shown[1]


class Sizes(Strategy):
    """Notes the step, and the sizes of what is rendered."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int, int]] = []

    def after_backward(self, step: int, ctx: StepContext) -> None:
        info = ctx.out.info
        assert (ctx.camera.width, ctx.camera.height) == (info["width"], info["height"])
        self.seen.append((step, self.n_images, info["width"], info["height"]))


RUN = {"resolution_schedule": "0:4,0.2:2,0.5:1", "multi_view_updates": "0.5:3,0.9:4"}


def make(scene: Scene, out: Path, notes: Strategy, start: object = None, **more: object) -> Trainer:
    config = TrainConfig(out, iterations=40, quiet=True, device="cpu", **RUN, **more)  # type: ignore[arg-type]
    return Trainer(config, scene, strategies=[notes], start=start)  # type: ignore[arg-type]


def test_a_run_goes_through_its_stages_and_resumes(scene: Scene, tmp_path: Path) -> None:
    notes = Sizes()
    whole = make(scene, tmp_path / "whole", notes, checkpoint_iterations=(25,))
    whole.fit()
    small = [(step, 1, 10, 8) for step in range(1, 9)]
    half = [(step, 1, 20, 15) for step in range(9, 21)]
    full = [(step, 3, 40, 30) for step in range(23, 39, 3)] + [(40, 2, 40, 30)]
    assert notes.seen == small + half + full
    # the test views are evaluated at their own size
    assert whole.tracker.history["test"][-1]["step"] == 40
    start = load_checkpoint(tmp_path / "whole" / "chkpnt26.pth")
    resumed = make(scene, tmp_path / "resumed", again := Sizes(), start)
    resumed.fit()
    assert again.seen == notes.seen[-5:]
    for name, x in whole.gaussians.params.items():
        assert torch.equal(resumed.gaussians.params[name], x), name
