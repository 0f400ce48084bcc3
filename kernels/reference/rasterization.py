"""All stages in order: the reference behind `kernels.rasterization(backend="reference")`.

project -> bin_tiles -> blend
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ..arguments import Capacity, RasterInputs, RenderSettings
from ..constants import TILE_SIZE
from ..lazy_info import Info
from .binning import bin_tiles, tiles_per_gauss
from .blending import blend
from .contributions import Contributions
from .projection import project
from .tile_keys import keys_of_boxes


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
    depths = torch.stack([view.spread(view.projected.depths) for view in views])
    info: dict[str, Any] = {
        **describe_images(len(views), width, height),
        "radii": radii,
        "means2d": means2d,
        "depths": depths,
        "conics": torch.stack([view.spread(view.projected.conics) for view in views]),
        "opacities": torch.stack([view.spread(view.projected.opacities) for view in views]),
        "tiles_per_gauss": tiles,
        "n_isects": tiles.sum(),
        "n_nonfinite": records.nonfinite.sum(),
        "masks": records.masks,
    }
    if scores is not None:
        info |= scores.info()
    boxes = means2d.detach(), radii, depths.detach(), width, height, TILE_SIZE
    return image, alphas, Info(info, boxes, _LATER)


def describe_images(n_cameras: int, width: int, height: int) -> dict[str, Any]:
    """Entries of `info` that the sizes alone give; without packing there are no ids."""
    return {
        "width": width,
        "height": height,
        "tile_size": TILE_SIZE,
        "tile_width": -(-width // TILE_SIZE),
        "tile_height": -(-height // TILE_SIZE),
        "n_cameras": n_cameras,
        "n_batches": 1,
        "batch_ids": None,
        "camera_ids": None,
        "gaussian_ids": None,
    }


_LATER: dict[str, Callable[[tuple[Any, ...]], Tensor]] = {
    "isect_ids": lambda boxes: keys_of_boxes(*boxes).isect_ids,
    "flatten_ids": lambda boxes: keys_of_boxes(*boxes).flatten_ids,
    "isect_offsets": lambda boxes: keys_of_boxes(*boxes).isect_offsets,
}
