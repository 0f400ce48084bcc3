"""Blocks of neural Gaussians: as one piece, in lockstep, swapped, stopped, on several ranks."""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.blocks.config import BlocksConfig
from gs.blocks.manifest import Manifest, decoder_file, read_manifest, write_manifest
from gs.blocks.merge import merge_blocks
from gs.blocks.neural_trainer import NeuralBlockTrainer
from gs.blocks.partition import make_partition
from gs.blocks.plans import RunSettings
from gs.blocks.seams import load_whole, owner_map
from gs.config import TrainConfig, as_plain
from gs.data.scene import Scene
from gs.densification.growth import GrowthConfig
from gs.distributed.ranks import Ranks
from gs.distributed.simulated import simulate
from gs.errors import SplatrimError
from gs.model.rates import OptimConfig
from gs.model.renderer import render
from gs.neural.anchors import Anchors, first_anchors
from gs.neural.config import NeuralConfig
from gs.neural.loading import load_model
from gs.neural.momentum import MomentumConfig
from gs.training.trainer import Trainer
from pruning import METHODS

CPU = torch.device("cpu")
NEURAL = NeuralConfig(feature_dim=8, offsets=3, voxel_size=0.1, appearance_dim=2)
GROWTH = GrowthConfig(
    densify_from_iter=10,
    statistics_from_iter=4,
    densify_until_iter=40,
    densification_interval=16,
    densify_grad_threshold=1e-5,
    update_init_factor=4.0,
    min_opacity=1e-4,
)
N_STEPS = 48

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def street(write_scene: Callable[..., Scene]) -> Scene:
    """32 views along a strip of 240 Gaussians, of which 28 are to train on."""
    g = torch.Generator().manual_seed(0)
    points = (torch.rand(240, 3, generator=g) - 0.5) * torch.tensor([12.0, 2.0, 0.4])
    colors = torch.rand(240, 3, generator=g)
    views = []
    for k in range(32):
        place = (k * 7) % 32
        viewmat = torch.eye(4)
        viewmat[:3, 3] = torch.tensor([5.5 - 11.0 * place / 31, 0.4 * (k % 3 - 1), 2.5])
        views.append(viewmat)
    start = points + 0.05 * torch.randn(240, 3, generator=g), colors
    return write_scene(points, colors, views, 28, (24, 18), 19.5, start)


def settings(out: Path, **options: Any) -> RunSettings:
    fields = {
        kind: {field.name for field in dataclasses.fields(kind)}
        for kind in (TrainConfig, BlocksConfig, MomentumConfig)
    }

    def picked(kind: Any) -> dict[str, Any]:
        return {name: x for name, x in options.items() if name in fields[kind]}

    train = {"iterations": N_STEPS, "quiet": True, "device": "cpu", "sh_degree": 0}
    return RunSettings(
        TrainConfig(model_path=out, **{**train, **picked(TrainConfig)}),
        BlocksConfig(**{"blocks": 3, "block_interval": 8, **picked(BlocksConfig)}),
        OptimConfig(position_lr_max_steps=N_STEPS),
        GROWTH,
        METHODS["3dgs"].preset(next(iter(METHODS["3dgs"].PRESETS))),
        "3dgs",
        False,
        {
            "iterations": N_STEPS,
            "method": "3dgs",
            "neural": as_plain(NEURAL),
            "blocks": picked(BlocksConfig),
        },
        NEURAL,
        MomentumConfig(**{"lambda_consistency": 1.0, **picked(MomentumConfig)}),
    )


def make(
    scene: Scene,
    out: Path,
    ranks: Ranks | None = None,
    start: Path | None = None,
    **options: Any,
) -> NeuralBlockTrainer:
    run = settings(out, **options)
    partition = make_partition(scene, run.blocks.cut())
    return NeuralBlockTrainer(run, scene, partition, CPU, start=start, ranks=ranks)


def state_of(trainer: NeuralBlockTrainer) -> dict[str, Tensor]:
    """All that is shown of blocks, and the decoder."""
    found = {
        f"{block}.{name}": x.clone()
        for block, seen in enumerate(trainer.store.seen)
        for name, x in seen.items()
    }
    shared = trainer.decoder.state_dict()
    for part in ("parameters", "teacher"):
        found |= {f"{part}.{name}": x.detach().clone() for name, x in shared[part].items()}
    return found


