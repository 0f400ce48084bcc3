"""Steps on images with masks, and over random backgrounds: in parts and as graphs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gs.data.camera import Camera
from gs.data.loader import ImageLoader
from gs.data.scene import Scene
from gs.densification.taming import TamingConfig, saliency
from gs.errors import SplatrimError
from gs.losses import compared
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


def repainted(scene: Scene, folder: Path, hidden: int, *, alpha: int | None = None) -> Scene:
    """The scene with a block of value `hidden` in each image, and a mask over it, or alpha."""
    folder.mkdir()

    def painted(camera: Camera, k: int) -> Camera:
        assert camera.image_path is not None
        pixels = np.array(Image.open(camera.image_path).convert("RGB"))
        mask = np.full(pixels.shape[:2], 255, np.uint8)
        mask[5:17, 4 + k : 20 + k] = 0 if alpha is None else alpha
        pixels[5:17, 4 + k : 20 + k] = hidden
        path, over = folder / f"{k}.png", folder / f"mask_{k}.png"
        if alpha is not None:
            pixels = np.concatenate([pixels, mask[..., None]], axis=2)
        Image.fromarray(pixels).save(path)
        Image.fromarray(mask).save(over)
        return dataclasses.replace(
            camera, image_path=path, mask_path=over if alpha is None else None
        )

    train = [painted(camera, k) for k, camera in enumerate(scene.train)]
    test = [painted(camera, k + len(train)) for k, camera in enumerate(scene.test)]
    return dataclasses.replace(scene, train=train, test=test)


def test_what_masks_hide_changes_no_step(scene: Scene, tmp_path: Path) -> None:
    runs = []
    for hidden in (10, 240):
        painted = repainted(scene, tmp_path / f"images_{hidden}", hidden)
        growing = {"densify_from_iter": 4, "densify_until_iter": 20, "budget": "1.5x"}
        densifier = TamingConfig(densification_interval=6, **growing)
        runs.append(make(painted, tmp_path / f"out_{hidden}", densifier.build()))
        runs[-1].fit()
    assert_same(*runs)
    assert runs[0].evaluate(40) == runs[1].evaluate(40)


def test_captured_steps_have_masks(scene: Scene, tmp_path: Path) -> None:
    painted = repainted(scene, tmp_path / "images", 90)
    strategies = lambda: (DENSIFY.build(), MASKS.build(densify_until=24))  # noqa: E731
    parts = make(painted, tmp_path / "parts", *strategies())
    parts.fit()
    whole = make(painted, tmp_path / "whole", *strategies())
    graphs = captured(whole)
    whole.fit()
    assert graphs.plans.count("replay") > 1
    assert_same(whole, parts, HISTORY)


@pytest.mark.parametrize("graphs", [False, True])
def test_transparent_images_are_over_the_same_random_background(
    scene: Scene, tmp_path: Path, graphs: bool
) -> None:
    """A model that shows nothing where alpha is 0 has no loss there, whatever the colour."""
    clear = repainted(scene, tmp_path / "images", 200, alpha=0)
    trainer = make(clear, tmp_path / "out", random_background=True, iterations=8)
    if graphs:
        captured(trainer)
    trainer.gaussians.params["opacities"].data.fill_(-30.0)  # nothing is drawn
    seen = []
    for step in range(1, 6):
        (k,) = indices = [trainer.sampler.next()]
        context = trainer.stepper.forward_backward(step, indices)
        assert context.inputs is not None
        seen.append(background := context.inputs.background)
        image = trainer.images.targets[k]
        assert (image[6, 5 + k, 3] == 0) and (image[0, 0, 3] == 255)
        _, (v_colors,) = compared([context.out.colors.detach()], [image], 0.0, background)
        assert not v_colors[5:17, 4 + k : 20 + k].any() and v_colors[:4].any()
        trainer.optimizer.zero_grad()
    assert len({tuple(x.tolist()) for x in seen}) == 5
    # for whoever looks on, they are over black as ever
    assert trainer.images[0].shape[2] == 3 and not trainer.images[0][6, 5].any()
    trainer.fit()
    assert all(torch.isfinite(x).all() for x in state_of(trainer).values())


def test_opaque_images_need_no_second_copy(scene: Scene, tmp_path: Path) -> None:
    trainer = make(scene, tmp_path / "out", random_background=True)
    assert trainer.images.targets is trainer.images


def test_masks_of_transparent_images_do_not_go_with_random_backgrounds(
    scene: Scene, tmp_path: Path
) -> None:
    clear = repainted(scene, tmp_path / "images", 200, alpha=30)
    masked = dataclasses.replace(clear.train[0], mask_path=tmp_path / "images" / "mask_0.png")
    with ImageLoader([masked]) as loader, pytest.raises(SplatrimError, match="--masks none"):
        loader.check(keep_alpha=True)


def test_saliency_is_nothing_where_pixels_do_not_count() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(9, 8, 3, generator=g), torch.rand(9, 8, 3, generator=g)
    counted = torch.rand(9, 8, generator=g) < 0.5
    got = saliency(a, b, counted)
    assert not got[~counted].any() and got[counted].min() > 0
    torch.testing.assert_close(saliency(a, b, torch.ones_like(counted)), saliency(a, b))
