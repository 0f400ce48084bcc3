"""All stages in order: the reference behind `kernels.rasterization(backend="reference")`.

project -> bin_tiles -> blend
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from ..arguments import Capacity, RasterInputs, RenderSettings
from ..constants import TILE_SIZE
from .binning import bin_tiles, tiles_per_gauss
from .blending import blend
from .contributions import Contributions
from .projection import project


def rasterize(
    inputs: RasterInputs,
    settings: RenderSettings,
    capacity: Capacity | None = None,
    kind: Hashable = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render without validating; `kernels.rasterization` documents arguments and results.

    Args:
        inputs: Tensors.
        settings: Numbers and flags; always `exact`.
        capacity: Not for this backend.
        kind: Without a use here.

    Raises:
        ValueError: a capacity is given.
    """
    if capacity is not None:
        raise ValueError("capacity: only backend 'triton' has buffers of fixed capacity")
    records = project(inputs, settings)
    means2d, width, height = records.means2d, settings.width, settings.height
    if means2d.requires_grad:
        means2d.retain_grad()
    N = inputs.means.shape[0]
    scores = Contributions(N, inputs.means) if settings.contributions else None
    image, alphas = blend(
        records, bin_tiles(records), settings, backgrounds=inputs.backgrounds, contributions=scores
    )
    views = records.views
    radii = torch.stack([view.radii for view in views])
    tiles = tiles_per_gauss(means2d.detach(), radii, width, height, TILE_SIZE)
    info: dict[str, Any] = {
        "width": width,
        "height": height,
        "tile_size": TILE_SIZE,
        "radii": radii,
        "means2d": means2d,
        "depths": torch.stack([view.spread(view.projected.depths) for view in views]),
        "conics": torch.stack([view.spread(view.projected.conics) for view in views]),
        "tiles_per_gauss": tiles,
        "n_isects": tiles.sum(),
        "n_nonfinite": records.nonfinite.sum(),
        "masks": records.masks,
    }
    if scores is not None:
        info |= scores.info()
    return image, alphas, info
