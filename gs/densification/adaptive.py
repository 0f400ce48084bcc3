"""Adaptive density control of Kerbl et al. (2023), section 5, in the schedule of Inria's loop.

Until `densify_until_iter`, every iteration adds to each visible Gaussian the norm of its gradient
on the image plane, in NDC (pixel gradient times W/2, H/2): what the threshold 2e-4 is made for.
Every `densification_interval` iterations, those whose mean over their views reaches the threshold
are

    cloned  when max scale <= percent_dense * extent: a copy at the same place
    split   otherwise: two children drawn from the Gaussian's own density, scales / 1.6, parent gone

and then go those of low opacity, oversized ones (max scale > 0.1 extent) once opacities have been
reset, and what the other strategies name. Gaussians that no sampled mask kept still count as
visible, with zero gradient. Inria's limit of 20 pixels on the screen never acts there (its radii
are cleared just before): left out.

Two things differ from what Inria's numbers may lead to expect:

    visible    is a Gaussian whose exact ellipse, alpha >= 1/255, reaches the image. Inria's square
               of three standard deviations reaches further where a Gaussian is faint and less far
               where it is opaque: 13 to 21 % of the numbers of views differ.
    oversized  Gaussians are pruned after iteration `opacity_reset_interval`, as published. Where
               opacities are never reset (recipe fast, or less than 500 iterations between resets
               in a scaled schedule) that is not before densification ends: none goes by size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from kernels import add_gradient_norms, normals

from ..model.gaussians import Gaussians
from ..model.morton import reorder
from ..model.rows import gather_rows, replace_values
from ..ranges import AT_LEAST_ONE, COUNT, NOT_NEGATIVE, SHARE, check_ranges
from ..schedule import covers, multiple_in
from ..seeds import derive_seed
from ..training.strategy import StepContext, Strategy, rows_to_prune

if TYPE_CHECKING:
    from typing_extensions import Self

N_CHILDREN = 2
CHILD_SHRINK = 0.8 * N_CHILDREN  # a child's scale is its parent's over this
MAX_RELATIVE_SCALE = 0.1  # of the extent; larger Gaussians are pruned once opacities were reset
RESET_OPACITY = 0.01
HASTENED_INTERVAL = 150  # iterations

GRADIENTS = "densify_gradients"  # rows: sum of gradient norms, NDC
VIEWS = "densify_views"  # rows: number of views in that sum


@dataclass(frozen=True)
class DensifierConfig:
    """When a densifier adds and removes Gaussians: what all of them have in common."""

    densify_from_iter: Annotated[int, COUNT] = 500
    """Densify after this iteration."""
    densify_until_iter: Annotated[int, COUNT] = 15_000
    """Densify before this iteration."""
    densification_interval: Annotated[int, AT_LEAST_ONE] = 100
    """Densify at multiples of this iteration."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def scaled(self, factor: float) -> Self:
        """The same schedule over `factor` times as many iterations, as far as it bears it.

        The interval stays at 50 iterations or more: what is new needs some to settle.
        """
        interval = round(self.densification_interval * factor)
        return replace(
            self,
            densify_from_iter=round(self.densify_from_iter * factor),
            densify_until_iter=round(self.densify_until_iter * factor),
            densification_interval=max(interval, min(self.densification_interval, 50)),
        )

    def hastened(self) -> Self:
        """For a run that is short for its quality (--recipe fast)."""
        return self

    def densifies_at(self, step: int, n_images: int = 1) -> bool:
        """Whether rows are added and removed at `step`: 600, 700, ..., 14900 by default."""
        due = multiple_in(step, self.densification_interval, n_images)
        return due is not None and self.densify_from_iter < due < self.densify_until_iter

    def is_over(self, step: int, n_images: int = 1) -> bool:
        """Whether densification has ended before the images of this step."""
        return step - n_images + 1 >= self.densify_until_iter

    def build(self) -> Strategy[Any]:
        """The strategy with these settings."""
        raise NotImplementedError


