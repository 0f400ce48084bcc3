"""How many Gaussians a method is to leave: a number, or a share of those that there are."""

from __future__ import annotations

import math

from gs import SplatrimError


def n_survivors(survivors: str, n: int) -> int:
    """The number that `--survivors` asks for, of n Gaussians: at least 1, at most n.

    Args:
        survivors: A number, such as 150000, or a share of n, such as 0.4x.
        n: Gaussians that there are.

    Raises:
        SplatrimError: it is neither.
    """
    text = survivors.strip().lower()
    try:
        if text.endswith("x"):
            share = float(text[:-1])
            if 0 < share < 1:
                return max(math.floor(share * n), 1)
        elif int(text) >= 1:
            return min(int(text), n)
    except ValueError:
        pass
    raise SplatrimError(
        f"--survivors {survivors}: give a number of Gaussians, such as 150000, or a share of those"
        " that there are, such as 0.4x"
    )
