"""`python -m gs.partition`: files, the table, and what it suggests."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from gs.blocks.budget import block_memory, most_gaussians, suggest_blocks
from gs.blocks.look import main
from gs.blocks.manifest import MANIFEST
from gs.blocks.partition import PartitionConfig, make_partition
from gs.blocks.partition_file import read_partition
from gs.data.demo import write_demo_scene
from gs.data.scene import Scene, load_scene
from gs.errors import SplatrimError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "scene"
    write_demo_scene(path, views=34, width=24, height=18)
    return path


@pytest.fixture(scope="module")
def scene(folder: Path) -> Scene:
    return load_scene(folder)


def test_it_writes_and_tells(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--blocks", "3", "--gaussians", "40000000", "--gpu_memory", "24"]
    with caplog.at_level(logging.INFO, "splatrim"):
        main(["-s", str(folder), "-m", str(tmp_path), *flags])
    partition = read_partition(tmp_path)
    assert (tmp_path / "partition.png").is_file() and partition.n_blocks == 3
    lines = [record.message for record in caplog.records]
    start = next(i for i, line in enumerate(lines) if line.startswith("block "))
    rows = [line.split() for line in lines[start + 1 : start + 4]]
    assert [int(row[1].replace(",", "")) for row in rows] == list(partition.n_points)
    assert [int(row[2]) for row in rows] == [len(cameras) for cameras in partition.cameras]
    advice = next(line for line in lines if "24 GB hold 20.9 M in one piece" in line)
    assert advice.startswith("40.0 M Gaussians expected; ")


def test_it_may_look_again_until_blocks_are_trained(folder: Path, tmp_path: Path) -> None:
    for blocks in ("2", "3"):
        main(["-s", str(folder), "-m", str(tmp_path), "--blocks", blocks, "--quiet"])
    assert read_partition(tmp_path).n_blocks == 3
    (tmp_path / MANIFEST).parent.mkdir()
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(SplatrimError, match="holds blocks that were trained"):
        main(["-s", str(folder), "-m", str(tmp_path), "--blocks", "2", "--quiet"])
    assert read_partition(tmp_path).n_blocks == 3


def test_memory_of_one_piece_and_of_blocks(scene: Scene) -> None:
    whole = make_partition(scene, PartitionConfig())
    assert block_memory(whole, 1e6) == [1034e6] and whole.outside == (0.0,)
    assert most_gaussians(1034e6) == pytest.approx(0.9e6)
    half = make_partition(scene, PartitionConfig(blocks=2))
    by_hand = [
        1e6 / sum(half.n_points) * (n * (1034 + outside * 244) + next_one * 730)
        for n, outside, next_one in zip(
            half.n_points, half.outside, half.n_points[::-1], strict=True
        )
    ]
    assert block_memory(half, 1e6) == pytest.approx(by_hand)


def test_the_suggestion_fits_and_one_fewer_does_not(scene: Scene) -> None:
    config, n = PartitionConfig(blocks=2), 10e6
    assert suggest_blocks(scene, config, n, 24e9) == 1
    memory = 8e9
    blocks = suggest_blocks(scene, config, n, memory)
    assert blocks is not None and blocks > 1
    fits = make_partition(scene, replace(config, blocks=blocks))
    fewer = make_partition(scene, replace(config, blocks=blocks - 1))
    assert max(block_memory(fits, n)) <= 0.9 * memory < max(block_memory(fewer, n))
    assert suggest_blocks(scene, config, n, 1e9) is None
