from pathlib import Path

import pytest

import train
from gs.config import TrainConfig
from gs.errors import SplatrimError
from gs.model.rates import OptimConfig
from gs.program import check_for_ranks
from gs.stages import read_stages, value_at
from pruning import METHODS


def test_values_hold_from_their_share_on() -> None:
    stages = read_stages("x", "0.1:4, 0.25:2,0.5:1.5")
    shares = (0.0, 0.09, 0.1, 0.24, 0.25, 0.5, 1.0)
    assert [value_at(stages, share) for share in shares] == [1, 1, 4, 4, 2, 1.5, 1.5]
    assert read_stages("x", "") == () and value_at((), 0.3) == 1


@pytest.mark.parametrize(
    "text", ["4", "0:0.5", "0.5:2,0.4:1", "1:2", "-0.1:2", "0:x", "0:2,", "0:nan", "0:inf", "0:1:2"]
)
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SplatrimError, match="--x .*: give ascending shares"):
        read_stages("x", text)


def test_images_of_a_step_and_sizes_follow_the_run() -> None:
    config = TrainConfig(
        Path("out"),
        iterations=1000,
        batch=2,
        multi_view_updates="0.5:5,0.75:20",
        resolution_schedule="0:4,0.1:2,0.25:1",
    )
    assert [config.images_after(done) for done in (0, 499, 500, 749, 750)] == [2, 2, 10, 10, 40]
    assert config.images_after(980) == 20  # as many as are left
    assert [config.reduction_after(done) for done in (0, 99, 100, 250, 999)] == [4, 4, 2, 1, 1]
    post = TrainConfig(Path("out"), iterations=1500, post_start=500, multi_view_updates="0.5:5")
    assert [post.images_after(done) for done in (500, 999, 1000)] == [1, 1, 5]
    with pytest.raises(SplatrimError, match="--multi_view_updates .*whole numbers"):
        TrainConfig(Path("out"), multi_view_updates="0.5:2.5")
    with pytest.raises(SplatrimError, match="--resolution_schedule"):
        TrainConfig(Path("out"), resolution_schedule="half")


@pytest.mark.parametrize("flag", ["resolution_schedule", "multi_view_updates"])
def test_stages_are_refused_on_several_ranks(flag: str) -> None:
    config = train.parse(["-s", "x", "-m", "y", f"--{flag}", "0:2"])
    with pytest.raises(SplatrimError, match=f"--{flag} does not run on several GPUs yet"):
        check_for_ranks(config, METHODS)


def test_the_faster_recipe_begins_with_small_images() -> None:
    faster = train.parse(["-s", "x", "-m", "y", "--recipe", "faster"])
    assert faster.train.iterations == 9000 and faster.optim == OptimConfig().scaled(0.3).hastened()
    assert faster.train.resolution_schedule == "0:2,0.15:1"
    fast = train.parse(["-s", "x", "-m", "y", "--recipe", "fast"])
    assert fast.train.iterations == 14_000 and not fast.train.resolution_schedule
    post = train.parse(["-s", "x", "-m", "y", "--recipe", "faster", "--start_ply", "a.ply"]).train
    assert (post.iterations, post.resolution_schedule) == (35_000, "")
