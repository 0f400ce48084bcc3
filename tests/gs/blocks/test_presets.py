"""Presets: each parses, and cuts a scene that fills its box and more into its blocks."""

import math
from pathlib import Path

import pytest
import torch

from gs.blocks.partition import PartitionConfig, make_partition
from gs.blocks.presets import PRESETS, find_preset
from gs.config import SceneConfig
from gs.data.camera import Camera
from gs.data.scene import Scene
from gs.errors import SplatrimError
from gs.neural.momentum import MomentumConfig


def survey(name: str) -> Scene:
    """Views straight down on a plane that is three times as wide as the preset's box."""
    preset = PRESETS[name]
    low, high = torch.tensor(preset.aabb).view(2, 3)
    vertical = preset.block_dims.index(1)
    up = torch.eye(3)[vertical]
    flat = [axis for axis in range(3) if axis != vertical]
    middle, half = (low + high) / 2, 1.5 * (high - low)
    g = torch.Generator().manual_seed(0)
    points = middle + (2 * torch.rand(4000, 3, generator=g) - 1) * half
    points[:, vertical] = middle[vertical]
    steps = torch.linspace(-0.95, 0.95, 12)
    cell = 2.0 * float(half[flat].max()) / 12
    cameras = []
    for k, (a, b) in enumerate(torch.cartesian_prod(steps, steps).tolist()):
        centre = middle.clone()
        centre[flat[0]] += a * half[flat[0]]
        centre[flat[1]] += b * half[flat[1]]
        centre = centre + cell * up
        right = torch.zeros(3)
        right[flat[0]] = 1.0
        rotation = torch.stack([right, torch.linalg.cross(-up, right), -up])
        viewmat = torch.eye(4)
        viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ centre
        K = torch.tensor([[20.0, 0, 16], [0, 20.0, 12], [0, 0, 1]])
        cameras.append(Camera(f"{k:03d}.png", None, 32, 24, viewmat, K, 32, 24))
    return Scene(cameras, [], points, torch.rand(4000, 3), cell * 12, Path(), "colmap")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_cuts_a_scene_with_its_box(name: str) -> None:
    preset, scene = find_preset(name), survey(name)
    settings = preset.partition()
    partition = make_partition(scene, settings)
    assert partition.n_blocks == math.prod(preset.block_dims) == 8
    assert min(partition.n_points) > 0 and sum(partition.n_points) == len(scene.points)
    # the box is the inner half: of eight blocks those at both ends lie outside of it
    low, high = torch.tensor(preset.aabb).view(2, 3)
    g = torch.Generator().manual_seed(1)
    inside = low + torch.rand(2000, 3, generator=g) * (high - low)
    assert len(partition.owner(inside).unique()) == 4


def test_settings_of_presets_are_those_of_their_parts() -> None:
    for preset in PRESETS.values():
        MomentumConfig(**preset.momentum_settings)
        SceneConfig(Path("scene"), **preset.scene_settings)
        assert PartitionConfig(**preset.partition_settings).n_blocks == 8
    with pytest.raises(SplatrimError, match="--scene_preset campus: choose building, rubble"):
        find_preset("campus")
