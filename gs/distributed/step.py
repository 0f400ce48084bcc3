"""One sharded step in three phases, each of which a rank computes for itself.

    project    this rank's Gaussians into all cameras; their records, packed by task
               -> exchange of records
    picture    records to windows of images, loss, gradients of records
               -> exchange of gradients, and of what all must know: the report
    finish     gradients of records to those of parameters

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
from .exchange import Plan, Planner, exchange_images
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
    buffer: Tensor
    """To send. [S, 12]"""
    counts: Tensor
    """Rows by task. [T] int32"""


@dataclass
class Shown:
    """What `picture` has made."""

    back: Tensor
    """Gradients, to send back. [received rows, 12]"""
    values: Tensor
    """Sums over own tasks of the photometric loss's values. [5]"""
    needed: dict[int, Tensor]
    """Entries by own task. []"""
    entries: dict[int, Tensor]
    """The same by strip of the own task. [strips]"""
    capacities: dict[int, int]


class ShardedStep:
    """The phases of one rank's steps.

    Args:
        ranks: Who takes part.
        planner: Plans; its twins on other ranks make the same.
        image: The ground truth of a camera, on the device. [H, W, 3] uint8
        backend: As `kernels.rasterization` has it.

    `on_picture`, where it is set, sees the window that each own task has rendered. [rows, W, 3]
    """

    def __init__(
        self,
        ranks: Ranks,
        planner: Planner,
        image: Callable[[int], Tensor],
        *,
        backend: str = "auto",
    ) -> None:
        self.ranks, self.planner, self.image, self.backend = ranks, planner, image, backend
        self.on_picture: Callable[[Plan, int, Tensor], None] | None = None

    def project(
        self,
        plan: Plan,
        splats: Sequence[Splats],
        views: Sequence[View],
        ids: Tensor,  # [N] int32
        keywords: Mapping[str, Any],
    ) -> Projection:
        """Project this rank's Gaussians and pack their records.

        Args:
            plan: Of the step.
            splats: What is drawn, for each size.
            views: The cameras of each size.
            ids: Names of the Gaussians.
            keywords: Of a rendering: masks, deterministic.
        """
        self.ranks.enter("project")
        dtype, device = splats[0].means.dtype, ids.device
        # rows that nothing meets are sent, and not looked at
        buffer = torch.empty(plan.bases[-1], stages.COLUMNS, dtype=dtype, device=device)
        counts = torch.zeros(len(plan.tasks), dtype=torch.int32, device=device)
        made = Projection(plan, [], [], buffer, counts)
        for size, s, view in zip(plan.sizes, splats, views, strict=True):
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
            capacity = self.planner.rows(len(size.images) * len(s.means))
            records = stages.project_records(inputs, settings, capacity, backend=self.backend)
            members = [k for k, task in enumerate(plan.tasks) if task.image in size.images]
            table = _to_device(plan.table(members, size.images.start), device)
            n, sent = stages.pack_records(records, ids, table, buffer, backend=self.backend)
            counts[_to_device(np.array(members), device)] = n
            made.records.append(records)
            made.sent.append(sent)
        return made

    def exchange_records(self, made: Projection) -> Tensor:  # [W, rows, 12]
        """Send records; what comes for this rank's tasks, by source."""
        self.ranks.enter(EXCHANGE)
        plan = made.plan
        received = plan.received(self.ranks.rank)
        arrived = self.ranks.exchange(made.buffer, plan.sent(), received)
        return arrived.view(self.ranks.size, received[0], stages.COLUMNS)

    def picture(
        self,
        plan: Plan,
        arrived: Tensor,  # [W, rows, 12]
        background: Tensor,  # [3]
        lambda_dssim: float,
        *,
        deterministic: bool = False,
        by_id: bool = False,
    ) -> Shown:
        """Render this rank's tasks, and find the gradients of their records."""
        ranks = self.ranks
        truth = exchange_images(plan, ranks, self.image)
        ranks.enter("picture")
        back = torch.empty_like(arrived)
        values = torch.zeros(5, dtype=arrived.dtype, device=arrived.device)
        shown = Shown(back.view(-1, stages.COLUMNS), values, {}, {}, {})
        mine = plan.of_rank(ranks.rank)
        for k, part, target in zip(mine, _parts(plan, ranks.rank), truth, strict=True):
            task, size = plan.tasks[k], plan.of_size(k)
            (first, last), (top, bottom) = task.rows(size.height), task.window(size.height)
            received = stages.unpack_records(arrived[:, part], backend=self.backend)
            leaf = received.values.requires_grad_()
            settings = RenderSettings(size.width, bottom - top, deterministic=deterministic)
            shown.capacities[k] = self.planner.entries(plan, k)
            picture = stages.blend_records(
                stages.Received(leaf, received.ids),
                settings,
                background.to(leaf.dtype),
                shown.capacities[k],
                by_id=by_id or deterministic,
                backend=self.backend,
            )
            if self.on_picture is not None:
                self.on_picture(plan, k, picture.colors.detach())
            parts, v_colors = photometric_rows(
                picture.colors.detach(),
                target,
                lambda_dssim,
                first=first - top,
                last=last - top,
                n_rows=size.height,
            )
            picture.colors.backward(v_colors)
            assert leaf.grad is not None
            stages.pack_gradients(leaf.grad, back[:, part], backend=self.backend)
            values += parts
            shown.needed[k] = picture.needed
            shown.entries[k] = _by_strip(picture.entries, task.above, task.last - task.first)
        return shown

    def report(
        self, made: Projection, shown: Shown, *, wants_stop: bool
    ) -> tuple[Report, Tensor, Tensor]:  # [1] int32, [W, L] float64
        """Tell all ranks what each has counted; the report, `skip`, and the table on the device."""
        plan, device = made.plan, made.buffer.device
        mine = plan.of_rank(self.ranks.rank)
        firsts = plan.first_strips
        strips = torch.zeros(firsts[-1], dtype=torch.float64, device=device)
        needed = strips.new_zeros(len(plan.tasks))
        overflow = torch.zeros((), dtype=torch.bool, device=device)
        for k in mine:
            task = plan.tasks[k]
            begin = firsts[task.image] + task.first
            strips[begin : begin + task.last - task.first] = shown.entries[k].double()
            needed[k] = shown.needed[k]
            if self._bounded(made):
                overflow |= shown.needed[k] > shown.capacities[k]
        shares = []
        for size, records in zip(plan.sizes, made.records, strict=True):
            pairs = max(len(size.images) * records.radii.shape[1], 1)
            shares.append(records.n_rows.double() / pairs)
            if self._bounded(made):
                overflow |= (records.n_rows > len(records.values)).any()
        limits = _to_device(np.array(plan.capacities, dtype=np.int32), device)
        overflow |= (made.counts > limits).any()
        masks = made.records[0].masks
        kept = torch.zeros((), dtype=torch.float64, device=device)
        if masks is not None:
            kept = masks.detach().sum(dtype=torch.float64)
        head = [overflow.double(), kept.new_tensor(float(wants_stop)), kept]
        row = torch.cat(
            [
                torch.stack(head),
                shown.values.double(),
                made.counts.double(),
                needed,
                strips,
                *shares,
            ]
        )
        self.ranks.enter(EXCHANGE)
        table = self.ranks.stack(row)
        skip = (table[:, OVERFLOW].amax() > 0).int().view(1)
        arrived = None
        host = table
        if table.is_cuda:
            host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
            host.copy_(table, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return Report(plan, host, arrived, shown.capacities), skip, table

    def exchange_gradients(self, made: Projection, shown: Shown) -> Tensor:  # [S, 12]
        """Send gradients back to whose records they are of."""
        self.ranks.enter(EXCHANGE)
        plan = made.plan
        return self.ranks.exchange(shown.back, plan.received(self.ranks.rank), plan.sent())

    def finish(self, made: Projection, arrived: Tensor, terms: Sequence[Tensor]) -> None:
        """Find the gradients of parameters: of the records', and of terms of the loss. [] each"""
        self.ranks.enter("finish")
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
        return made.buffer.is_cuda and made.buffer.dtype == torch.float32

    def _settings(
        self, width: int, height: int, view: View, keywords: Mapping[str, Any], s: Splats
    ) -> RenderSettings:
        unknown = keywords.keys() - MASK_KEYWORDS - {"deterministic"}
        if unknown:
            raise ValueError(f"a rendering on several ranks has no {', '.join(sorted(unknown))}")
        own = {"sh_degree": s.sh_degree, "raw": s.raw, "antialiased": s.antialiased}
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