@dataclass(frozen=True)
class DensifyConfig(DensifierConfig):
    """Settings of the default densifier; the defaults are Inria's."""

    densify_grad_threshold: Annotated[float, NOT_NEGATIVE] = 2e-4
    """Mean image-space gradient (NDC) from which a Gaussian is cloned or split."""
    percent_dense: Annotated[float, NOT_NEGATIVE] = 0.01
    """Share of the scene's extent above which a Gaussian is split instead of cloned."""
    opacity_reset_interval: Annotated[int, AT_LEAST_ONE] = 3000
    """Opacities fall to at most 0.01 at multiples of this iteration, while densifying; oversized
    Gaussians are pruned after it alone, so never where it is not below densify_until_iter."""
    min_opacity: Annotated[float, SHARE] = 0.005
    """Gaussians of lower opacity are pruned."""
    reorder: bool = False
    """Sort Gaussians along a Z-order curve after each densification, for locality in memory."""

    def scaled(self, factor: float) -> Self:
        """The same schedule over `factor` times as many iterations, as far as it bears it.

        The interval stays at 50 iterations or more: a mean over fewer views is mostly noise.
        Opacities are not reset where they would have less than 500 iterations to recover.
        """
        config = super().scaled(factor)
        reset = round(self.opacity_reset_interval * factor)
        if reset < 500:
            reset = max(config.densify_until_iter, 1)
        return replace(config, opacity_reset_interval=reset)

    def hastened(self) -> Self:
        """Fewer densifications, and opacities are never reset: that costs a short run 0.3 dB.

        At the interval of the scaled default, over 14,000 iterations, twice as many would grow.
        """
        interval = max(self.densification_interval, HASTENED_INTERVAL)
        never = max(self.densify_until_iter, 1)
        return replace(self, densification_interval=interval, opacity_reset_interval=never)

    def resets_opacity_at(self, step: int, n_images: int = 1, *, white_background: bool) -> bool:
        """Whether opacities are reset at `step`: 3000, 6000, 9000 and 12000 by default."""
        due = multiple_in(step, self.opacity_reset_interval, n_images)
        if due is not None and due < self.densify_until_iter:
            return True
        begins = covers(step, self.densify_from_iter, n_images)
        return white_background and begins and self.densify_from_iter < self.densify_until_iter

    def build(self) -> DefaultDensifier:
        return DefaultDensifier(self)


