"""One sharded step in three phases, each of which a rank computes for itself.

    project    this rank's Gaussians into all cameras; their records, packed by task
               -> exchange of records
    picture    records to windows of images, loss, gradients of records
               -> exchange of gradients, and of what all must know: the report
    finish     gradients of records to those of parameters

A phase only launches: it can be captured, with buffers that it is given, and what lies between two
phases is done by the host. A rank has two buffers: in one, records of its Gaussians leave and their
gradients come back; in the other, records come for its tasks and their gradients leave.

Nothing waits for the device. The report says whether a buffer was too small anywhere: `skip` then
is not 0 on any rank, the step must change nothing, and is taken once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import RasterInputs, RenderSettings, photometric_rows
from kernels import exchange as stages

from ..model.model import Splats
from ..model.view import View
from .exchange import Plan, Planner
from .ranks import EXCHANGE, Ranks

MASK_KEYWORDS = {"mask_logits", "mask_ids", "masks", "mask_seed"}
# of a report: overflow, wish to stop, sum of masks, and the five values of the photometric loss
OVERFLOW, STOP, KEPT, VALUES = 0, 1, 2, slice(3, 8)
HEAD = 8


class Report(NamedTuple):
    """What all ranks know of a step, as it comes to the host."""

    plan: Plan
    table: Tensor
    """Head, counts by task, needed entries by task, entries by strip, and of this rank alone shares
    of visible pairs by size. [W, L] float64, in the host's memory"""
    arrived: torch.cuda.Event | None
    capacities: dict[int, int]
    """Of entries, by own task."""


@dataclass
class Projection:
    """What `project` has made."""

    plan: Plan
    records: list[stages.ProjectedRecords]
    """Of each size."""
    sent: list[Any]
    counts: Tensor
    """Rows by task. [T] int32"""


@dataclass
class Shown:
    """What `picture` has made."""

    values: Tensor
    """Sums over own tasks of the photometric loss's values. [5]"""
    needed: dict[int, Tensor]
    """Entries by own task. []"""
    entries: dict[int, Tensor]
    """The same by strip of the own task. [strips]"""


class Buffers(NamedTuple):
    """What a rank sends and gets in a step."""

    own: Tensor
    """Records of this rank's Gaussians, then their gradients. [S, 12]"""
    tasks: Tensor
    """Records of this rank's tasks, then their gradients. [W, rows, 12]"""
    table: Tensor
    """What every rank has counted. [W, L] float64"""

    @property
    def arrived(self) -> Tensor:  # [W rows, 12]
        """`tasks`, as it is sent."""
        return self.tasks.view(-1, stages.COLUMNS)


class Rooms(NamedTuple):
    """What this rank's own buffers hold in a step."""

    rows: tuple[int, ...]
    """Records of each size."""
    entries: tuple[int, ...]
    """Entries of tile lists of each own task."""


class Layout(NamedTuple):
    """A plan on the device."""

    plan: Plan
    tables: list[Tensor]
    """Of each size, its tasks as kernels.exchange takes them. [T', 5] int32"""
    members: list[Tensor]
    """Which of all tasks they are. [T'] int64"""
    limits: Tensor
    """Capacity of each task. [T] int32"""
    rooms: Rooms


