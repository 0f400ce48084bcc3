r"""Records on their way between ranks, in plain PyTorch: what kernels/exchange/ does, defined.

A record is 12 columns of the rasterizer's type, named as in kernels/projection/record.py, but that

     5 OPACITY        o itself: a logarithm would round
    11 ID             the Gaussian's id, its bits as those of an integer as wide

Who receives it has the depth at hand and puts it in the place of the id. Records of a projection
are those of its visible Gaussians, camera by camera, and within a camera in the order of Gaussians.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import RenderSettings
from ..constants import TILE_SIZE
from .binning import bin_tiles
from .blending import blend
from .projection import Projection, Records, View

COLUMNS = 12
OPACITY, MASK, DEPTH, ID = 5, 6, 7, 11
WIDENED = 1.01  # covariances of received records: their borders must lose no pixel


class Sent(NamedTuple):
    """Where the rows of a projection stand in a send buffer."""

    rows: list[Tensor]  # of each task, [n] int64
    table: Tensor  # [T, 5], as the kernels have it


def integers_of(x: Tensor) -> Tensor:
    """The bits of floats as integers."""
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)


def values_of(records: Records) -> tuple[Tensor, Tensor]:  # [R, 12], [R] int64
    """Records in rows, differentiable, and camera N + Gaussian of each; the id's column is 0."""
    parts, names = [], []
    for c, view in enumerate(records.views):
        ids, order = view.ids.sort()
        p, one = view.projected, view.projected.depths.new_ones(len(ids))
        masks = one if view.masks is None else view.masks
        assert view.colors is not None
        columns = [
            records.means2d[c].index_select(0, view.ids),
            p.conics,
            torch.stack([p.opacities, masks, p.depths], 1),
            view.colors,
            torch.zeros_like(one)[:, None],
        ]
        parts.append(torch.cat(columns, 1)[order])
        names.append(ids + c * len(view.radii))
    return torch.cat(parts), torch.cat(names)


def pack_records(
    values: Tensor,  # [R, 12]
    gaussian_ids: Tensor,  # [R] int64
    radii: Tensor,  # [C, N, 2] int32
    ids: Tensor,  # [N] int32
    table: Tensor,  # [T, 5] int32
    out: Tensor,  # [S, 12]
) -> tuple[Tensor, Sent]:  # [T] int32
    """Copy the rows that each task's window meets; kernels.exchange.pack_records documents it."""
    N = radii.shape[1]
    cameras, reach = gaussian_ids // N, radii[..., 1].reshape(-1)[gaussian_ids]
    counts, rows = [], []
    for camera, top, bottom, base, capacity in table.tolist():
        my = values[:, 1]
        meets = (cameras == camera) & (my + reach > top) & (my - reach < bottom)
        those = meets.nonzero()[:, 0]
        counts.append(len(those))
        integers_of(out[base])[0] = len(those)
        those = those[:capacity]
        packed = values[those]
        packed[:, 1] -= top
        integers_of(packed)[:, ID] = ids[gaussian_ids[those] % N].to(integers_of(packed).dtype)
        out[base + 1 : base + 1 + len(those)] = packed
        rows.append(those)
    return torch.tensor(counts, dtype=torch.int32), Sent(rows, table)


def unpack_records(buffer: Tensor) -> tuple[Tensor, Tensor]:  # [W, 1 + capacity, 12]
    """Rows [W capacity, 12] of one task, of depth 0 where there is none, and their ids."""
    counts = integers_of(buffer[:, 0, :1].contiguous())[:, 0]
    rows = buffer[:, 1:]
    there = torch.arange(rows.shape[1], device=rows.device) < counts[:, None]
    values = torch.where(there[..., None], rows, 0.0).reshape(-1, COLUMNS)
    ids = integers_of(values)[:, ID].to(torch.int32, copy=True)
    values[:, ID] = values[:, DEPTH]
    return values, ids


def pack_gradients(v_values: Tensor, out: Tensor) -> None:  # [W capacity, 12], [W, 1 + cap., 12]
    """Gradients of the rows of one task, as they go back."""
    out[:, 0] = 0.0
    out[:, 1:] = v_values.view(len(out), -1, COLUMNS)


def unpack_gradients(buffer: Tensor, sent: Sent, v_values: Tensor) -> None:  # [S, 12], [R, 12]
    """Add up what has come back for each row."""
    for rows, (_, _, _, base, _) in zip(sent.rows, sent.table.tolist(), strict=True):
        v_values.index_add_(0, rows, buffer[base + 1 : base + 1 + len(rows)])


class _Picture(NamedTuple):
    colors: Tensor  # [H, W, 3]
    entries: Tensor  # [tile rows] int64


def blend_records(
    values: Tensor,  # [R, 12]
    ids: Tensor,  # [R] int32
    settings: RenderSettings,
    background: Tensor | None,  # [3]
) -> _Picture:
    """Blend received rows, differentiably, nearest first and at equal depths by id."""
    there = (values[:, DEPTH] > 0).nonzero()[:, 0]
    by_id = there[ids[there].argsort()]
    order = by_id[values.detach()[by_id, DEPTH].sort(stable=True).indices]
    x = values.index_select(0, order)
    mean, conic, o, mask, depth, color = x[:, :2], x[:, 2:5], x[:, 5], x[:, 6], x[:, 7], x[:, 8:11]
    A, B, C = (WIDENED * conic.detach() / _determinant(conic.detach())[:, None]).unbind(1)
    radii = torch.zeros(len(x), 2, dtype=torch.int32, device=x.device)
    projected = Projection(mean, depth, conic, torch.stack([C, -B, A], 1), o, radii)
    view = View(torch.arange(len(x), device=x.device), projected, color, mask, radii)
    nothing = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    width, height = settings.width, settings.height
    records = Records([view], mean[None], mask, nothing, width, height)
    lists = bin_tiles(records)
    backgrounds = None if background is None else background[None]
    colors, _ = blend(records, lists, settings, backgrounds=backgrounds)
    entries = torch.zeros(-(-height // TILE_SIZE), dtype=torch.int64, device=x.device)
    for spans in lists[0]:
        entries.index_add_(0, spans.rows // TILE_SIZE, spans.lengths)
    return _Picture(colors[0], entries)


def _determinant(conic: Tensor) -> Tensor:  # [M, 3] -> [M]
    A, B, C = conic.unbind(1)
    return (A * C - B * B).clamp_min(torch.finfo(conic.dtype).tiny)