class DefaultDensifier(Strategy):
    """Clone, split, prune and reset opacities; see the module's docstring."""

    name = "densify"
    runs_on_several_ranks = True

    def __init__(self, config: DensifyConfig) -> None:
        self.config = config
        self.seed = 0
        self._counts: dict[str, float | Tensor] = {}

    def setup(self, gaussians: Gaussians, *, extent: float, iterations: int, seed: int) -> None:
        self.seed = seed
        for name in (GRADIENTS, VIEWS):
            zeros = torch.zeros(len(gaussians), device=gaussians.device)
            gaussians.rows.setdefault(name, zeros)

    def phase(self, step: int) -> Hashable | None:
        config = self.config
        if config.is_over(step, self.n_images):
            return "done"
        on_white = config.resets_opacity_at(step, self.n_images, white_background=True)
        return None if on_white or config.densifies_at(step, self.n_images) else "gathering"

    def after_backward(self, step: int, ctx: StepContext) -> None:
        if self.config.is_over(step, self.n_images):
            return
        for out in ctx.renderings:
            add_statistics(ctx.gaussians, out.info, skip=ctx.skip)
        if self.config.densifies_at(step, self.n_images):
            self.densify(step, ctx)
            if self.config.reorder:
                reorder(ctx.gaussians, ctx.optimizer)
        on_white = ctx.white_background
        if self.config.resets_opacity_at(step, self.n_images, white_background=on_white):
            limit = math.log(RESET_OPACITY / (1.0 - RESET_OPACITY))
            opacities = ctx.gaussians.params["opacities"].detach().clamp_max(limit)
            replace_values(ctx.gaussians, ctx.optimizer, "opacities", opacities)

    @torch.no_grad()
    def densify(self, step: int, ctx: StepContext) -> None:
        """Clone, split and prune now, and start the statistics afresh."""
        config, gaussians = self.config, ctx.gaussians
        max_scales = gaussians.get_scales().amax(-1)
        # Unseen Gaussians have 0 / 0; they stay as they are.
        means = (gaussians.rows[GRADIENTS] / gaussians.rows[VIEWS]).nan_to_num(nan=0.0)
        moving = means >= config.densify_grad_threshold
        small = max_scales <= config.percent_dense * ctx.extent
        cloned, parted = moving & small, moving & ~small
        n_clones, n_parents = torch.stack([cloned.sum(), parted.sum()]).tolist()  # waits
        parents = rows_where(parted, n_parents)
        noise = self._noise(step, gaussians.rows["ids"][parents])
        grown = Grown(
            gaussians,
            stay=rows_where(~parted, len(gaussians) - n_parents),
            clones=rows_where(cloned, n_clones),
            parents=parents,
            children=split(gaussians, parents, noise),
        )

        drop = grown.get_opacities() < config.min_opacity
        if step > config.opacity_reset_interval:
            drop |= grown.get_scales().amax(-1) > MAX_RELATIVE_SCALE * ctx.extent
        others = rows_to_prune(step, grown, ctx.strategies)
        n_grown = len(grown)
        grown.keep(~drop if others is None else ~(drop | others), ctx.optimizer)
        for name in (GRADIENTS, VIEWS):
            gaussians.rows[name].zero_()
        counts = ctx.total(n_clones, n_parents, n_grown - len(gaussians))
        names = ("n_cloned", "n_split", "n_pruned")
        self._counts = {name: float(n) for name, n in zip(names, counts, strict=True)}

    def _noise(self, step: int, ids: Tensor) -> Tensor:  # [M] -> [2, M, 3], standard normal
        """By the parent's id: the same whatever other Gaussians there are, and in any order."""
        seeds = (derive_seed(self.seed, "split", step, child) for child in range(N_CHILDREN))
        return torch.stack([normals(seed, ids) for seed in seeds])

    def scalars(self, step: int) -> dict[str, float | Tensor]:
        return self._counts

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed = int(state.get("seed", self.seed))


