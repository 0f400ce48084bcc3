"""A budget: how many Gaussians a densifier may grow to."""

from __future__ import annotations

import math

from ..errors import SplatrimError


def budget_limit(budget: str, n_start: int) -> int:
    """The number of Gaussians that `--budget` allows after a start with `n_start`.

    Args:
        budget: A number, such as 300000, or a multiple of `n_start`, such as 2x or 1.5x.
        n_start: Gaussians at the start.

    Raises:
        SplatrimError: it is neither, or a multiple below 1.
    """
    text = budget.strip().lower()
    try:
        if text.endswith("x"):
            factor = float(text[:-1])
            if factor >= 1 and math.isfinite(n_start * factor):
                return int(n_start * factor)
        elif int(text) >= 1:
            return int(text)
    except ValueError:
        pass
    raise SplatrimError(
        f"--budget {budget}: give a number of Gaussians, such as 300000, or a multiple"
        " (1x or more) of those at the start, such as 2x"
    )


def check_budget(budget: str, n_start: int) -> None:
    """Raise SplatrimError if the budget is below the number of Gaussians at the start."""
    if budget_limit(budget, n_start) < n_start:
        raise SplatrimError(
            f"--budget {budget} is less than the {n_start} Gaussians that"
            " training starts with: give more, or fewer points (--init_points)"
        )
