"""Gaussians as they are drawn, and where each comes from in the model."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Frozen(NamedTuple):
    """Gaussians that are drawn among those of a model, and get no gradient. M of them."""

    splats: Splats
    """All of them, as they are drawn."""
    ids: Tensor
    """Names in random draws. [M] int32"""
    mask_logits: Tensor | None = None
    """Of those whose masks are drawn. [M, 2]"""
    boxes: Tensor | None = None
    """Pixels of each of the run's cameras that the model reaches, with a margin: left, top, right,
    bottom. Elsewhere an image need not be right. None: it is right everywhere. [cameras, 4] int32
    """


class Splats(NamedTuple):
    """Gaussians as they are drawn: all that rendering needs but the camera. N of them."""

    means: Tensor
    """[N, 3]"""
    quats: Tensor
    """(w, x, y, z), of any length. [N, 4]"""
    scales: Tensor
    """Standard deviations along the axes, or their logarithms where `raw`. [N, 3]"""
    opacities: Tensor
    """In 0..1, or logits where `raw`. [N]"""
    colors: Tensor
    """With an SH degree the constant coefficients [N, 1, 3], else colours [N, D]."""
    colors_rest: Tensor | None = None
    """The other SH coefficients. [N, K - 1, 3]"""
    sh_degree: int | None = None
    """Highest degree to use, 0 to 3."""
    raw: bool = False
    """Whether exp and sigmoid are left to the rasterizer."""
    rows: Tensor | None = None
    """Row of the model that each group of Gaussians comes from, -1 where a place is empty (opacity
    0); None: one Gaussian per row, in order. [V] int32"""
    antialiased: bool = False
    """Whether opacities fall where the rasterizer widens what is smaller than a pixel."""
    missing: Tensor | None = None
    """Rows that were to be drawn and had no room; a captured step with any does not count. [1]
    int32"""
    frozen: Frozen | None = None
    """What is drawn among them; a rendering's results are about the others."""

    def detached(self) -> Splats:
        """The same without gradients."""
        tensors = {name: x for name, x in self._asdict().items() if isinstance(x, Tensor)}
        detached: dict[str, Any] = {name: x.detach() for name, x in tensors.items()}
        return self._replace(**detached)

    def gather(self, x: Tensor) -> Tensor:  # [rows * parts, ...] -> [N, ...]
        """Values per Gaussian of the model as values per Gaussian that is drawn, differentiable."""
        if self.rows is None:
            return x
        grouped = x.view(-1, len(self.means) // len(self.rows), *x.shape[1:])
        return grouped[self.rows.long().clamp_min(0)].flatten(0, 1)

    def scatter(self, x: Tensor, n_rows: int) -> Tensor:  # [N, ...] -> [n_rows * parts, ...]
        """The other way round; zeros for what is not drawn."""
        if self.rows is None:
            return x
        grouped = x.view(len(self.rows), -1, *x.shape[1:])
        out = x.new_zeros(n_rows + 1, *grouped.shape[1:])
        # empty places go to a row that is cut off
        out[torch.where(self.rows < 0, n_rows, self.rows).long()] = grouped
        return out[:n_rows].flatten(0, 1)
