r"""What every Gaussian contributes to the images: maximum and sum of m alpha T, pixel counts.

One more walk through the tile lists, as blending/ does it, with sums over the pixels of a block
in place of sums over its Gaussians. The Gaussian that weighs most in a pixel is known at the end
of the list, so its count is added once per pixel. Sums are taken in fixed point, over the pixels
of a tile first: integers add up to the same in any order, so all four are the same in every run.

    contrib_max [N], contrib_sum [N] float32; contrib_count [N], contrib_top [N] int64
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..binning import TileLists
from ..runtime.launch import launch
from . import BlendSettings
from .pairs import (
    CHUNK,
    PIXELS,
    T_MIN,
    block_max,
    chunk_alphas,
    column_order,
    load_chunk,
    load_ids,
    per_quad,
    quads_to_block,
    tile_axes,
    tile_pixels,
    transmittances,
)

# Units per 1 of fixed-point sums: a weight is at least 4e-7, and a million full tiles fit.
UNIT = tl.constexpr(float(1 << 36))


@triton.jit(do_not_specialize=["W", "H", "tiles_x", "tiles_y", "N"])
def _contributions_kernel(
    records_ptr,  # [R, 16]
    gaussian_ids_ptr,  # [R]
    flatten_ids_ptr,  # [I]
    offsets_ptr,  # [C * TH * TW + 1]
    max_ptr,  # [N] in and out
    sum_ptr,  # [N] int64 in and out, in UNITs
    count_ptr,  # [N] int64 in and out
    top_ptr,  # [N] int64 in and out
    W,
    H,
    tiles_x,
    tiles_y,
    N,
):
    tile = tl.program_id(0)
    camera, xi, yi, inside, pixel = tile_pixels(tile, W, H, tiles_x, tiles_y)
    centre_x, centre_y, x, y = tile_axes(tile, tiles_x, tiles_y)
    run = per_quad(tl.where(inside, 1.0, 0.0))
    best = tl.zeros([PIXELS], tl.float32)
    best_id = tl.zeros([PIXELS], tl.int32)
    order = column_order()[None, :]
    i = tl.load(offsets_ptr + tile)
    hi = tl.load(offsets_ptr + tile + 1)
    alive = 1.0
    ids = load_ids(flatten_ids_ptr, i, hi)
    ahead = load_chunk(records_ptr, ids, i, hi, False)
    ids = load_ids(flatten_ids_ptr, i + CHUNK, hi)
    while (i < hi) & (alive >= T_MIN):
        rows, there, mx, my, A, B, C, lo, m, unused = ahead
        ahead = load_chunk(records_ptr, ids, i + CHUNK, hi, False)
        ids = load_ids(flatten_ids_ptr, i + 2 * CHUNK, hi)
        _, rest = chunk_alphas(mx, my, A, B, C, lo, m, centre_x, centre_y, x, y)
        w, _, run, _ = transmittances(rest, run, T_MIN)
        w = quads_to_block(w)
        n = tl.load(gaussian_ids_ptr + rows, mask=there, other=0) % N
        highest = tl.max(w, 0)
        used = there & (highest > 0.0)
        tl.atomic_max(max_ptr + n, highest, mask=used, sem="relaxed")
        total = (tl.sum(w, 0) * UNIT).to(tl.int64)
        tl.atomic_add(sum_ptr + n, total, mask=used, sem="relaxed")
        count = tl.sum((w > 0.0).to(tl.int32), 0).to(tl.int64)
        tl.atomic_add(count_ptr + n, count, mask=used, sem="relaxed")
        # the nearest of equals: the first entry that reaches the maximum
        most = tl.max(w, 1)
        place = tl.min(tl.where(w == most[:, None], order, CHUNK), 1)
        name = tl.sum(tl.where(order == place[:, None], n[None, :], 0), 1)
        better = most > best
        best_id = tl.where(better, name, best_id)
        best = tl.where(better, most, best)
        alive = block_max(run)
        i += CHUNK
    one = tl.full([PIXELS], 1, tl.int64)
    tl.atomic_add(top_ptr + best_id, one, mask=best > 0.0, sem="relaxed")


def contributions(
    values: Tensor,  # [R, 16]
    gaussian_ids: Tensor,  # [R]
    lists: TileLists,
    settings: BlendSettings,
) -> dict[str, Tensor]:
    """Scores of every Gaussian over all cameras, on the device.

    Args:
        values: Records of projection.
        gaussian_ids: Camera N + Gaussian of each row.
        lists: Tile lists of binning/.
        settings: Sizes.

    Returns:
        contrib_max [N] and contrib_sum [N] float32, contrib_count [N] and contrib_top [N] int64.
    """
    N, layout = settings.n_gaussians, lists.layout
    largest = torch.zeros(N, device=values.device)
    counts = torch.zeros(3, N, dtype=torch.int64, device=values.device)
    launch(
        _contributions_kernel,
        (layout.n_tiles,),
        values,
        gaussian_ids,
        lists.flatten_ids,
        lists.offsets,
        largest,
        counts[0],
        counts[1],
        counts[2],
        settings.width,
        settings.height,
        layout.tiles_x,
        layout.tiles_y,
        N,
        num_warps=1,
    )
    return {
        "contrib_max": largest,
        "contrib_sum": (counts[0].double() / UNIT.value).float(),
        "contrib_count": counts[1],
        "contrib_top": counts[2],
    }
