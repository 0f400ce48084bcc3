"""Presets: each parses, and cuts a scene that fills its box and more into its blocks."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from gs import cli, program
from gs.blocks.neural_trainer import NeuralBlockTrainer
from gs.blocks.partition import PartitionConfig, make_partition
from gs.blocks.presets import PRESETS, find_preset
from gs.config import SceneConfig
from gs.data.camera import Camera
from gs.data.scene import Scene
from gs.errors import SplatrimError
from gs.neural.momentum import MomentumConfig
from pruning import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 10  # views along each side of the ground
N_POINTS = 500


def survey(name: str) -> Scene:
    """Views straight down on a plane that is three times as wide as the preset's box."""
    preset = PRESETS[name]
    low, high = torch.tensor(preset.aabb).view(2, 3)
    vertical = preset.block_dims.index(1)
    up = torch.eye(3)[vertical]
    flat = [axis for axis in range(3) if axis != vertical]
    middle, half = (low + high) / 2, 1.5 * (high - low)
    g = torch.Generator().manual_seed(0)
    points = middle + (2 * torch.rand(N_POINTS, 3, generator=g) - 1) * half
    points[:, vertical] = middle[vertical]
    steps = torch.linspace(-0.95, 0.95, SIDE)
    cell = 2.0 * float(half[flat].max()) / SIDE
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
        K = torch.tensor([[10.0, 0, 8], [0, 10.0, 6], [0, 0, 1]])
        cameras.append(Camera(f"{k:03d}.png", None, 16, 12, viewmat, K, 16, 12))
    return Scene(cameras, [], points, torch.rand(N_POINTS, 3), cell * SIDE, Path(), "colmap")


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


def write_colmap(folder: Path, scene: Scene, images: str) -> None:
    """Write a scene as COLMAP's text files, with grey images."""
    model = folder / "sparse" / "0"
    for path in (model, folder / images):
        path.mkdir(parents=True)
    first = scene.train[0]
    lens = (first.K[0, 0], first.K[1, 1], first.K[0, 2], first.K[1, 2])
    numbers = " ".join(f"{float(x):g}" for x in lens)
    (model / "cameras.txt").write_text(f"1 PINHOLE {first.width} {first.height} {numbers}\n")
    lines = []
    for k, camera in enumerate(scene.train):
        rotation, t = camera.viewmat[:3, :3].double(), camera.viewmat[:3, 3].tolist()
        pose = " ".join(map(repr, [*quaternion(rotation), *t]))
        lines += [f"{k + 1} {pose} 1 {camera.image_name}", ""]
        grey = Image.new("RGB", (camera.width, camera.height), (90 + k % 50, 100, 110))
        grey.save(folder / images / camera.image_name)
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    rows = [" ".join(map(repr, x)) for x in scene.points.tolist()]
    text = "".join(f"{k + 1} {row} 120 110 100 0.5\n" for k, row in enumerate(rows))
    (model / "points3D.txt").write_text(text)
    names = [camera.image_name for camera in scene.train[::13]]
    (folder / "test.txt").write_text("\n".join(names))


def quaternion(rotation: torch.Tensor) -> list[float]:  # [3, 3] -> w x y z
    """Of a rotation: the eigenvector of largest eigenvalue of Bar-Itzhack's matrix (2000)."""
    r = rotation
    matrix = torch.empty(4, 4, dtype=torch.float64)
    matrix[0, 0] = r.trace()
    matrix[0, 1:] = matrix[1:, 0] = torch.stack(
        [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]]
    )
    matrix[1:, 1:] = r + r.T - r.trace() * torch.eye(3)
    return torch.linalg.eigh(matrix / 3).eigenvectors[:, -1].tolist()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_a_scene_laid_out_as_the_page_says(name: str, tmp_path: Path) -> None:
    preset, out = find_preset(name), tmp_path / "out"
    write_colmap(tmp_path / "scene", survey(name), preset.images or "images")
    words = ["-s", str(tmp_path / "scene"), "-m", str(out), "--scene_preset", name]
    words += ["--iterations", "20", "--offsets", "3", "--feature_dim", "16"]
    words += ["--device", "cpu", "--quiet"]
    config = cli.parse(words, METHODS, "")
    assert config.momentum.sigma == preset.sigma and config.blocks.aabb == preset.aabb
    assert config.choice.method == "3dgs" and config.choice.representation == "neural"
    trainer = program.build_trainer(config, METHODS)
    assert isinstance(trainer, NeuralBlockTrainer)
    assert len(trainer.scene.test) == 8 and trainer.partition.n_blocks == 8
    assert trainer.fit() is None
    settings = json.loads((out / "config.json").read_text())
    assert settings["scene_preset"] == name and settings["momentum"]["sigma"] == preset.sigma
    history = json.loads((out / "history.json").read_text())
    steps = [block["steps"] for block in history["blocks"]]
    assert len(steps) == 8 and min(steps) >= 1 and sum(steps) >= 20
    again = cli.parse(["--config", str(out), "-s", "x", "-m", "y"], METHODS, "")
    assert (again.blocks, again.momentum, again.scene.images) == (
        config.blocks,
        config.momentum,
        config.scene.images,
    )


def test_the_published_recipe_is_that_of_momentum_gs() -> None:
    words = ["-s", "x", "-m", "y", "--recipe", "momentum", "--scene_preset", "rubble"]
    config = cli.parse(words, METHODS, "")
    assert config.train.iterations == 60_000 and config.optim.position_lr_max_steps == 30_000
    growth = config.densify
    assert (growth.densification_interval, growth.densify_until_iter) == (25, 30_000)
    sizes = growth.cell_sizes(config.neural.voxel_size)
    assert sizes == pytest.approx([0.0128, 0.0032, 0.0008])
    blocks, momentum = config.blocks, config.momentum
    assert (blocks.surroundings, blocks.block_init, blocks.waves) == ("none", "whole", "one")
    assert (momentum.freeze_decoder, momentum.decoder_adam) == (0.0, "per_slot")
    assert (momentum.sigma, momentum.lambda_consistency, momentum.momentum) == (12.0, 100.0, 0.9)
    plain = cli.parse(["-s", "x", "-m", "y", "--representation", "neural"], METHODS, "")
    assert plain.momentum == MomentumConfig() and plain.blocks.n_blocks == 1
    short = cli.parse([*words, "--iterations", "600", "--blocks", "1"], METHODS, "")
    assert short.densify.densify_until_iter == 300
