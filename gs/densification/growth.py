"""Growing and pruning of anchors, and the loss that keeps their Gaussians small.

Lu et al., "Scaffold-GS" (CVPR 2024), sections 3.3 and 3.4, with the numbers of their code. While
statistics are gathered, every iteration adds to each offset that is seen the norm of its gradient
on the image plane (NDC), and to each anchor that is decoded one visit and the sum of its positive
opacities. Every `densification_interval` iterations

    grow    for levels i = 0, 1, ..: offsets seen in enough views whose mean gradient reaches
            threshold 2^i are kept with probability 1 - 0.5^(i+1); each cell of size
            voxel_size update_init_factor / update_hierarchy_factor^i that one of them lies in and
            no anchor gets an anchor: at its corner, with the elementwise maximum of their anchors'
            features, scales of the cell's size and offsets of 0. After a level that adds nothing
            there is no further one.
    prune   anchors visited often enough whose mean sum of opacities is below min_opacity, and what
            the other strategies name

and the statistics of what was decided on begin anew. "Enough" is interval * success_threshold for
visits, half of that for views of an offset. Afterwards log-scales of Gaussians are at most 0.05.

The loss is lambda_volume times the mean product of the scales of all Gaussians that are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from kernels import add_gradient_norms, uniform

from ..errors import SplatrimError
from ..model.renderer import RenderOutput
from ..model.rows import gather_rows, keep_parts
from ..neural.anchors import Anchors
from ..ranges import AT_LEAST_ONE, COUNT, NOT_NEGATIVE, SHARE, SOME_SHARE, Range
from ..seeds import derive_seed
from ..training.strategy import StepContext, Strategy, rows_to_prune
from .adaptive import DensifierConfig

MAX_LOG_SCALE = 0.05  # of Gaussians, after pruning
SPAN = 1 << 30  # cells along an axis; further ones count as at its end

GRADIENTS, VIEWS = "offset_gradients", "offset_views"  # rows [N, k]
OPACITIES, VISITS = "anchor_opacities", "anchor_visits"  # rows [N]


@dataclass(frozen=True)
class GrowthConfig(DensifierConfig):
    """Settings of growing and pruning anchors; the defaults are those of Scaffold-GS."""

    densify_from_iter: Annotated[int, COUNT] = 1500
    """Grow and prune after this iteration."""
    statistics_from_iter: Annotated[int, COUNT] = 500
    """Gather statistics after this iteration."""
    densify_grad_threshold: Annotated[float, NOT_NEGATIVE] = 2e-4
    """Mean image-space gradient (NDC) of an offset from which anchors grow, at the first level."""
    success_threshold: Annotated[float, SOME_SHARE] = 0.8
    """Share of an interval's iterations that must have seen an anchor before it is pruned; half of
    it must have seen an offset before an anchor grows."""
    min_opacity: Annotated[float, SHARE] = 0.005
    """Anchors are pruned whose opacities sum up to less, in the mean over views."""
    update_depth: Annotated[int, Range(1, 8)] = 3
    """Levels at which anchors grow."""
    update_init_factor: Annotated[float, NOT_NEGATIVE] = 16.0
    """Cells of the first level are so many voxels wide."""
    update_hierarchy_factor: Annotated[float, Range(1)] = 4.0
    """Cells of each further level are so many times narrower."""
    max_anchors: Annotated[int, AT_LEAST_ONE] = 50_000_000
    """A run that would grow more ends with a sentence."""
    lambda_volume: Annotated[float, NOT_NEGATIVE] = 0.01
    """Weight of the mean product of scales in the loss."""

    def scaled(self, factor: float) -> GrowthConfig:
        config = super().scaled(factor)
        return replace(config, statistics_from_iter=round(self.statistics_from_iter * factor))

    def gathers_at(self, step: int, n_images: int = 1) -> bool:
        """Whether statistics are gathered at `step`."""
        return self.statistics_from_iter < step and not self.is_over(step, n_images)

    def densifies_at(self, step: int, n_images: int = 1) -> bool:
        """Whether anchors grow and go at `step`: 1600, 1700, ..., 14900 by default."""
        return super().densifies_at(step, n_images) and self.gathers_at(step, n_images)

    def cell_sizes(self, voxel_size: float) -> list[float]:
        """Sizes of cells by level, scene units: .016, .004 and .001 by default."""
        first = voxel_size * self.update_init_factor
        return [first / self.update_hierarchy_factor**level for level in range(self.update_depth)]

    def build(self) -> AnchorGrowth:
        return AnchorGrowth(self)


class AnchorGrowth(Strategy[Anchors]):
    """Grows and prunes anchors; see the module's docstring."""

    name = "anchor_growth"

    def __init__(self, config: GrowthConfig) -> None:
        self.config = config
        self.seed = 0
        self._counts: dict[str, float | Tensor] = {}

    def setup(self, gaussians: Anchors, *, extent: float, iterations: int, seed: int) -> None:
        self.seed = seed
        n, k, device = len(gaussians), gaussians.parts, gaussians.device
        for name in (GRADIENTS, VIEWS):
            gaussians.rows.setdefault(name, torch.zeros(n, k, device=device))
        for name in (OPACITIES, VISITS):
            gaussians.rows.setdefault(name, torch.zeros(n, device=device))

    def loss(self, step: int, gaussians: Anchors, out: RenderOutput) -> Tensor | None:
        if self.config.lambda_volume == 0:
            return None
        assert out.splats is not None
        return self.config.lambda_volume * mean_volume(out.splats.scales, out.splats.opacities)

    def phase(self, step: int) -> Hashable | None:
        if self.config.densifies_at(step, self.n_images):
            return None
        return "gathering" if self.config.gathers_at(step, self.n_images) else "resting"

    def after_backward(self, step: int, ctx: StepContext[Anchors]) -> None:
        if self.config.gathers_at(step, self.n_images):
            for rendering in ctx.renderings:
                add_statistics(ctx.gaussians, rendering, skip=ctx.skip)
        if self.config.densifies_at(step, self.n_images):
            self.densify(step, ctx)

    @torch.no_grad()
    def densify(self, step: int, ctx: StepContext[Anchors]) -> None:
        """Grow and prune now, and begin the statistics of what was decided on anew."""
        config, model = self.config, ctx.gaussians
        enough = config.densification_interval * config.success_threshold
        n_before = len(model)
        judged = model.rows[VIEWS] > 0.5 * enough
        means = (model.rows[GRADIENTS] / model.rows[VIEWS]).nan_to_num(nan=0.0)
        for level, size in enumerate(config.cell_sizes(model.grid)):
            threshold = config.densify_grad_threshold * 2.0**level
            chosen = judged & (means >= threshold) & self._kept(step, level, model, n_before)
            if not grow(model, ctx.optimizer, chosen, size, n_before):
                break
            if len(model) > config.max_anchors:
                raise SplatrimError(
                    f"iteration {step}: {len(model)} anchors are more than --max_anchors"
                    f" {config.max_anchors}: give a larger --voxel_size"
                )
        n_grown = len(model) - n_before
        for name in (GRADIENTS, VIEWS):
            model.rows[name][:n_before].masked_fill_(judged, 0.0)

        visited = model.rows[VISITS] > enough
        faint = visited & (model.rows[OPACITIES] < config.min_opacity * model.rows[VISITS])
        for name in (OPACITIES, VISITS):
            model.rows[name].masked_fill_(visited, 0.0)
        keep = ~faint.repeat_interleave(model.parts)
        others = rows_to_prune(step, model, ctx.strategies)
        keep_parts(model, ctx.optimizer, keep if others is None else keep & ~others)
        model.params["scales"][:, 3:].clamp_(max=MAX_LOG_SCALE)
        n_pruned = n_before + n_grown - len(model)
        self._counts = {"n_grown": float(n_grown), "n_pruned": float(n_pruned)}

    def _kept(self, step: int, level: int, model: Anchors, n: int) -> Tensor:  # [n, k] bool
        """A draw by names of offsets: the same in whatever order anchors come."""
        seed = derive_seed(self.seed, "grow", step, level)
        draws = uniform(seed, model.part_ids()[: n * model.parts])
        return (draws > 0.5 ** (level + 1)).view(n, -1)

    def scalars(self, step: int) -> dict[str, float | Tensor]:
        return self._counts

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = int(state.get("seed", self.seed))


