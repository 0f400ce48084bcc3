r"""Weights of blocks by how far each lags behind the best.

Fan et al., "Momentum-GS" (ICCV 2025), section 3.3, with the numbers of their code. From time to
time a block's PSNR and SSIM are measured, P_last and Q_last. In every iteration after the first
`after`

    P <- 0.9 P + 0.1 P_last     Q <- 0.9 Q + 0.1 Q_last     (P = P_last, Q = Q_last at first)
    w = 2 - exp(-((P_max - P)^2 + (10 (Q_max - Q))^2) / (2 sigma^2))

with the maxima over all blocks: 1 for the best block, and below 2 for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEPT = 0.9  # of P and Q in an iteration
SSIM_SCALE = 10.0  # dB that a whole unit of SSIM counts like
AFTER = 1000  # iterations of equal weights
EVERY = 1000  # iterations between two measurements of a block
EACH = 10  # every so manieth of a block's training views is measured


@dataclass
class _Quality:
    """Of one block: PSNR, SSIM."""

    last: tuple[float, float]
    smooth: tuple[float, float]


class BlockWeights:
    """Weights of all blocks of a run; every rank has them all, and they are the same everywhere.

    Args:
        sigma: Width of the bell, dB; 0: all weights are 1.
        after: Iterations of equal weights, by block.
    """

    def __init__(self, sigma: float, after: Mapping[int, int] | None = None) -> None:
        self.sigma, self.after = sigma, dict(after or {})
        self._quality: dict[int, _Quality] = {}

    def measured(self, block: int, psnr: float, ssim: float) -> None:
        """Note the quality that a block has on some of its training views."""
        found = self._quality.setdefault(block, _Quality((psnr, ssim), (psnr, ssim)))
        found.last = psnr, ssim

    def advance(self, block: int, step: int) -> None:
        """The block takes iteration `step`, counted from 1."""
        found = self._quality.get(block)
        if found is not None and step > self._after(block):
            p, q = (
                KEPT * a + (1.0 - KEPT) * b for a, b in zip(found.smooth, found.last, strict=True)
            )
            found.smooth = p, q

    def weight(self, block: int, step: int) -> float:
        """w of a block at its iteration `step`."""
        found = self._quality.get(block)
        if found is None or step <= self._after(block):
            return 1.0
        best = [max(x.smooth[k] for x in self._quality.values()) for k in (0, 1)]
        return weight(best[0] - found.smooth[0], best[1] - found.smooth[1], self.sigma)

    def _after(self, block: int) -> int:
        return self.after.get(block, AFTER)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {str(b): [*x.last, *x.smooth] for b, x in self._quality.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._quality = {int(b): _Quality((x[0], x[1]), (x[2], x[3])) for b, x in state.items()}


def weight(psnr_gap: float, ssim_gap: float, sigma: float) -> float:
    """w of a block that lags behind the best by so much, in dB and SSIM; 1 for sigma 0."""
    if sigma == 0:
        return 1.0
    squared = psnr_gap**2 + (SSIM_SCALE * ssim_gap) ** 2
    return 2.0 - math.exp(-squared / (2.0 * sigma**2))