def moments_of(trainer: NeuralBlockTrainer) -> dict[str, Tensor]:
    """What is behind: moments, counts and buffers of every block that is here."""
    return {
        f"{block}.{path}": x.clone()
        for block, state in trainer.store.states.items()
        for path, x in state.tensors().items()
    }


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, x in want.items():
        assert torch.equal(got[name], x), name


@pytest.fixture(scope="module")
def whole(street: Scene, tmp_path_factory: pytest.TempPathFactory) -> NeuralBlockTrainer:
    """A run of three blocks."""
    trainer = make(street, tmp_path_factory.mktemp("whole"), checkpoint_interval=30)
    assert trainer.fit() is None
    return trainer


def test_one_block_without_a_teacher_is_training_in_one_piece(
    street: Scene, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"blocks": 1, "teacher": "none", "freeze_decoder": 0.0}
    blocks = make(street, tmp_path / "blocks", **options)
    blocks.fit()
    config = settings(tmp_path / "one").train
    one = Trainer(
        config,
        street,
        strategies=[GROWTH.build()],
        optim=OptimConfig(position_lr_max_steps=N_STEPS),
        model=first_anchors(NEURAL, street, None, seed=0, device=CPU),
    )
    one.fit()
    got, want = blocks.gaussians, one.gaussians
    for name, x in want.to_tensors().items():
        assert torch.equal(got.to_tensors()[name], x), name
    for name, x in want.shared.state_dict().items():
        assert torch.equal(got.shared.state_dict()[name], x), name


def test_a_run_learns_and_its_model_is_one_of_the_usual_ones(
    whole: NeuralBlockTrainer, street: Scene
) -> None:
    assert whole.partition.n_blocks == 3 and len(whole.waves) == 2
    out = whole.config.model_path
    first, last = whole.tracker.history["psnr"][0], whole.tracker.history["psnr"][-1]
    assert last > first + 1.0
    model = load_model(out / "point_cloud" / f"iteration_{N_STEPS}" / "point_cloud.ply")
    assert isinstance(model, Anchors)
    assert len(model) == sum(whole.store.n_gaussians(b) for b in range(3))
    for camera in (street.test[0], street.train[3]):
        assert torch.equal(render(model, camera).colors, render(whole.gaussians, camera).colors)
    assert (out / "blocks" / "manifest.json").is_file()


def test_merging_makes_the_model_that_was_saved(whole: NeuralBlockTrainer) -> None:
    path = merge_blocks(whole.config.model_path)
    merged, want = load_model(path), whole.gaussians
    for name, x in want.to_tensors().items():
        assert torch.equal(merged.to_tensors()[name], x), name
    owners = whole.partition.owner(want.params["anchors"].detach())
    shown: set[int] = set()
    for camera in whole.scene.test:
        shown |= {*owner_map(merged, owners, camera).unique().tolist()}
    assert shown - {-1} == {0, 1, 2}
    saved, blocks = load_whole(whole.config.model_path, CPU)
    assert blocks is not None and len(blocks) == len(saved) == len(want)


def test_what_grows_belongs_to_a_block_and_all_see_it(whole: NeuralBlockTrainer) -> None:
    n_first = len(first_anchors(NEURAL, whole.scene, None, seed=0, device=CPU))
    assert len(whole.gaussians) != n_first
    ids = [seen["ids"] for seen in whole.store.seen]
    assert any(int(x.max()) >= n_first for x in ids)


@pytest.mark.parametrize("size", [2, 3])
def test_results_do_not_depend_on_the_number_of_ranks(
    whole: NeuralBlockTrainer, street: Scene, tmp_path: Path, size: int
) -> None:
    def run(ranks: Ranks) -> dict[str, Tensor]:
        trainer = make(street, tmp_path, ranks, checkpoint_interval=30)
        trainer.fit()
        trainer.decoder.check_replicas()
        return state_of(trainer)

    for found in simulate(size, run):
        assert_equal(found, state_of(whole))


def test_swapped_and_resident_blocks_are_the_same(
    whole: NeuralBlockTrainer, street: Scene, tmp_path: Path
) -> None:
    resident = make(street, tmp_path, swap="none", checkpoint_interval=30)
    resident.fit()
    assert_equal(state_of(resident), state_of(whole))
    assert_equal(moments_of(resident), moments_of(whole))