class Grown(Gaussians):
    """A model as cloning and splitting leave it, for strategies to look at before pruning.

    Its rows are those that stay, clones, all first children and all second children; the new ones
    are numbered in this order, each part by the parents' ids. It holds only where each comes from:
    parameters and buffers are gathered when they are asked for.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        *,
        stay: Tensor,  # rows that are not split
        clones: Tensor,  # rows to be copied
        parents: Tensor,  # [M] rows to be split
        children: dict[str, Tensor],  # [2M, ...]
    ) -> None:
        torch.nn.Module.__init__(self)
        self.origin, self.children_values = gaussians, children
        self.sources = torch.cat([stay, clones, parents.repeat(N_CHILDREN)])
        self.n_stay, self.n_older = len(stay), len(stay) + len(clones)
        self.sh_degree, self.active_sh_degree = gaussians.sh_degree, gaussians.active_sh_degree
        self.specs, self.shared = gaussians.specs, gaussians.shared
        self.shared_specs = gaussians.shared_specs
        self.next_id, numbered = gaussians.next_id, []
        for rows in (clones, *[parents] * N_CHILDREN):
            ids, self.next_id = gaussians.numbering(gaussians.rows["ids"][rows], self.next_id)
            numbered.append(ids)
        self.new_ids = torch.cat(numbered)
        self.params: Any = _Lazy(gaussians.params, self._parameter)
        self.rows: Any = _Lazy(gaussians.rows, self._row)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def device(self) -> torch.device:
        return self.sources.device

    def _parameter(self, name: str) -> Tensor:
        values = self.origin.params[name].detach()[self.sources]
        if name in self.children_values:
            values[self.n_older :] = self.children_values[name]
        return values

    def _row(self, name: str) -> Tensor:
        values = self.origin.rows[name][self.sources]
        values[self.n_stay :] = self.new_ids if name == "ids" else 0
        return values

    @torch.no_grad()
    def keep(self, keep: Tensor, optimizer: torch.optim.Optimizer | None) -> None:  # [M] bool
        """Give the original these rows, all at once."""
        parts = keep.split([self.n_stay, self.n_older - self.n_stay, len(self) - self.n_older])
        counts = torch.stack([part.sum() for part in parts]).tolist()  # waits
        index = rows_where(keep, sum(counts))
        n_older = counts[0] + counts[1]
        gather_rows(
            self.origin,
            optimizer,
            self.sources[index],
            n_kept=counts[0],
            new_ids=self.new_ids[index[counts[0] :] - self.n_stay],
            last={
                name: values[index[n_older:] - self.n_older]
                for name, values in self.children_values.items()
            },
        )
        self.origin.next_id = self.next_id


class _Lazy(Mapping[str, Tensor]):
    """Names of one mapping, values made on demand and remembered."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]) -> None:
        self._names, self._make = list(names), make
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def rows_where(mask: Tensor, count: int) -> Tensor:  # [N] bool -> [count] int64
    """mask.nonzero() where the number of rows is known, which spares the wait for it."""
    rows = torch.arange(len(mask), device=mask.device)
    out = rows.new_empty(count + 1)  # all that is not asked for lands in the last place
    out[torch.where(mask, mask.cumsum(0) - 1, count)] = rows
    return out[:count]


@torch.no_grad()
def add_statistics(
    gaussians: Gaussians, info: dict[str, Any], *, skip: Tensor | None = None
) -> None:
    """Add this iteration's image-space gradients of visible Gaussians to the row buffers.

    Args:
        gaussians: The model, with the buffers that `DefaultDensifier.setup` adds.
        info: From the rendering, after backward: radii [C,N,2], means2d [C,N,2] with `.grad` in
            pixels, width, height.
        skip: One int32 on the device; if it is not 0, nothing is added.
    """
    gradients = info["means2d"].grad  # [C, N, 2]
    if gradients is None:
        raise ValueError("densification needs the gradient of info['means2d']: run backward first")
    add_gradient_norms(
        gradients,
        info["radii"],
        gaussians.rows[GRADIENTS],
        gaussians.rows[VIEWS],
        width=info["width"],
        height=info["height"],
        skip=skip,
    )


def split(
    gaussians: Gaussians,
    parents: Tensor,  # [M] int64
    noise: Tensor,  # [2, M, 3], standard normal
) -> dict[str, Tensor]:
    """Positions [2M,3] and log-scales [2M,3] of the children: all first ones, then all second."""
    log_scales = gaussians.params["scales"].detach()[parents]
    offsets = rotate(gaussians.params["quats"].detach()[parents], noise * log_scales.exp())
    means = gaussians.params["means"].detach()[parents] + offsets
    scales = (log_scales - math.log(CHILD_SHRINK)).repeat(N_CHILDREN, 1)
    return {"means": means.flatten(0, 1), "scales": scales}


def rotate(quats: Tensor, vectors: Tensor) -> Tensor:  # [M, 4], [..., M, 3] -> [..., M, 3]
    """Rotate vectors by quaternions wxyz of any length."""
    quats = torch.nn.functional.normalize(quats, dim=-1)
    w, u = quats[:, :1], quats[:, 1:].expand_as(vectors)
    t = 2.0 * torch.linalg.cross(u, vectors)
    return vectors + w * t + torch.linalg.cross(u, t)
