"""What methods offer when they do not say otherwise."""

import pytest

from gs.errors import SplatrimError
from pruning.method import MethodConfig


class StubbornConfig(MethodConfig):
    pass


def test_a_finished_model_is_refused_by_default() -> None:
    with pytest.raises(SplatrimError, match="Stubborn cannot prune a finished model"):
        StubbornConfig().post_training(30_000, 35_000)
