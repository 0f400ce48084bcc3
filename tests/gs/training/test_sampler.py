"""Camera order and derived seeds."""

import pytest

from gs.seeds import derive_seed
from gs.training.sampler import CameraSampler


def test_derive_seed_separates_streams() -> None:
    seeds = {
        derive_seed(seed, stream, step)
        for seed in (0, 1, -1, 2**40)
        for stream in ("mask", "prune")
        for step in range(500)
    }
    # 4000 draws from 2^31: more than a few collisions would mean a bad mixer
    assert len(seeds) >= 3997
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(3, "mask", 7) == derive_seed(3, "mask", 7)


def test_derive_seed_does_not_confuse_keys() -> None:
    assert derive_seed(0, "a", 1, 2) != derive_seed(0, "a", 2, 1)
    assert derive_seed(0, "prune", 12) != derive_seed(0, "prune", 1, 2)
    assert derive_seed(0, "a stream with a long name") != derive_seed(0, "a stream")


def test_every_epoch_sees_every_camera_once() -> None:
    sampler = CameraSampler(7, seed=3)
    epochs = [[sampler.next() for _ in range(7)] for _ in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_upcoming_is_what_next_gives() -> None:
    sampler = CameraSampler(3, seed=1)
    for _ in range(5):
        ahead = sampler.upcoming(8)
        assert len(ahead) == 8
        assert sampler.next() == ahead[0]
        assert sampler.upcoming(7) == ahead[1:]


def test_state_restores_the_order() -> None:
    sampler = CameraSampler(5, seed=9)
    for _ in range(13):
        sampler.next()
    other = CameraSampler(5, seed=0)
    other.next()
    other.load_state_dict(sampler.state_dict())
    assert [other.next() for _ in range(12)] == [sampler.next() for _ in range(12)]


def test_state_of_another_scene_starts_a_new_epoch() -> None:
    sampler = CameraSampler(4, seed=9)
    sampler.load_state_dict(CameraSampler(9, seed=9).state_dict())
    assert sampler.position == 0
    assert sorted(sampler.next() for _ in range(4)) == [0, 1, 2, 3]


def test_no_cameras() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        CameraSampler(0, seed=0)
