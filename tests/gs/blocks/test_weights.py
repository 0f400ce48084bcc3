"""Weights of blocks: the published formula, its smoothing, and who is the best."""

import pytest

from gs.blocks.weights import AFTER, BlockWeights, weight


@pytest.mark.parametrize(
    ("psnr_gap", "ssim_gap", "sigma", "want"),
    [
        (0.0, 0.0, 10.0, 1.0),
        (1.0, 0.01, 10.0, 1.005037),
        (3.0, 0.05, 10.0, 1.045197),
        (3.0, 0.05, 9.0, 1.055499),
        (5.0, 0.1, 10.0, 1.121905),
        (5.0, 0.1, 13.0, 1.074039),
        (10.0, 0.2, 10.0, 1.405479),
    ],
)
def test_the_weight_is_the_published_one(
    psnr_gap: float, ssim_gap: float, sigma: float, want: float
) -> None:
    assert weight(psnr_gap, ssim_gap, sigma) == pytest.approx(want, abs=1e-6)


def test_weights_grow_with_the_gap_and_stay_below_2() -> None:
    gaps = [0.0, 0.1, 1.0, 5.0, 20.0, 50.0]
    found = [weight(gap, 0.0, 10.0) for gap in gaps]
    assert found == sorted(found) and len(set(found)) == len(gaps)
    assert found[-1] < 2.0
    assert weight(20.0, 0.5, 0.0) == 1.0


def test_the_best_block_counts_1_and_all_do_at_first() -> None:
    weights = BlockWeights(sigma=10.0)
    for block, (psnr, ssim) in enumerate([(20.0, 0.7), (25.0, 0.8), (23.0, 0.75)]):
        weights.measured(block, psnr, ssim)
    assert [weights.weight(b, AFTER) for b in range(3)] == [1.0] * 3
    found = [weights.weight(b, AFTER + 1) for b in range(3)]
    assert found == [pytest.approx(1.121905, abs=1e-6), 1.0, pytest.approx(weight(2, 0.05, 10))]
    assert weights.weight(7, AFTER + 1) == 1.0  # never measured


def test_a_measurement_is_90_percent_there_after_22_iterations() -> None:
    weights = BlockWeights(sigma=10.0)
    weights.measured(0, 30.0, 0.9)
    weights.measured(1, 20.0, 0.9)
    weights.measured(1, 30.0, 0.9)
    for step in range(AFTER - 5, AFTER + 1):  # nothing moves yet
        weights.advance(1, step)
    assert weights.weight(1, AFTER + 1) == pytest.approx(weight(10.0, 0.0, 10.0))
    for step in range(AFTER + 1, AFTER + 23):
        weights.advance(1, step)
    gap = 10.0 * (1.0 - 0.9015229)
    assert weights.weight(1, AFTER + 23) == pytest.approx(weight(gap, 0.0, 10.0), abs=1e-7)


def test_weights_resume() -> None:
    weights, again = BlockWeights(sigma=9.0), BlockWeights(sigma=9.0)
    weights.measured(0, 30.0, 0.9)
    weights.measured(2, 21.0, 0.8)
    weights.measured(2, 22.0, 0.8)
    weights.advance(2, AFTER + 1)
    again.load_state_dict(weights.state_dict())
    for step in (AFTER + 2, AFTER + 3):
        for table in (weights, again):
            table.advance(2, step)
        assert again.weight(2, step) == weights.weight(2, step) != 1.0