def mean_volume(
    scales: Tensor,  # [M, 3]
    opacities: Tensor,  # [M]
) -> Tensor:  # []
    """Mean product of the scales of the Gaussians whose opacity is positive; 0 for none."""
    drawn = (opacities.detach() > 0).float()
    # the gradient of prod() looks for zeros on the host
    volumes = scales[:, 0] * scales[:, 1] * scales[:, 2]
    return (volumes * drawn).sum() / drawn.sum().clamp_min(1.0)


@torch.no_grad()
def add_statistics(model: Anchors, out: RenderOutput, *, skip: Tensor | None = None) -> None:
    """Add this iteration's gradients and opacities to the row buffers. A CUDA graph can capture it.

    Args:
        model: With the buffers that `AnchorGrowth.setup` adds.
        out: The rendering, after backward.
        skip: One int32 on the device; if it is not 0, nothing is added.
    """
    splats, info = out.splats, out.info
    assert splats is not None and splats.rows is not None
    v_means2d = info["means2d"].grad  # [1, M, 2]
    if v_means2d is None:
        raise ValueError("growing needs the gradient of info['means2d']: run backward first")
    k = model.parts
    gradients, views = torch.zeros(2, len(splats.means), device=model.device).unbind()
    size = {"width": info["width"], "height": info["height"]}
    add_gradient_norms(v_means2d, info["radii"], gradients, views, skip=skip, **size)
    places = splats.rows.long().clamp_min(0)
    for name, values in ((GRADIENTS, gradients), (VIEWS, views)):
        model.rows[name].index_add_(0, places, values.view(-1, k))
    counts = (splats.rows >= 0).float()
    if skip is not None:
        counts = counts * (skip == 0)
    opacities = splats.opacities.clamp_min(0).view(-1, k).sum(1)
    model.rows[OPACITIES].index_add_(0, places, opacities * counts)
    model.rows[VISITS].index_add_(0, places, counts)


