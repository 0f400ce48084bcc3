"""Pictures take no more of the training than their share, whatever one costs."""

import pytest

from gs.viewer.pace import MOVING_SHARE, STILL_SHARE, Pace


def watch(full_cost: float, *, moved: bool, seconds: float = 60.0) -> tuple[float, int, float]:
    """Share of the time, pictures and last scale, where a full picture costs so much."""
    pace, now, pictures = Pace(), 0.0, 0
    while now < seconds:
        now += 0.001
        if pace.due(now, moved=moved):
            cost = full_cost * pace.scale(moved=moved) ** 2
            pace.drawn(now)
            now += cost
            pace.spent(cost, moved=moved)
            pictures += 1
    return pace.total / now, pictures, pace.scale(moved=moved)


@pytest.mark.parametrize("cost", [1e-4, 2e-3, 4e-3, 0.02, 0.1])
def test_a_resting_camera_costs_its_share_at_most(cost: float) -> None:
    share, pictures, _ = watch(cost, moved=False)
    assert share <= STILL_SHARE * 1.1  # the last picture's pause is not over
    assert pictures >= min(10, STILL_SHARE / (cost / 4)) * 60 * 0.9


def test_dear_pictures_become_smaller_and_then_rarer() -> None:
    assert watch(1e-3, moved=False)[2] == 1.0
    assert watch(7e-3, moved=False)[2] == 0.75
    assert watch(0.5, moved=False)[2] == 0.5
    assert watch(0.5, moved=True)[2] == 0.25


def test_a_moving_camera_may_cost_more() -> None:
    share, pictures, _ = watch(0.02, moved=True)
    assert STILL_SHARE < share <= MOVING_SHARE * 1.1
    assert pictures > 20 * 60


def test_pictures_grow_again() -> None:
    pace = Pace()
    for _ in range(5):
        pace.spent(0.02, moved=False)
    assert pace.scale(moved=False) < 1
    for _ in range(40):
        pace.spent(1e-4, moved=False)
    assert pace.scale(moved=False) == 1


def test_what_is_made_once_does_not_make_pictures_rarer() -> None:
    pace = Pace()
    for k in range(20):
        made = k % 5 == 0
        pace.spent(0.5 if made else 1e-3, moved=False, steady=not made)
        assert k < 9 or pace.scale(moved=False) == 1.0
    assert pace.total > 2.0
    pace.drawn(10.0)
    assert pace.due(10.11, moved=False)
