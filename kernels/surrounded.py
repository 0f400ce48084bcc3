"""A rendering of Gaussians among frozen others, which get no gradient.

    project (own)  ->  project_behind (frozen), in the rows that are left  ->  bin_tiles  ->  blend

The image is that of all of them, and the gradient of the own is that in the whole. Frozen records
that reach no pixel of a camera's box are left out, so that who needs a part of an image pays for
that part: there the image is exact, elsewhere it is not. Boxes are read on the device, and nothing
waits for it where a capacity is given: a CUDA graph can hold the call.

A capacity is that of all, own and frozen, and so is what `info["counts"]` says would have been
needed: whose Gaussians an image shows differs from view to view, how many it shows less so.
"""

from typing import Any

import torch
from torch import Tensor

from .arguments import Capacity, RasterInputs, RenderSettings
from .backend import uses_triton
from .constants import TILE_SIZE
from .reference.binning import bin_tiles as bin_reference
from .reference.binning import tiles_per_gauss
from .reference.blending import blend as blend_reference
from .reference.contributions import Contributions
from .reference.projection import project as project_reference
from .reference.surrounded import join, outside_boxes_culled

GUESS = 4  # one visible pair in so many, in a call that may be repeated


def rasterization_among(
    own: RasterInputs,
    frozen: RasterInputs,
    settings: RenderSettings,
    frozen_settings: RenderSettings,
    *,
    boxes: Tensor | None = None,  # [C, 4]
    capacity: Capacity | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render N Gaussians among M frozen ones into C cameras; differentiable in the N.

    Args:
        own: Gaussians with spherical harmonics or, without a degree, colours [N, 3]; cameras,
            backgrounds; float32, or float64 with the reference. Not validated.
        frozen: Others, in the same cameras; with harmonics where the own have some.
        settings: Of the rendering; mode RGB, without absgrad.
        frozen_settings: How to take the frozen: sh_degree and raw may differ.
        boxes: Left, top, right, bottom of the pixels that have to be right; None: all. [C, 4] int32
        capacity: Fixed capacities, as in `kernels.rasterization`.
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".

    Returns:
        Images [C, H, W, 3], alphas [C, H, W, 1], and a dictionary about the N own Gaussians: radii,
        means2d (with .grad after the backward), masks and, with settings.contributions, depths,
        contrib_max and so on, as `kernels.rasterization` has them; n_isects and n_nonfinite of all;
        counts [2] int32 with the Triton backend; frozen_radii [C, M, 2] int32, frozen_masks [M] or
        None.

    Raises:
        ValueError: a setting is not supported, or a capacity is given to the reference.
    """
    if settings.render_mode != "RGB" or settings.absgrad:
        raise ValueError("rasterization_among: expected render_mode RGB without absgrad")
    if uses_triton(backend, own.means):
        return _triton(own, frozen, settings, frozen_settings, boxes, capacity)
    if capacity is not None:
        raise ValueError("capacity: only backend 'triton' has buffers of fixed capacity")
    return _reference(own, frozen, settings, frozen_settings, boxes)


def _triton(
    own: RasterInputs,
    frozen: RasterInputs,
    settings: RenderSettings,
    frozen_settings: RenderSettings,
    boxes: Tensor | None,
    capacity: Capacity | None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    # Triton is not everywhere, and nothing else needs it.
    from .binning import ListsLayout, list_tiles
    from .binning.depth_order import MEMBER_SHARE
    from .blending import blend, blend_settings
    from .blending.contributions import contributions
    from .projection import ENTRIES, NONFINITE, ROWS, project, project_behind
    from .projection.record import record_depths, spread
    from .projection.records import Records

    N, M, C = len(own.means), len(frozen.means), len(own.viewmats)
    most = C * (N + M)
    R = most // GUESS + 1024 if capacity is None else capacity.rows
    while True:
        R = min(max(R, 1), most)
        mine = project(own, settings, Capacity(R, 0), n_ids=N + M)
        theirs = project_behind(mine, frozen, frozen_settings, boxes)
        needed = R if capacity is not None else int(theirs.workspace[ROWS])
        if needed <= R:
            break
        R = needed
    values, ids, keys = mine.values, mine.gaussian_ids, theirs
    assert ids is not None
    records = Records(values, ids, None, C, N + M, settings.width, settings.height)
    if capacity is None:
        entries, members = keys.tile_counts[:2].sum(1).tolist()
        n_entries = max(entries, MEMBER_SHARE.value * members, 1)
    else:
        n_entries = capacity.entries
    tiles = records.tiles_x, records.tiles_y
    layout = ListsLayout(C, *tiles, n_entries, settings.deterministic)
    lists = list_tiles(records, keys, layout)
    features = None
    if settings.sh_degree is None:  # records have the colours of harmonics alone
        table = torch.cat([own.colors, frozen.colors.detach()])
        features = table.index_select(0, ids.long() % (N + M))
    image, alphas = blend(records, lists, settings, features=features, backgrounds=own.backgrounds)
    info: dict[str, Any] = {
        "width": settings.width,
        "height": settings.height,
        "radii": mine.radii,
        "means2d": mine.means2d,
        "masks": mine.masks,
        "n_isects": keys.counts[ENTRIES : ENTRIES + 1],
        "n_nonfinite": keys.counts[NONFINITE : NONFINITE + 1],
        "counts": keys.counts[:2],
        "frozen_radii": theirs.radii,
        "frozen_masks": theirs.masks,
    }
    if settings.contributions:
        s = blend_settings(settings, C, N + M, None, True)
        scores = contributions(values.detach(), ids, lists, s)
        info |= {name: x[:N] for name, x in scores.items()}
        info["depths"] = spread(record_depths(mine.values), mine.rows)
    return image, alphas, info


def _reference(
    own: RasterInputs,
    frozen: RasterInputs,
    settings: RenderSettings,
    frozen_settings: RenderSettings,
    boxes: Tensor | None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    mine = project_reference(own, settings)
    if mine.means2d.requires_grad:
        mine.means2d.retain_grad()
    with torch.no_grad():
        theirs = project_reference(frozen, frozen_settings)
        theirs = theirs if boxes is None else outside_boxes_culled(theirs, boxes)
    records = join(mine, theirs)
    N, size = len(own.means), (settings.width, settings.height)
    scores = None
    if settings.contributions:
        scores = Contributions(N + len(frozen.means), own.means)
    image, alphas = blend_reference(
        records,
        bin_reference(records),
        settings,
        backgrounds=own.backgrounds,
        contributions=scores,
    )
    radii = torch.stack([view.radii for view in records.views])
    info: dict[str, Any] = {
        "width": settings.width,
        "height": settings.height,
        "radii": radii[:, :N],
        "means2d": mine.means2d,
        "masks": mine.masks,
        "n_isects": tiles_per_gauss(records.means2d.detach(), radii, *size, TILE_SIZE).sum(),
        "n_nonfinite": records.nonfinite.sum(),
        "frozen_radii": radii[:, N:],
        "frozen_masks": theirs.masks,
    }
    if scores is not None:
        info |= {name: x[:N] for name, x in scores.info().items()}
        info["depths"] = torch.stack([v.spread(v.projected.depths) for v in mine.views])
    return image, alphas, info
