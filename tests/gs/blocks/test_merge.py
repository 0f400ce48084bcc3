"""Merging: every own row once, by id; what does not belong together is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.blocks.manifest import (
    MANIFEST,
    Manifest,
    SavedBlock,
    load_block,
    read_manifest,
    save_block,
    write_manifest,
)
from gs.blocks.merge import main, merge_blocks, merge_states
from gs.blocks.partition import Partition, PartitionConfig, make_partition
from gs.blocks.partition_file import save_partition
from gs.data.scene import Scene
from gs.errors import SplatrimError
from gs.model.gaussians import Gaussians
from gs.model.ply import load_ply, read_offset
from gs.model.renderer import render
from gs.run_record import RunRecord, find_model, read_record, write_record
from gs.training.run_state import RunState

N = 80


@pytest.fixture(scope="module")
def whole(scene: Scene) -> Gaussians:
    """The model before it is cut into blocks, with a view-dependent colour."""
    gaussians = Gaussians.from_points(scene.points, scene.colors, sh_degree=1)
    generator = torch.Generator().manual_seed(4)
    gaussians.params["shN"].data += torch.randn(N, 3, 3, generator=generator) * 0.1
    gaussians.one_up_sh_degree()
    return gaussians


def states_of(whole: Gaussians, owners: Tensor, n_blocks: int) -> list[dict[str, Any]]:
    """A state per block, its rows in an order of their own."""
    found = []
    for block in range(n_blocks):
        rows = (owners == block).nonzero()[:, 0].flip(0)
        state = RunState(
            method="3dgs",
            step=7,
            params={name: x[rows] for name, x in whole.to_tensors().items()},
            rows={"ids": rows.int()},
            next_id=N,
            active_sh_degree=1,
            sh_degree=1,
            extent=1.5,
            config={"world_offset": [100.0, 0.0, -5.0]},
        )
        found.append(state.to_dict())
    return found


@pytest.fixture
def write(
    scene: Scene, whole: Gaussians, tmp_path: Path
) -> Callable[..., tuple[Path, Partition, Tensor]]:
    """Write a run of so many blocks; its last ones own nothing."""

    def write(n_blocks: int, n_empty: int = 0) -> tuple[Path, Partition, Tensor]:
        cameras = [replace(scene.train[k % 6], image_name=f"{k}.png") for k in range(8 * n_blocks)]
        partition = make_partition(
            replace(scene, train=cameras), PartitionConfig(blocks=n_blocks, camera_share=0.0)
        )
        assert partition.n_blocks == n_blocks
        owners = partition.owner(whole.params["means"].detach())
        owners %= n_blocks - n_empty
        states = states_of(whole, owners, n_blocks)
        save_partition(tmp_path, partition)
        saved = [save_block(tmp_path, b, 3, state) for b, state in enumerate(states)]
        write_manifest(tmp_path, Manifest(partition.hash, 7, tuple(saved)))
        return tmp_path, partition, owners

    return write


@pytest.mark.parametrize(("n_blocks", "n_empty"), [(1, 0), (2, 0), (5, 0), (4, 1)])
def test_own_rows_exactly_once(
    write: Callable[..., Any], whole: Gaussians, n_blocks: int, n_empty: int
) -> None:
    folder, _, owners = write(n_blocks, n_empty)
    counts = owners.bincount(minlength=n_blocks).tolist()
    assert [saved.n_gaussians for saved in read_manifest(folder).blocks] == counts
    path = merge_blocks(folder)
    assert find_model(folder) == (7, path) and read_offset(path) == (100.0, 0.0, -5.0)
    merged = load_ply(path)
    for name, values in whole.to_tensors().items():
        assert torch.equal(merged[name], values), name


def test_a_rendering_is_the_unions(
    write: Callable[..., Any], whole: Gaussians, scene: Scene
) -> None:
    merged = Gaussians.from_tensors(load_ply(merge_blocks(write(3)[0])))
    with torch.no_grad():
        a, b = (render(model, scene.test[0]).colors for model in (merged, whole))
    assert torch.equal(a, b) and a.max() > 0.1


def test_rows_that_strategies_give_up_are_left_out(whole: Gaussians, tmp_path: Path) -> None:
    owners = torch.arange(N) % 3
    keep = torch.arange(N) % 5 > 0
    kept = []
    for block, state in enumerate(states_of(whole, owners, 3)):
        rows = None if block == 0 else keep[state["rows"]["ids"].long()]
        saved = save_block(tmp_path, block, 0, state, rows)
        kept.append(load_block(tmp_path, block, saved) or {})
    params, ids = merge_states(kept)
    wanted = (owners == 0) | keep
    assert torch.equal(ids.long(), wanted.nonzero()[:, 0])
    assert torch.equal(params["means"], whole.params["means"][wanted])


def test_the_runs_record_names_the_model(write: Callable[..., Any]) -> None:
    folder = write(2)[0]
    write_record(folder, RunRecord("abc", {3: "old"}))
    main(["-m", str(folder), "--quiet"])
    record = read_record(folder)
    assert record is not None and record.models.keys() == {3, 7}


def test_another_partition_is_refused(write: Callable[..., Any]) -> None:
    folder, partition, _ = write(2)
    save_partition(folder, replace(partition, hash="0" * 32))
    with pytest.raises(SplatrimError, match="belongs to another partition than .*partition.json"):
        merge_blocks(folder)
    assert not (folder / "point_cloud").exists()


def test_counts_are_checked(write: Callable[..., Any]) -> None:
    folder, _, owners = write(2)
    path, n = folder / MANIFEST, int((owners == 1).sum())
    path.write_text(path.read_text().replace(f'"gaussians": {n}', f'"gaussians": {n + 1}'))
    with pytest.raises(SplatrimError, match=f"block_00.* holds {n} Gaussians, and .* {n + 1}"):
        merge_blocks(folder)


def test_a_truncated_block_is_a_sentence(write: Callable[..., Any]) -> None:
    folder = write(2)[0]
    path = folder / "blocks" / "block_001.0003.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SplatrimError, match="block_001.0003.pth"):
        merge_blocks(folder)


def test_missing_files_are_sentences(write: Callable[..., Any], tmp_path: Path) -> None:
    folder = write(2)[0]
    (folder / "blocks" / "block_000.0003.pth").unlink()
    with pytest.raises(SplatrimError, match="block_000.0003.pth is missing, and .* names it"):
        merge_blocks(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(SplatrimError, match="blocks is incomplete: manifest.json is missing"):
        merge_blocks(folder)
    with pytest.raises(SplatrimError, match="holds no blocks"):
        merge_blocks(tmp_path / "elsewhere")


def test_a_row_in_two_blocks_is_refused(whole: Gaussians) -> None:
    states = states_of(whole, torch.zeros(N), 1) * 2
    with pytest.raises(SplatrimError, match="80 Gaussians belong to two blocks"):
        merge_states(states)


def test_no_gaussians_at_all(write: Callable[..., Any]) -> None:
    folder, partition, _ = write(2)
    write_manifest(folder, Manifest(partition.hash, 7, (SavedBlock(4, 0), SavedBlock(4, 0))))
    with pytest.raises(SplatrimError, match="none of the 2 blocks holds a Gaussian"):
        merge_blocks(folder)


def test_the_manifest_comes_last_and_old_files_go(
    write: Callable[..., Any], whole: Gaussians
) -> None:
    folder, partition, owners = write(2)
    old = read_manifest(folder)
    state = states_of(whole, owners, 2)[1]
    newer = save_block(folder, 1, 4, state)
    assert read_manifest(folder) == old and load_block(folder, 1, old.blocks[1])  # stopped here
    write_manifest(folder, Manifest(partition.hash, 9, (old.blocks[0], newer)))
    names = sorted(path.name for path in (folder / "blocks").iterdir())
    assert names == ["block_000.0003.pth", "block_001.0004.pth", "manifest.json"]
    assert merge_blocks(folder).parent.name == "iteration_9"
    with pytest.raises(ValueError, match="block_001.0005.pth has not been written"):
        write_manifest(folder, Manifest(partition.hash, 9, (old.blocks[0], SavedBlock(5, 3))))
