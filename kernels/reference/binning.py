r"""Which pixels and tiles a Gaussian reaches.

The support is the ellipse d^T conic d <= 2 ln(255 o) =: reach. On the row of pixels at dy it is

    dx in (xy / yy) dy  +-  sqrt((reach - dy^2 / yy) / A)

with cov2d = (xx, xy, yy) and A = conic_xx, so pixels are found exactly, without testing tiles.
Everything here is integer geometry without gradients; borders move out a little and the exact
test on alpha follows where the fragment is evaluated.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..constants import ALPHA_MIN
from .projection import EXTENT_SLACK, Records

# An image with more fragments than this is blended in bands of rows, and backward computes every
# band again: a fragment costs about 100 bytes in either pass.
MAX_FRAGMENTS = 6_000_000


class Spans(NamedTuple):
    """Runs of pixels: one entry per Gaussian and image row, Gaussians in ascending order."""

    gaussians: Tensor  # [S] int64
    rows: Tensor  # [S] int64
    starts: Tensor  # [S] int64, first column
    lengths: Tensor  # [S] int64


def _pixels(low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First index and number of the pixels whose centres lie in [low, high], within the image."""
    first = torch.ceil(low - 0.5).clamp(0, size).to(torch.int64)
    last = torch.floor(high - 0.5).clamp(-1, size - 1).to(torch.int64)
    return first, (last - first + 1).clamp_min(0)


def _expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For counts [M]: the owner of each of the sum(counts) items, and its number there."""
    owners = torch.repeat_interleave(counts)
    first = torch.cumsum(counts, 0) - counts
    return owners, torch.arange(owners.shape[0], device=counts.device) - first[owners]


def gaussian_spans(
    means2d: Tensor,  # [M, 2]
    covars2d: Tensor,  # [M, 3]
    conics: Tensor,  # [M, 3]
    opacities: Tensor,  # [M]
    width: int,
    height: int,
) -> Spans:
    """The pixels of each Gaussian's support, row by row."""
    reach = 2 * torch.log(opacities / ALPHA_MIN).clamp_min(0) * (1 + EXTENT_SLACK) + EXTENT_SLACK
    xy, yy = covars2d[:, 1], covars2d[:, 2]
    extent = (reach * yy).sqrt()
    first, counts = _pixels(means2d[:, 1] - extent, means2d[:, 1] + extent, height)
    owners, number = _expand(counts)
    rows = first[owners] + number

    table = torch.stack([means2d[:, 0], means2d[:, 1], xy / yy, 1 / yy, reach, 1 / conics[:, 0]], 1)
    mx, my, slope, inv_yy, reach, inv_a = table[owners].unbind(1)
    dy = rows.to(my.dtype) + 0.5 - my
    middle = mx + slope * dy
    half = ((reach - dy * dy * inv_yy).clamp_min(0) * inv_a).sqrt() + EXTENT_SLACK
    starts, lengths = _pixels(middle - half, middle + half, width)
    return Spans(owners, rows, starts, lengths)


def split_rows(spans: Spans, height: int, max_fragments: int) -> list[Spans]:
    """Cut the image into bands of whole rows with at most about max_fragments fragments each."""
    per_row = torch.zeros(height, dtype=torch.int64, device=spans.rows.device)
    per_row.index_add_(0, spans.rows, spans.lengths)
    bands, start, total = [], 0, 0
    for row, count in enumerate(per_row.tolist()):
        if total + count > max_fragments and row > start:
            bands.append((start, row))
            start, total = row, 0
        total += count
    bands.append((start, height))
    if len(bands) == 1:
        return [spans]
    result = []
    for low, high in bands:
        inside = torch.nonzero((spans.rows >= low) & (spans.rows < high)).squeeze(1)
        result.append(Spans(*(entry[inside] for entry in spans)))
    return result


def span_fragments(spans: Spans, width: int) -> tuple[Tensor, Tensor]:
    """Gaussian and pixel (row * width + column) of every fragment: two int64 tensors [P]."""
    owners, number = _expand(spans.lengths)
    first = spans.rows * width + spans.starts
    return spans.gaussians[owners], first[owners] + number


def tiles_per_gauss(
    means2d: Tensor,  # [M, 2]
    radii: Tensor,  # [M, 2] int32
    width: int,
    height: int,
    tile_size: int,
) -> Tensor:
    """Number of tiles [M] int32 that the bounding box of each support touches; 0 if culled."""
    radius = radii.to(means2d.dtype)
    last = means2d.new_tensor([(width - 1) // tile_size, (height - 1) // tile_size])
    low = torch.floor((means2d - radius) / tile_size).clamp_min(0)
    high = torch.minimum(torch.floor((means2d + radius) / tile_size), last)
    tiles = (high - low + 1).clamp_min(0).prod(-1)
    return torch.where((radii > 0).all(-1), tiles, 0.0).to(torch.int32)


@torch.no_grad()
def bin_tiles(records: Records) -> list[list[Spans]]:
    """The runs of pixels that every camera's records reach: the second stage of a rendering.

    They stand for the kernels' tile lists and are exact to the pixel. Each camera's image is cut
    into bands of rows with at most about MAX_FRAGMENTS pixels of Gaussians each.
    """
    width, height = records.width, records.height
    lists = []
    for c, view in enumerate(records.views):
        p, means2d = view.projected, records.means2d[c].index_select(0, view.ids)
        spans = gaussian_spans(means2d, p.covars2d, p.conics, p.opacities, width, height)
        lists.append(split_rows(spans, height, MAX_FRAGMENTS))
    return lists