@torch.no_grad()
def grow(
    model: Anchors,
    optimizer: torch.optim.Optimizer | None,
    chosen: Tensor,  # [n, k] bool
    size: float,
    n_before: int,
) -> int:
    """Add an anchor to every cell that a chosen offset lies in and no anchor; how many.

    What others learn per offset, the offsets of a new anchor have of the first of those that it
    grows from; its other parameters are as the module's docstring says.

    Args:
        model: Whose first rows are meant.
        optimizer: Its optimizer, or None when there is none yet.
        chosen: Offsets of the first n rows.
        size: Of the cells, scene units.
        n_before: Rows that there were before this densification; offsets of later ones are 0.
    """
    p, k = model.params, model.parts
    rows, columns = chosen.nonzero().unbind(1)  # waits
    if not len(rows):
        return 0
    stretch = p["scales"][:n_before, :3].exp()[rows]
    places = p["anchors"][rows] + p["offsets"][rows, columns] * stretch
    own, there = new_cells(cells_of(places, size), cells_of(p["anchors"], size))
    n_new = len(there)
    if n_new == 0:
        return 0
    kept = own >= 0
    cell, rows, columns = own[kept], rows[kept], columns[kept]
    features = p["features"].new_full((n_new, p["features"].shape[1]), -math.inf)
    index = cell[:, None].expand(-1, features.shape[1])
    features.scatter_reduce_(0, index, p["features"][rows], "amax")
    first = torch.full((n_new,), len(cell), device=cell.device)
    first.scatter_reduce_(0, cell, torch.arange(len(cell), device=cell.device), "amin")
    parents, offsets = rows[first], columns[first]
    last: dict[str, Tensor] = {
        "anchors": there.to(p["anchors"]) * size,
        "features": features,
        "offsets": p["offsets"].new_zeros(n_new, k, 3),
        "scales": p["scales"].new_full((n_new, 6), math.log(size)),
    }
    for name, x in p.items():
        if name not in last and x.shape[1:2] == (k,):
            last[name] = x[parents, offsets][:, None].expand(-1, k, *x.shape[2:])
    n = len(model)
    ids = torch.arange(model.next_id, model.next_id + n_new, device=model.device)
    gather_rows(
        model,
        optimizer,
        torch.cat([torch.arange(n, device=model.device), parents]),
        n_kept=n,
        new_ids=ids.to(model.rows["ids"]),
        last=last,
    )
    model.next_id += n_new
    return n_new


def cells_of(points: Tensor, size: float) -> Tensor:  # [M, 3] -> [M, 3] int64
    """The cell of each point: its coordinates over the size, rounded."""
    return torch.round(points.double() / size).clamp(-SPAN, SPAN).long()


def new_cells(
    candidates: Tensor,  # [M, 3] int64
    taken: Tensor,  # [N, 3] int64
) -> tuple[Tensor, Tensor]:  # [M] int64, [n_new, 3] int64
    """Cells of candidates that are not taken, each once; and which is each candidate's, or -1.

    By sorting, and not by comparing all with all.
    """
    both = torch.cat([candidates, taken])
    # two keys of 62 bits, as three coordinates have 93
    _, rank = torch.unique(both[:, 0] * (2 * SPAN + 1) + both[:, 1], return_inverse=True)
    keys, inverse = torch.unique(rank * (2 * SPAN + 1) + both[:, 2] + SPAN, return_inverse=True)
    mine, theirs = inverse[: len(candidates)], inverse[len(candidates) :]
    free = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    free[mine] = True
    free[theirs] = False
    number = torch.where(free, free.cumsum(0) - 1, -1)
    cells = candidates.new_empty(int(free.sum()), 3)
    own = number[mine]
    cells[own[own >= 0]] = candidates[own >= 0]
    return own, cells
