"""Projection into cameras that each see Gaussians of their own."""

from collections.abc import Callable

import pytest
from test_projection import compare, scene

pytestmark = pytest.mark.filterwarnings("ignore:(divide|invalid|overflow):RuntimeWarning")


def test_cameras_that_see_nothing_of_a_program(
    assert_close: Callable[..., None], spoil_memory: Callable[[int], None]
) -> None:
    """Each of four programs has its Gaussians far away from all but some of five cameras."""
    spoil_memory(0x7F7F7F7)
    t = scene(200, cameras=5)
    t["means"][:64, 0] += 64.0
    t["means"][128:192, 1] += 64.0
    t["viewmats"][[0, 2], 0, 3] -= 64.0
    t["viewmats"][3, 1, 3] -= 64.0
    got = compare(assert_close, t, joint=False, raw=True, mask="mask_logits")
    parts = (got.rows >= 0).split([64, 64, 64, 8], 1)
    seen = [part.any(1).nonzero()[:, 0].tolist() for part in parts]
    assert seen == [[0, 2], [1, 4], [3], [1, 4]]
