"""Published settings: of large scenes, one table (`--scene_preset NAME`), and of Momentum-GS.

From Momentum-GS (Fan et al., ICCV 2025) and the training scripts of its authors: the box that
becomes the inner half of the grid, in the coordinates of the scene's files, the grid's cells, sigma
of the block weights, weight of the consistency loss, and the size of images. The coordinates are
those of the published reconstructions: another one of the same photographs has others. The share
above which a camera belongs to a block is their limit on 1 - SSIM of renderings without it.

docs/howto/large_scenes.md says how to lay out folders, and how to choose all this for other scenes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config import SceneConfig
from ..errors import SplatrimError
from ..neural.momentum import MomentumConfig
from .config import BlocksConfig
from .partition import PartitionConfig

Box = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class ScenePreset:
    """What is published for one scene."""

    aabb: Box
    """x0 y0 z0 x1 y1 z1."""
    block_dims: tuple[int, int, int]
    """Cells along x, y, z. The vertical axis has one."""
    camera_share: float
    sigma: float
    """dB."""
    lambda_consistency: float
    images: str | None = None
    """Folder of the images; None is the scene's own."""
    resolution: int = 1
    """As `-r`."""

    def partition(self) -> PartitionConfig:
        """How it is cut."""
        return PartitionConfig(**self.partition_settings)

    @property
    def partition_settings(self) -> dict[str, Any]:
        """Fields of a PartitionConfig."""
        return {
            "partition": "grid",
            "block_dims": self.block_dims,
            "aabb": self.aabb,
            "camera_share": self.camera_share,
        }

    @property
    def momentum_settings(self) -> dict[str, Any]:
        """Fields of a MomentumConfig."""
        return {"sigma": self.sigma, "lambda_consistency": self.lambda_consistency}

    @property
    def scene_settings(self) -> dict[str, Any]:
        """Fields of a SceneConfig."""
        return {"images": self.images, "resolution": self.resolution, "eval": True}


PRESETS: dict[str, ScenePreset] = {
    "building": ScenePreset((-140, -100, 0, -10, 900, 250), (2, 1, 4), 0.03, 9.0, 50.0, "images_4"),
    "rubble": ScenePreset((-50, -100, -135, 50, 300, -5), (2, 1, 4), 0.05, 12.0, 100.0, "images_4"),
    "residence": ScenePreset(
        (-25, -200, -270, 175, 200, 60), (2, 1, 4), 0.03, 10.0, 50.0, "images_4"
    ),
    "sciart": ScenePreset(
        (-110, -500, -205, 55, 100, 90), (2, 1, 4), 0.03, 13.0, 100.0, "images_4"
    ),
    "matrixcity": ScenePreset((-3.5, -4, -10, 4.5, 2, 10), (2, 4, 1), 0.05, 9.0, 50.0),
}


def find_preset(name: str) -> ScenePreset:
    """The settings of a scene. Raises SplatrimError where there are none of that name."""
    if name not in PRESETS:
        raise SplatrimError(f"--scene_preset {name}: choose {', '.join(PRESETS)}")
    return PRESETS[name]


MOMENTUM_ITERATIONS = 60_000
VOXEL_SIZE = 1e-4
GROWTH: dict[str, Any] = {
    "densify_from_iter": 300,
    "densify_until_iter": 30_000,
    "densification_interval": 25,
    "statistics_from_iter": 500,
    "update_init_factor": 128.0,
}
"""Of a GrowthConfig; the others are those of Scaffold-GS."""
BLOCKS: dict[str, Any] = {
    "block_interval": 500,
    "block_steps": "all",
    "surroundings": "none",
    "block_init": "whole",
    "waves": "one",
}
"""Of a BlocksConfig: all blocks at once, each alone and with all points."""
MOMENTUM: dict[str, Any] = {"weighted": "loss", "freeze_decoder": 0.0, "decoder_adam": "per_slot"}
"""Of a MomentumConfig; the others are its defaults."""


def large_scene(
    scene: SceneConfig, preset: str | None, *, as_published: bool
) -> tuple[SceneConfig, BlocksConfig, MomentumConfig]:
    """The default settings of a run in blocks.

    Args:
        scene: As it is without a preset.
        preset: A name in the table above, or None.
        as_published: Whether blocks are trained as Momentum-GS published it (--recipe momentum).

    Raises:
        SplatrimError: there is no such preset.
    """
    blocks: dict[str, Any] = dict(BLOCKS) if as_published else {}
    momentum: dict[str, Any] = dict(MOMENTUM) if as_published else {}
    if preset is not None:
        found = find_preset(preset)
        scene = dataclasses.replace(scene, **found.scene_settings)
        blocks |= found.partition_settings
        momentum |= found.momentum_settings
    return scene, BlocksConfig(**blocks), MomentumConfig(**momentum)


def with_blocks(given: dict[str, Any], args: Sequence[str], plain: str) -> dict[str, Any]:
    """What else follows where flags ask for blocks of neural Gaussians.

    Args:
        given: Flags that others follow from, by name.
        args: The whole command line.
        plain: The method that prunes nothing, which is the default there.
    """
    preset = given.get("scene_preset")
    if preset is not None or given.get("recipe") == "momentum":
        given = {"representation": "neural", **given}
    words = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in args}
    in_blocks = preset is not None or bool(words & {"blocks", "block_dims"})
    if in_blocks and given.get("representation") == "neural" and "config" not in given:
        given = {"method": plain, **given}
    return given
