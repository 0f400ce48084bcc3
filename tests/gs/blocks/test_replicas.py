"""T-REPLICA: decoders are the same bits on all ranks, and for one, two and three processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from gs.blocks.decoder_file import load_decoder
from gs.blocks.manifest import FOLDER, decoder_file, load_block, read_manifest
from gs.data.city_scene import CityConfig, write_city_scene

FLAGS = "--eval --representation neural --blocks 3 --block_interval 6 --iterations 24 --quiet"
SHAPE = "--feature_dim 16 --offsets 3 --voxel_size 0 --appearance_dim 2 --waves one"
GROWTH = "--statistics_from_iter 2 --densify_from_iter 4 --densify_grad_threshold 1e-6"


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "city"
    size = {"views": 36, "width": 32, "height": 24, "points": 300}
    write_city_scene(folder, CityConfig(blocks_x=3, blocks_y=1, **size))
    return folder


def run(repo: Path, city: Path, out: Path, n_ranks: int, *more: str) -> None:
    words = ["-s", str(city), "-m", str(out), "--device", "cpu", *more]
    words += f"{FLAGS} {SHAPE} {GROWTH}".split()
    if n_ranks == 1:  # here, as no launcher is needed
        return train.main(words)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_ranks}"]
    done = subprocess.run(
        [sys.executable, *launch, str(repo / "train.py"), *words],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_processes_come_to_the_same_blocks_and_decoder(
    repo: Path, city: Path, tmp_path: Path, one_thread: None
) -> None:
    one = tmp_path / "1"
    run(repo, city, one, 1)
    known = read_manifest(one)
    assert len(known.blocks) == 3 and known.decoder > 0
    decoder = load_decoder(one / FOLDER / decoder_file(known.decoder))
    for n_ranks in (2, 3):
        out = tmp_path / str(n_ranks)
        # the trainer itself compares the ranks' decoders at every checkpoint
        run(repo, city, out, n_ranks, "--checkpoint_interval", "20")
        found = read_manifest(out)
        other = load_decoder(out / FOLDER / decoder_file(found.decoder))
        for part in ("parameters", "teacher"):
            for name, x in decoder[part].items():
                assert torch.equal(other[part][name], x), (n_ranks, name)
        for block in range(3):
            want = load_block(one, block, known.blocks[block])
            got = load_block(out, block, found.blocks[block])
            assert want is not None and got is not None
            for name, x in want["params"].items():
                assert torch.equal(got["params"][name], x), (n_ranks, block, name)