class ShardedStep:
    """The phases of one rank's steps.

    Args:
        ranks: Who takes part.
        planner: Plans; its twins on other ranks make the same.
        backend: As `kernels.rasterization` has it.

    `on_picture`, where it is set, sees the window that each own task has rendered. [rows, W, 3]
    """

    def __init__(
        self,
        ranks: Ranks,
        planner: Planner,
        *,
        backend: str = "auto",
    ) -> None:
        self.ranks, self.planner, self.backend = ranks, planner, backend
        self.on_picture: Callable[[Plan, int, Tensor], None] | None = None

    def rooms(self, plan: Plan, n: int) -> Rooms:
        """What to make room for, with n Gaussians here."""
        entries = [self.planner.entries(plan, k) for k in plan.of_rank(self.ranks.rank)]
        rows = [self.planner.rows(plan, size, n) for size in plan.sizes]
        return Rooms(tuple(rows), tuple(entries))

    def lay_out(self, plan: Plan, rooms: Rooms, device: torch.device) -> Layout:
        """Bring a plan to the device."""
        tables, members = [], []
        for size in plan.sizes:
            those = [k for k, task in enumerate(plan.tasks) if task.image in size.images]
            tables.append(_to_device(plan.table(those, size.images.start), device))
            members.append(_to_device(np.array(those), device))
        limits = _to_device(np.array(plan.capacities, dtype=np.int32), device)
        return Layout(plan, tables, members, limits, rooms)

    def buffers(self, plan: Plan, dtype: torch.dtype, device: torch.device) -> Buffers:
        """Room for what a step sends and gets. Rows that nothing meets are sent, not looked at."""
        size, n_rows = self.ranks.size, plan.received(self.ranks.rank)[0]
        length = HEAD + 2 * len(plan.tasks) + plan.first_strips[-1] + len(plan.sizes)
        return Buffers(
            torch.empty(plan.bases[-1], stages.COLUMNS, dtype=dtype, device=device),
            torch.empty(size, n_rows, stages.COLUMNS, dtype=dtype, device=device),
            torch.empty(size, length, dtype=torch.float64, device=device),
        )

    def project(
        self,
        layout: Layout,
        buffers: Buffers,
        splats: Sequence[Splats],
        views: Sequence[View],
        ids: Tensor,  # [N] int32
        keywords: Mapping[str, Any],
    ) -> Projection:
        """Project this rank's Gaussians and pack their records.

        Args:
            layout: Of the step.
            buffers: Where records go.
            splats: What is drawn, for each size.
            views: The cameras of each size.
            ids: Names of the Gaussians.
            keywords: Of a rendering: masks, deterministic.
        """
        plan, dtype = layout.plan, splats[0].means.dtype
        counts = torch.zeros(len(plan.tasks), dtype=torch.int32, device=ids.device)
        made = Projection(plan, [], [], counts)
        places = zip(plan.sizes, layout.rooms.rows, layout.tables, layout.members, strict=True)
        for (size, n_rows, table, members), s, view in zip(places, splats, views, strict=True):
            settings = self._settings(size.width, size.height, view, keywords, s)
            inputs = RasterInputs(
                s.means,
                s.quats,
                s.scales,
                s.opacities,
                s.colors,
                view.viewmats.to(dtype),
                view.Ks.to(dtype),
                s.colors_rest,
                lenses=None if view.lens_words is None else view.lens_words.to(dtype),
                **_masks(keywords),
            )
            records = stages.project_records(inputs, settings, n_rows, backend=self.backend)
            n, sent = stages.pack_records(records, ids, table, buffers.own, backend=self.backend)
            counts[members] = n
            made.records.append(records)
            made.sent.append(sent)
        return made

    def exchange_records(self, plan: Plan, buffers: Buffers) -> None:
        """Send records; what comes for this rank's tasks, by source."""
        self.ranks.enter(EXCHANGE)
        received = plan.received(self.ranks.rank)
        self.ranks.exchange(buffers.own, plan.sent(), received, buffers.arrived)

    def picture(
        self,
        layout: Layout,
        buffers: Buffers,
        targets: Sequence[Tensor],  # [rows, W, 3] uint8, by own task
        background: Tensor,  # [3]
        lambda_dssim: float,
        *,
        deterministic: bool = False,
        by_id: bool = False,
    ) -> Shown:
        """Render this rank's tasks, and put the gradients of their records in place of these."""
        ranks, plan, arrived = self.ranks, layout.plan, buffers.tasks
        values = torch.zeros(5, dtype=arrived.dtype, device=arrived.device)
        shown = Shown(values, {}, {})
        mine = plan.of_rank(ranks.rank)
        parts, rooms = _parts(plan, ranks.rank), layout.rooms.entries
        for k, part, room, target in zip(mine, parts, rooms, targets, strict=True):
            task, size = plan.tasks[k], plan.of_size(k)
            (first, last), (top, bottom) = task.rows(size.height), task.window(size.height)
            received = stages.unpack_records(arrived[:, part], backend=self.backend)
            leaf = received.values.requires_grad_()
            settings = RenderSettings(size.width, bottom - top, deterministic=deterministic)
            picture = stages.blend_records(
                stages.Received(leaf, received.ids),
                settings,
                background.to(leaf.dtype),
                room,
                by_id=by_id or deterministic,
                backend=self.backend,
            )
            if self.on_picture is not None:
                self.on_picture(plan, k, picture.colors.detach())
            sums, v_colors = photometric_rows(
                picture.colors.detach(),
                target,
                lambda_dssim,
                first=first - top,
                last=last - top,
                n_rows=size.height,
            )
            (v_records,) = torch.autograd.grad(picture.colors, leaf, v_colors)
            stages.pack_gradients(v_records, arrived[:, part], backend=self.backend)
            values += sums
            shown.needed[k] = picture.needed
            shown.entries[k] = _by_strip(picture.entries, task.above, task.last - task.first)
        return shown

    def counted(self, layout: Layout, made: Projection, shown: Shown) -> Tensor:  # [L] float64
        """What this rank has counted, the last of what `picture` does: its row of the table."""
        plan, device = layout.plan, made.counts.device
        firsts = plan.first_strips
        strips = torch.zeros(firsts[-1], dtype=torch.float64, device=device)
        needed = strips.new_zeros(len(plan.tasks))
        overflow = torch.zeros((), dtype=torch.bool, device=device)
        mine = plan.of_rank(self.ranks.rank)
        for k, room in zip(mine, layout.rooms.entries, strict=True):
            task = plan.tasks[k]
            begin = firsts[task.image] + task.first
            strips[begin : begin + task.last - task.first] = shown.entries[k].double()
            needed[k] = shown.needed[k]
            if self._bounded(made):
                overflow |= shown.needed[k] > room
        shares = []
        for size, records in zip(plan.sizes, made.records, strict=True):
            pairs = max(len(size.images) * records.radii.shape[1], 1)
            shares.append(records.n_rows.double() / pairs)
            if self._bounded(made):
                overflow |= (records.n_rows > len(records.values)).any()
        overflow |= (made.counts > layout.limits).any()
        masks = made.records[0].masks
        zero = kept = torch.zeros((), dtype=torch.float64, device=device)
        if masks is not None:
            kept = masks.detach().sum(dtype=torch.float64)
        return torch.cat(
            [
                torch.stack([overflow.double(), zero, kept]),
                shown.values.double(),
                made.counts.double(),
                needed,
                strips,
                *shares,
            ]
        )

    def report(
        self, plan: Plan, rooms: Rooms, row: Tensor, buffers: Buffers, *, wants_stop: bool
    ) -> Report:  # row [L] float64
        """Tell all ranks what each has counted."""
        self.ranks.enter(EXCHANGE)
        if wants_stop:
            row[STOP] = 1.0
        table = self.ranks.stack(row, buffers.table)
        arrived = None
        host = table
        if table.is_cuda:
            host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
            host.copy_(table, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        mine = plan.of_rank(self.ranks.rank)
        return Report(plan, host, arrived, dict(zip(mine, rooms.entries, strict=True)))

    def exchange_gradients(self, plan: Plan, buffers: Buffers) -> None:
        """Send gradients back to whose records they are of."""
        self.ranks.enter(EXCHANGE)
        received = plan.received(self.ranks.rank)
        self.ranks.exchange(buffers.arrived, received, plan.sent(), buffers.own)

    def finish(self, made: Projection, arrived: Tensor, terms: Sequence[Tensor]) -> None:
        """Find the gradients of parameters: of the records', and of terms of the loss. [] each"""
        roots: list[Tensor] = []
        v_roots: list[Tensor | None] = []
        for records, sent in zip(made.records, made.sent, strict=True):
            roots.append(records.values)
            v_roots.append(stages.unpack_gradients(arrived, sent, records))
        for term in terms:
            if term.requires_grad:
                roots.append(term)
                v_roots.append(None)
        torch.autograd.backward(roots, v_roots)

    def learn(self, report: Report) -> NDArray[np.float64]:  # [W, L]
        """Wait for a report, and let the planner have it."""
        if report.arrived is not None:
            self.ranks.wait(report.arrived)
        table, plan = report.table.numpy(), report.plan
        n, n_strips = len(plan.tasks), plan.first_strips[-1]
        counts, needed, strips, own = np.split(table[:, HEAD:], np.cumsum([n, n, n_strips]), axis=1)
        mine = {k: (float(needed[:, k].sum()), room) for k, room in report.capacities.items()}
        overflowed = bool(table[:, OVERFLOW].max() > 0)
        total = strips.sum(0) if not overflowed else np.zeros(n_strips)
        self.planner.learn(plan, counts, total, own[self.ranks.rank], mine)
        return table

    def _bounded(self, made: Projection) -> bool:
        """Whether rows and entries have capacities: those of kernels."""
        values = made.records[0].values
        return values.is_cuda and values.dtype == torch.float32

    def _settings(
        self, width: int, height: int, view: View, keywords: Mapping[str, Any], s: Splats
    ) -> RenderSettings:
        unknown = keywords.keys() - MASK_KEYWORDS - {"deterministic", "masks_by_camera"}
        if unknown:
            raise ValueError(f"a rendering on several ranks has no {', '.join(sorted(unknown))}")
        own = {"sh_degree": s.sh_degree, "raw": s.raw, "antialiased": s.antialiased}
        own["masks_by_camera"] = keywords.get("masks_by_camera", False)
        return RenderSettings(width, height, view.near, lens=view.lens, **own)


def _masks(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the keywords that are tensors of masks, as RasterInputs names them."""
    found = {name: x for name, x in keywords.items() if name in MASK_KEYWORDS}
    seed = found.pop("mask_seed", 0)
    return found | ({"mask_words": seed} if isinstance(seed, Tensor) else {"mask_seed": seed})


def _parts(plan: Plan, rank: int) -> list[slice]:
    """Where own tasks' rows lie in what a source sends."""
    ends = np.cumsum([0, *(1 + plan.capacities[k] for k in plan.of_rank(rank))]).tolist()
    return [slice(begin, end) for begin, end in zip(ends, ends[1:], strict=False)]


def _by_strip(entries: Tensor, above: int, n: int) -> Tensor:  # [rows of tiles] -> [n]
    """Entries of the strips that are a task's own."""
    pairs = torch.nn.functional.pad(entries, (0, len(entries) % 2)).view(-1, 2).sum(1)
    return pairs[above : above + n]


def _to_device(x: NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(x)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
