"""Runs in blocks: the same for any number of ranks, resumed, merged; what is refused."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gs.blocks.manifest import load_block, read_manifest
from gs.blocks.merge import merge_blocks
from gs.blocks.saved import blocks_folder
from gs.blocks.schedule import Schedule
from gs.blocks.trainer import BlockTrainer
from gs.distributed.simulated import simulate
from gs.errors import SplatrimError
from gs.model.ply import load_ply
from gs.run_record import model_file

pytestmark = pytest.mark.usefixtures("one_thread")
Make = Callable[..., BlockTrainer]


def whole_of(folder: Path, iteration: int = 36) -> dict[str, Tensor]:
    return load_ply(model_file(folder, iteration))


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert torch.equal(x, b[name]), name


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[..., Path]:
    """A run of three blocks in three waves or fewer, made once; with waves="one", in one."""
    done: dict[str, Path] = {}

    def run(make: Make, waves: str = "coloured") -> Path:
        if waves not in done:
            folder = tmp_path_factory.mktemp("runs") / waves
            blocks = {"blocks": 3, "waves": waves}
            assert make(folder, blocks, test_iterations=(20,)).fit() is None
            done[waves] = folder
        return done[waves]

    return run


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("waves", ["coloured", "one"])
def test_ranks_change_nothing(
    tmp_path: Path, block_trainer: Make, finished: Callable[..., Path], size: int, waves: str
) -> None:
    blocks = {"blocks": 3, "waves": waves}
    one = finished(block_trainer, waves)
    many = tmp_path / "many"
    simulate(size, lambda ranks: block_trainer(many, blocks, ranks=ranks).fit())
    assert_equal(whole_of(many), whole_of(one))
    history = json.loads((many / "history.json").read_text())
    used = {entry["rank"] for entry in history["blocks"]}
    assert used == set(range(size)) or waves == "coloured"


class StopAfter:
    """Asks for the end after so many steps."""

    def __init__(self, trainer: BlockTrainer, n: int) -> None:
        self.left, self.trainer = n, trainer
        self._on_step, trainer.progress.step = trainer.progress.step, self.step  # type: ignore

    def step(self, n_images: int) -> None:
        self._on_step(n_images)
        self.left -= 1
        if self.left == 0:
            self.trainer._request_stop()


@pytest.mark.parametrize(
    ("n", "size", "waves"),
    [(3, 1, "coloured"), (25, 2, "coloured"), (50, 1, "coloured"), (10, 1, "one"), (31, 2, "one")],
)
def test_a_stopped_run_goes_on_as_if_it_had_not(
    tmp_path: Path,
    block_trainer: Make,
    finished: Callable[..., Path],
    n: int,
    size: int,
    waves: str,
) -> None:
    folder, blocks = tmp_path / "out", {"blocks": 3, "waves": waves}
    trainer = block_trainer(folder, blocks)
    StopAfter(trainer, n)
    assert trainer.fit() == folder / "blocks"
    manifest = read_manifest(folder)
    steps = [
        0 if (state := load_block(folder, b, saved)) is None else state["step"]
        for b, saved in enumerate(manifest.blocks)
    ]
    assert sum(steps) <= n and not (folder / "point_cloud").exists()
    if size == 1:
        block_trainer(folder, blocks, start=folder).fit()
    else:
        simulate(size, lambda r: block_trainer(folder, blocks, start=folder, ranks=r).fit())
    assert_equal(whole_of(folder), whole_of(finished(block_trainer, waves)))


def test_the_saved_model_is_that_of_gs_merge(
    block_trainer: Make, finished: Callable[[Make], Path]
) -> None:
    folder = finished(block_trainer)
    saved = whole_of(folder)
    manifest = read_manifest(folder)
    total = sum(block.n_gaussians for block in manifest.blocks)
    assert manifest.iteration == 36 and 0 < len(saved["means"]) < total
    path = merge_blocks(folder)
    assert_equal(load_ply(path), saved)


def test_history_has_the_whole_and_each_block(
    block_trainer: Make, finished: Callable[[Make], Path]
) -> None:
    folder = finished(block_trainer)
    history = json.loads((folder / "history.json").read_text())
    manifest = read_manifest(folder)
    schedule = block_trainer(folder.with_name("other"), {"blocks": 3}).schedule
    assert history["step"][-1] == 36 and sorted(history["step"]) == history["step"]
    first, last = (t["step"] for t in history["test"])
    assert 20 <= first < last == 36 and first in history["step"]
    for b, entry in enumerate(history["blocks"]):
        assert entry["block"] == b and entry["steps"] == schedule.steps(b)
        assert entry["n_gaussians"] == manifest.blocks[b].n_gaussians
        assert entry["history"]["step"][-1] == entry["steps"]
    assert history["timing"]["swap_seconds"] > 0


def test_a_block_that_is_cut_short_is_told_of(tmp_path: Path, block_trainer: Make) -> None:
    folder = tmp_path / "out"
    trainer = block_trainer(folder, checkpoint_interval=10)
    StopAfter(trainer, 30)
    trainer.fit()
    path = next((folder / "blocks").glob("block_001.*.pth"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(SplatrimError, match="block_001.*cut short|block_001.*damaged"):
        block_trainer(folder, start=folder)


def test_other_settings_of_the_partition_are_refused(tmp_path: Path, block_trainer: Make) -> None:
    folder = tmp_path / "out"
    trainer = block_trainer(folder)
    StopAfter(trainer, 30)
    trainer.fit()
    with pytest.raises(SplatrimError, match="belongs to another partition"):
        block_trainer(folder, {"blocks": 2, "camera_share": 0.2}, start=folder)
    assert blocks_folder(folder / "blocks") == folder
    assert blocks_folder(folder / "blocks" / "manifest.json") == folder
    assert blocks_folder(folder) is None and blocks_folder(None) is None


def test_blocks_alone_keep_what_lies_in_their_cells(tmp_path: Path, block_trainer: Make) -> None:
    folder = tmp_path / "out"
    trainer = block_trainer(folder, {"surroundings": "none", "block_init": "whole"}, iterations=12)
    trainer.fit()
    whole = whole_of(folder, 12)
    owners = trainer.partition.owner(whole["means"])
    counts = [trainer.store.n_gaussians(b) for b in range(2)]
    assert min(counts) >= 200 and 150 < len(whole["means"]) < sum(counts)
    blocks = torch.from_numpy(np.load(model_file(folder, 12).parent / "blocks.npy"))
    assert torch.equal(owners, blocks.long())


def test_steps_are_shared_out_by_cameras() -> None:
    schedule = Schedule(1000, 20, (18, 9, 13), 50)
    assert [schedule.steps(b) for b in range(3)] == [900, 450, 650] and schedule.total == 2000
    assert schedule.n_rounds == 14
    for rounds in range(schedule.n_rounds + 1):
        shares = [schedule.until(b, rounds) / schedule.steps(b) for b in range(3)]
        assert max(shares) - min(shares) < 2 / 450
        assert abs(shares[0] - schedule.iteration(rounds) / 1000) < 2 / 450
    assert [schedule.until(b, 14) for b in range(3)] == [900, 450, 650]
    waves: Iterable[list[int]] = [[0, 2], [1]]
    assert schedule.position([0, 0, 0], list(waves)) == (0, 0)
    done = [schedule.until(b, 3) for b in range(3)]
    assert schedule.position(done, list(waves)) == (3, 0)
    done[0], done[2] = schedule.until(0, 4), schedule.until(2, 4)
    assert schedule.position(done, list(waves)) == (3, 1)
    assert schedule.position([900, 450, 650], list(waves)) == (14, 0)


def test_rounds_grow_and_all_blocks_pass_equal_fractions() -> None:
    schedule = Schedule(14_000, 65, (40, 31, 37, 33))
    n = schedule.n_rounds
    assert n == 40
    until = [[schedule.until(b, rounds) for rounds in range(n + 1)] for b in range(4)]
    for b, steps in enumerate(until):
        wanted = [schedule.steps(b) * (rounds / n) ** 2 for rounds in range(n + 1)]
        assert all(abs(x - y) <= 0.5 for x, y in zip(steps, wanted, strict=True))
    assert 3 <= until[0][1] <= 7 and 300 < until[0][n] - until[0][n - 1] < 500
    assert schedule.iteration(n // 2) == 3500
    long = dataclasses.replace(schedule, iterations=60_000)
    assert (
        max(long.until(b, long.n_rounds) - long.until(b, long.n_rounds - 1) for b in range(4)) < 600
    )
    short = dataclasses.replace(schedule, iterations=12)
    assert short.n_rounds == 7 and short.until(0, 7) == short.steps(0) == 7
