import pytest

from gs.errors import SplatrimError
from pruning.survivors import n_survivors


@pytest.mark.parametrize(
    ("text", "n", "want"),
    [("150000", 200_000, 150_000), ("9", 5, 5), ("0.4x", 10, 4), (" .5X ", 7, 3), ("0.1x", 3, 1)],
)
def test_numbers_and_shares(text: str, n: int, want: int) -> None:
    assert n_survivors(text, n) == want


@pytest.mark.parametrize("text", ["", "x", "0", "-3", "1x", "0x", "1.5x", "some", "0.5", "nanx"])
def test_what_is_neither(text: str) -> None:
    with pytest.raises(SplatrimError, match="--survivors .*: give a number of Gaussians"):
        n_survivors(text, 10)
