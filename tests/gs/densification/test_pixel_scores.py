"""Scores by pixels, against weights found pixel by pixel; and a densifier that draws by them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gs.config import TrainConfig
from gs.data.loader import ImageLoader
from gs.data.scene import Scene
from gs.densification.error import ErrorConfig
from gs.densification.pixel_scores import PixelScore, edge_strength, minmax, pixel_scores
from gs.model.gaussians import Gaussians
from gs.model.renderer import render
from gs.training.trainer import Trainer
from kernels import rasterization

pytestmark = pytest.mark.usefixtures("one_thread")


def weights(gaussians: Gaussians, scene: Scene, view: int) -> Tensor:  # [H, W, N]
    """Blending weights: the image of Gaussians that each have a channel of their own."""
    camera, params = scene.train[view], gaussians.params
    with torch.no_grad():
        image, _, _ = rasterization(
            params["means"],
            params["quats"],
            gaussians.get_scales(),
            gaussians.get_opacities(),
            torch.eye(len(gaussians)),
            camera.viewmat[None],
            camera.K[None],
            camera.width,
            camera.height,
            near_plane=camera.near,
        )
    return image[0]


def test_edges() -> None:
    image = torch.zeros(5, 6, 3)
    image[2, 3] = torch.tensor([1.0, 0.0, 0.0])
    image[0, 0] = torch.tensor([0.5, 0.5, 0.5])
    got = edge_strength(image)
    # grey 76 in the middle, 8 times; 128 in a corner, whose own copies lie around it
    strengths = {(2, 3): min(8 * 76, 255), (0, 0): min(5 * 128, 255)}
    for place, strength in strengths.items():
        assert got[place].item() == pytest.approx(strength / 255)
    assert int((got > 0).sum()) == 2
    faint = image * 0.05  # grey 4: below the clip, and relative to the strongest
    assert edge_strength(faint).max() == 1 and edge_strength(faint)[0, 0] < 1
    assert not edge_strength(torch.full((4, 4, 3), 0.7)).any()


def test_minmax() -> None:
    assert minmax(torch.tensor([3.0, 1.0, 2.0])).tolist() == [1.0, 0.0, 0.5]
    assert minmax(torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["edge", "error"])
def test_scores_pixel_by_pixel(scene: Scene, kind: PixelScore) -> None:
    gaussians = Gaussians.from_points(scene.points, scene.colors, sh_degree=0)
    gaussians.params["opacities"].data.fill_(math.log(0.4 / 0.6))
    want = np.zeros(len(gaussians))
    with ImageLoader(scene.train) as images:
        for view in (4, 1):
            w = weights(gaussians, scene, view).double().numpy()
            truth = images[view].double() / 255
            if kind == "edge":
                values = edge_strength(truth.float()).double().numpy()
                sums = (w * values[..., None]).sum((0, 1))
                want += (sums - sums.min()) / (sums.max() - sums.min()) / 2
            else:
                with torch.no_grad():
                    colors = render(gaussians, scene.train[view], background=torch.ones(3)).colors
                error = (colors - truth).abs().mean(-1).numpy()
                sums = (w * (error / error.mean())[..., None]).sum((0, 1))
                want = np.maximum(want, sums)
        got = pixel_scores(gaussians, scene.train, images, [4, 1], kind, white_background=True)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-3, atol=1e-4 * want.max())
    assert want.max() > 0.4


@pytest.mark.parametrize("score", ["edge", "error"])
def test_a_run_draws_by_them(scene: Scene, tmp_path: Path, score: str) -> None:
    config = ErrorConfig(
        densify_from_iter=3,
        densify_until_iter=12,
        densification_interval=4,
        densify_grad_threshold=1e-6,
        budget="1.4x",
        first_prune_iter=0,
        split_score=score,  # type: ignore[arg-type]
        score_views=2,
    )
    train = TrainConfig(tmp_path, iterations=14, quiet=True, device="cpu")
    trainer = Trainer(train, scene, strategies=[config.build()])
    for step in range(1, 14):
        trainer.train_step(step)
    assert len(trainer.gaussians) == int(1.4 * 80)
