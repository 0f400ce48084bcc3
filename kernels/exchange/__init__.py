"""The stages of a rendering whose records travel between ranks.

    project_records  -> pack_records    -> (exchange) -> unpack_records -> blend_records
    (backward)       <- unpack_gradients <- (exchange) <- pack_gradients <- (its backward)

Projection makes records of this rank's Gaussians in all cameras; each task, a window of one image,
gets those that meet it; whoever has the task blends them. A record travels as 12 numbers, 48 bytes
in float32, and so does its gradient. No autograd node crosses: `values` are leaves on both sides.
kernels/exchange/packing.py says how rows lie in buffers.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import Capacity, RasterInputs, RenderSettings
from ..backend import uses_triton
from ..reference import exchange as reference
from ..reference.projection import project as project_reference

COLUMNS = reference.COLUMNS
TABLE_COLUMNS = 5  # camera, top, bottom, base, capacity


class ProjectedRecords(NamedTuple):
    """Records of N Gaussians in C cameras, in the order of cameras and Gaussians."""

    values: Tensor
    """[R, 16], or [R, 12] of the reference; differentiable."""
    gaussian_ids: Tensor
    """[R] camera N + Gaussian."""
    radii: Tensor
    """[C, N, 2] int32 half extents in pixels, 0 = culled."""
    means2d: Tensor
    """[C, N, 2]; its `.grad` after the backward is that of image positions, in pixels."""
    masks: Tensor | None
    """[N] as given, or as drawn and then differentiable."""
    n_rows: Tensor
    """[1] int32 how many rows there are, also where that is more than R."""


class Received(NamedTuple):
    """A task's records."""

    values: Tensor
    """[W capacity, 16], or 12 columns of the reference; of depth 0 where there is none."""
    ids: Tensor
    """[W capacity] int32."""


class Picture(NamedTuple):
    """What a task has rendered."""

    colors: Tensor
    """[H, W, 3] of the window; differentiable in `values`."""
    entries: Tensor
    """[rows of tiles] int32 or int64: entries of tile lists."""
    needed: Tensor
    """[] how many entries there should be room for."""


def project_records(
    inputs: RasterInputs,
    settings: RenderSettings,
    capacity: int | None = None,
    *,
    backend: str = "auto",
) -> ProjectedRecords:
    """Project Gaussians into every camera; as `kernels.project`, for either backend.

    Args:
        inputs: N Gaussians, which may be none, with spherical harmonics; C cameras.
        settings: Of a rendering in mode RGB.
        capacity: Rows R of records; None: as many as there may be. The reference has what it needs.
        backend: "triton" (CUDA), "reference" (PyTorch, anywhere) or "auto".
    """
    if not uses_triton(backend, inputs.means) or len(inputs.means) == 0:
        records = project_reference(inputs, settings)
        if records.means2d.requires_grad:
            records.means2d.retain_grad()
        values, names = reference.values_of(records)
        radii = torch.stack([view.radii for view in records.views])
        n_rows = torch.tensor([len(values)], dtype=torch.int32, device=values.device)
        return ProjectedRecords(values, names, radii, records.means2d, records.masks, n_rows)
    from ..projection import project

    limits = None if capacity is None else Capacity(capacity, 0)
    made = project(inputs, settings, limits, for_lists=False)
    assert made.gaussian_ids is not None
    n_rows = made.workspace[:1]
    return ProjectedRecords(
        made.values, made.gaussian_ids, made.radii, made.means2d, made.masks, n_rows
    )


def pack_records(
    projected: ProjectedRecords,
    ids: Tensor,  # [N] int32
    table: Tensor,  # [T, 5] int32
    out: Tensor,  # [S, 12]
    *,
    backend: str = "auto",
) -> tuple[Tensor, Any]:  # [T] int32
    """Copy every record to the tasks whose windows it meets.

    Args:
        projected: Of `project_records`.
        ids: Names of the Gaussians, which travel along. [N]
        table: Camera, first row of pixels, the one after the last, row of the buffer where its part
            begins, and rows that it holds besides the header; of each task, on the device. [T, 5]
        out: The buffer. Rows that nothing meets are left as they are.
        backend: As in `project_records`.

    Returns:
        How many rows each task should have had room for, on the device [T]; and what
        `unpack_gradients` needs.
    """
    values, names, radii, _, _, n_rows = projected
    if not uses_triton(backend, values) or len(ids) == 0:
        return reference.pack_records(values.detach(), names, radii, ids, table, out)
    from . import packing

    return packing.pack_records(values.detach(), names, radii, n_rows, ids, table, out)


def unpack_records(
    buffer: Tensor,  # [W, 1 + capacity, 12]
    *,
    backend: str = "auto",
) -> Received:
    """A task's part of what has come from every rank, as records. Rows of sources may be spaced."""
    if not uses_triton(backend, buffer):
        return Received(*reference.unpack_records(buffer))
    from . import packing

    return Received(*packing.unpack_records(buffer))


def blend_records(
    received: Received,
    settings: RenderSettings,
    background: Tensor | None,  # [3]
    capacity: int | None = None,
    *,
    by_id: bool = False,
    backend: str = "auto",
) -> Picture:
    """Render a window from records, differentiably.

    Args:
        received: Of `unpack_records`.
        settings: Of the window: its size; deterministic and exact count.
        background: Colour behind everything. [3]
        capacity: Entries to make room for; None: as many as there are, which waits.
        by_id: Draw records of equal depth in ascending order of ids; the reference always does.
        backend: As in `project_records`.
    """
    values, ids = received
    if not uses_triton(backend, values):
        colors, entries = reference.blend_records(values, ids, settings, background)
        return Picture(colors, entries, entries.sum())
    from ..binning import bin_tiles
    from ..blending import blend
    from ..projection import ENTRIES_NEEDED
    from ..projection.records import Records

    if by_id:
        values = values.index_select(0, ids.argsort(stable=True))
    size = settings.width, settings.height
    records = Records(values, None, None, 1, len(values), *size)
    limits = None if capacity is None else Capacity(0, capacity)
    lists = bin_tiles(records, limits, deterministic=settings.deterministic)
    backgrounds = None if background is None else background[None]
    colors, _ = blend(records, lists, settings, backgrounds=backgrounds)
    rows = lists.offsets[:: records.tiles_x]
    assert lists.counts is not None
    return Picture(colors[0], rows[1:] - rows[:-1], lists.counts[ENTRIES_NEEDED])


def pack_gradients(
    v_values: Tensor,  # [W capacity, 16 or 12]
    out: Tensor,  # [W, 1 + capacity, 12]
    *,
    backend: str = "auto",
) -> None:
    """Copy the gradients of a task's records to where they came from in the buffer, which may be
    that of the records themselves.
    """
    if not uses_triton(backend, v_values):
        return reference.pack_gradients(v_values, out)
    from . import packing

    return packing.pack_gradients(v_values, out)


def unpack_gradients(
    buffer: Tensor,  # [S, 12]
    sent: Any,
    projected: ProjectedRecords,
) -> Tensor:  # as values
    """The gradient of `projected.values`: of every row the sum over the tasks that it went to."""
    if isinstance(sent, reference.Sent):
        v_values = torch.zeros_like(projected.values)
        reference.unpack_gradients(buffer, sent, v_values)
        return v_values
    from . import packing

    v_values = torch.empty_like(projected.values)  # every row is written
    packing.unpack_gradients(buffer, sent, v_values)
    return v_values