def test_a_stopped_run_goes_on_on_another_number_of_ranks(
    whole: NeuralBlockTrainer, street: Scene, tmp_path: Path
) -> None:
    stopped = make(street, tmp_path / "out", checkpoint_interval=30)
    taken = 0

    def stop(n_images: int) -> None:
        nonlocal taken
        taken += n_images
        stopped.stop_requested = taken >= 52

    stopped.progress.step = stop  # type: ignore[method-assign]
    folder = stopped.fit()
    assert folder is not None and stopped.tracker.history["step"]

    def go_on(ranks: Ranks) -> dict[str, Tensor]:
        again = make(street, tmp_path / f"again{ranks.size}", ranks, start=tmp_path / "out")
        again.fit()
        return state_of(again)

    for size in (1, 2):
        for found in simulate(size, go_on):
            assert_equal(found, state_of(whole))


def test_a_killed_run_loses_one_interval_of_checkpoints(
    whole: NeuralBlockTrainer, street: Scene, tmp_path: Path
) -> None:
    """kill -9 when blocks and decoder of the second checkpoint are written and do not count"""

    def die(folder: Path, manifest: Manifest) -> None:
        if manifest.decoder == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write_manifest(folder, manifest)

    process = os.fork()
    if process == 0:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gs.blocks.saved.write_manifest", die)
            make(street, tmp_path, checkpoint_interval=30).fit()
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    known = read_manifest(tmp_path)
    files = {path.name for path in (tmp_path / "blocks").glob("*.pth")}
    assert known.decoder == 1 and {decoder_file(1), decoder_file(2)} < files
    again = make(street, tmp_path, start=tmp_path, checkpoint_interval=30)
    assert 30 <= sum(again._begun) < 60
    again.fit()
    assert_equal(state_of(again), state_of(whole))


def test_the_decoder_stays_for_all_blocks_in_the_last_share(street: Scene, tmp_path: Path) -> None:
    trainer = make(
        street, tmp_path, freeze_decoder=0.4, teacher="wave", iterations=32, block_interval=4
    )
    seen: list[str] = []
    train = trainer._train_wave

    def watched(rounds: int, wave: int) -> bool:
        before = trainer.decoder.digest()
        done = train(rounds, wave)
        seen.append("frozen" if trainer.decoder.digest() == before else "learns")
        return done

    trainer._train_wave = watched  # type: ignore[method-assign]
    trainer.fit()
    n_waves, n_rounds = len(trainer.waves), trainer.schedule.n_rounds
    first = int(0.6 * n_rounds)
    assert seen == ["learns"] * first * n_waves + ["frozen"] * (n_rounds - first) * n_waves
    assert 0 < first < n_rounds


def test_as_published_every_block_is_alone_and_cut_at_the_end(
    street: Scene, tmp_path: Path
) -> None:
    trainer = make(
        street,
        tmp_path,
        waves="one",
        surroundings="none",
        block_init="whole",
        block_steps="all",
        freeze_decoder=0.0,
        decoder_adam="per_slot",
        weighted="loss",
        lockstep=2,
        iterations=24,
    )
    trainer.fit()
    assert [len(group) for group in trainer.waves] == [2, 1]
    assert [trainer.schedule.steps(b) for b in range(3)] == [24] * 3
    assert len(trainer.decoder.optimizers) == 2
    n = sum(trainer.store.n_gaussians(b) for b in range(3))
    model = trainer.gaussians
    owners = trainer.partition.owner(model.params["anchors"].detach())
    assert 0 < len(model) < n and len(owners.unique()) == 3
    counts = [
        int((trainer.partition.owner(seen["anchors"]) == b).sum())
        for b, seen in enumerate(trainer.store.seen)
    ]
    assert owners.bincount(minlength=3).tolist() == counts
    assert len(load_model(merge_blocks(tmp_path))) == len(model)


def test_weights_are_measured_and_change_the_decoder(street: Scene, tmp_path: Path) -> None:
    found = []
    for sigma in (0.0, 2.0):
        trainer = make(street, tmp_path / str(sigma), sigma=sigma, iterations=32, block_interval=4)
        trainer.fit()
        found.append(trainer)
    even, weighed = found
    assert even.weights.state_dict() == {}
    assert weighed.weights.state_dict().keys() == {"0", "1", "2"}
    weights = [weighed.weights.weight(b, 10**6) for b in range(3)]
    assert 1.0 <= min(weights) < max(weights) < 2.0
    assert even.decoder.digest() != weighed.decoder.digest()


def test_blocks_of_another_kind_are_refused(
    whole: NeuralBlockTrainer, street: Scene, tmp_path: Path
) -> None:
    with pytest.raises(SplatrimError, match="other settings"):
        make(street, tmp_path, start=whole.config.model_path, decoder_adam="per_slot")
