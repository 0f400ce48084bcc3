"""Histograms of what every Gaussian has, small enough for a run's history.json."""

from typing import TypedDict

import torch
from torch import Tensor
from typing_extensions import NotRequired

BINS = 50


class Histogram(TypedDict):
    """Counts between edges."""

    edges: list[float]
    """One more than counts, ascending."""
    counts: list[int]
    label: NotRequired[str]
    """What is on the axis, where the histogram's name does not say it."""


@torch.no_grad()
def unit_histogram(values: Tensor, bins: int = BINS) -> Histogram:  # values [N] in 0..1
    """Counts in `bins` equal parts of 0..1; the last one includes 1. NaN does not count."""
    finite = values.detach().float().reshape(-1)
    index = (finite[~finite.isnan()].clamp(0, 1) * bins).long().clamp_max(bins - 1)
    counts = torch.bincount(index, minlength=bins).tolist()
    return {"edges": [i / bins for i in range(bins + 1)], "counts": counts}
