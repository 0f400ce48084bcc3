"""Histograms of what every Gaussian has, small enough for a run's history.json."""

from typing import TypedDict

import torch
from torch import Tensor

BINS = 50


class Histogram(TypedDict):
    """Counts between edges."""

    edges: list[float]
    """One more than counts, ascending."""
    counts: list[int]


@torch.no_grad()
def unit_histogram(values: Tensor, bins: int = BINS) -> Histogram:  # values [N] in 0..1
    """Counts in `bins` equal parts of 0..1; the last one includes 1. NaN does not count."""
    finite = values.detach().float().reshape(-1)
    index = (finite[~finite.isnan()].clamp(0, 1) * bins).long().clamp_max(bins - 1)
    counts = torch.bincount(index, minlength=bins).tolist()
    return {"edges": [i / bins for i in range(bins + 1)], "counts": counts}


@torch.no_grad()
def mask_histogram(logits: Tensor | None) -> Histogram | None:  # [N, 2]
    """Probabilities of being kept, softmax over (keep, drop); None for masks of another kind."""
    if logits is None or logits.dim() != 2:
        return None
    return unit_histogram(torch.sigmoid(logits[:, 0] - logits[:, 1]))
