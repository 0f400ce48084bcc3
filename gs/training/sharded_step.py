"""Steps of a model whose Gaussians are spread over ranks; each rank takes its part of every step.

As gs.training.step, but that the rendering is cut in three phases (gs.distributed.step) between
which records and their gradients travel. Where a GPU renders and nothing is to be looked at, the
host does not wait: a step's report is read when the next begins, and a step that found a buffer too
small has changed nothing and is taken again. On a CPU the report is read at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..distributed.exchange import Planner
from ..distributed.ownership import move_rows
from ..distributed.ranks import Ranks
from ..distributed.step import KEPT, OVERFLOW, STOP, VALUES, Report, ShardedStep
from ..errors import SplatrimError
from ..model.model import Model
from ..model.renderer import RenderOutput
from ..model.rows import NoneLeft
from .batch import grouped
from .optimizer import set_learning_rates
from .step import Rates, Stepper
from .step_inputs import StepInputs
from .strategy import M, Population, StepContext, Strategy


class _Pending(NamedTuple):
    """A step whose report has not been read."""

    step: int
    images: Sequence[int]
    rates: Rates
    report: Report


class ShardedStepper(Stepper[M]):
    """Takes a rank's part of the steps of one run.

    Args:
        ranks: Who trains together; `model` has the rows that this one owns.
        *args: As `Stepper` has them.
        **options: As `Stepper` has them.

    `by_id` says that the next step draws Gaussians of equal depth by id.
    """

    def __init__(self, ranks: Ranks, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.graphs = None
        check_sharded(self.strategies, self.gaussians)
        if self.images.has_masks:
            raise SplatrimError("masks do not run on several GPUs yet: --masks none, or one GPU")
        self.ranks, self._agreed_to_stop = ranks, False
        self._counts_of_ranks: list[int] = []  # known once all have come here
        self.planner = Planner(self.images.cameras, ranks.size)
        self.phases = ShardedStep(ranks, self.planner, self.images.__getitem__)
        self._pending: _Pending | None = None
        self._report: Report | None = None  # of the step that is being taken
        # rows have changed in the last step: a clone is as far away as its parent
        self.by_id = False
        self._ids = self.gaussians.rows["ids"]
        self._recorded: tuple[Tensor, int] = torch.empty(0), 0
        self._waits = self.gaussians.device.type != "cuda"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._count_rows()
        with super().running():
            yield

    @property
    def stops(self) -> bool:
        return self._agreed_to_stop

    @property
    def n_gaussians(self) -> int:
        return sum(self._counts_of_ranks)

    def forward_backward(self, step: int, indices: Sequence[int]) -> StepContext[M]:
        while True:
            context = self._take(step, indices)
            report, self._report = self._report, None
            assert report is not None
            if not self._read(report):
                context.skip = None
                losses, n_images = self._recorded
                self.tracker.record(losses, n_images=n_images)
                return context
            self.optimizer.zero_grad(set_to_none=True)

    def update(self, step: int, computed: StepContext[M], rates: Rates) -> None:
        self.ranks.enter("update")
        set_learning_rates(self.optimizer, rates)
        self._update(step, computed)

    def replay(self, step: int, indices: Sequence[int], rates: Rates) -> bool:
        self._announce(len(indices))
        if self._waits or not self._running or step == self.config.iterations:
            return False
        if None in [strategy.phase(step) for strategy in self.strategies]:
            return False
        context = self._take(step, indices)
        report, self._report = self._report, None
        assert report is not None
        losses, n_images = self._recorded
        self.tracker.record(losses, context.skip, n_images)
        self.update(step, context, rates)
        self._pending = _Pending(step, indices, rates, report)
        return True

    def settle(self) -> None:
        if self._pending is None:
            return
        (step, images, rates, report), self._pending = self._pending, None
        if self._read(report):
            for parameter in self._stepped:
                self.optimizer.state[parameter]["step"] -= 1
            with torch.enable_grad():
                self.update(step, self.forward_backward(step, images), rates)

    def _take(self, step: int, indices: Sequence[int]) -> StepContext[M]:
        """Find gradients, whether or not all buffers were large enough."""
        self._announce(len(indices))
        self.ranks.step = step
        model, config, device = self.gaussians, self.config, self.gaussians.device
        indices, views = grouped(self.images.cameras, indices, device, together=True)
        background = torch.tensor(self.background_color(step), device=device)
        inputs = StepInputs(
            views[0], background, self._device_inputs(step), others=tuple(views[1:])
        )
        keywords: dict[str, Any] = dict(inputs.integers)
        for strategy in self.strategies:
            keywords |= strategy.before_render(step, model)
        phases, plan = self.phases, self.planner.plan(indices)
        splats = [model.splats(view) for view in views]
        made = phases.project(plan, splats, views, model.rows["ids"], keywords)
        with torch.no_grad():
            arrived = phases.exchange_records(made)
        shown = phases.picture(
            plan,
            arrived,
            background,
            config.lambda_dssim,
            deterministic=config.deterministic,
            by_id=self.by_id,
        )
        report, skip, table = phases.report(made, shown, wants_stop=self.wants_stop)
        arrived = phases.exchange_gradients(made, shown)
        outs = []
        for size, records in zip(plan.sizes, made.records, strict=True):
            info = {
                "width": size.width,
                "height": size.height,
                "radii": records.radii,
                "means2d": records.means2d,
                "masks": records.masks,
            }
            outs.append(RenderOutput(torch.empty(0), torch.empty(0), info))
        kept = table[:, KEPT].sum() - table[self.ranks.rank, KEPT]
        outs[0].info["population"] = population = Population(self.n_gaussians, kept)
        context = self._context(
            step,
            indices[0],
            outs[0],
            inputs=inputs,
            skip=skip,
            others=outs[1:],
            ranks=self.ranks,
        )
        if config.regularise == "seen":
            counts = outs[0].info["observations"] = context.observations
            masks = outs[0].info["masks"]
            observed = counts if masks is None else counts * masks.detach()
            sums = torch.stack([counts.sum(), observed.sum()]).double()
            elsewhere = self.ranks.stack(sums).sum(0) - sums
            outs[0].info["population"] = population._replace(
                observations=elsewhere[0], observed=elsewhere[1]
            )
        n_images = len(indices)
        terms = [strategy.loss(step, model, outs[0]) for strategy in self.strategies]
        terms = [n_images * term for term in terms if term is not None]
        phases.finish(made, arrived, terms)
        values = table[:, VALUES].sum(0)
        loss = torch.stack([values[0], *(term.detach() for term in terms)]).sum()
        losses = torch.cat([loss.view(1), values[3:]]).float()
        self._recorded, self._report = (losses, n_images), report
        return context

    def _read(self, report: Report) -> bool:
        """Wait for a report and heed it; whether the step must be taken again."""
        table = self.phases.learn(report)
        self._agreed_to_stop |= bool(table[:, STOP].max() > 0)
        return bool(table[:, OVERFLOW].max() > 0)

    def _rows_may_have_changed(self) -> None:
        """Bring rows to their owners if strategies have made or removed some: on all ranks."""
        self.by_id = self.gaussians.rows["ids"] is not self._ids
        if not self.by_id:
            return
        move_rows(self.gaussians, self.optimizer, self.ranks)
        self._count_rows()
        if self.n_gaussians == 0:
            raise NoneLeft("no Gaussian would be left")
        self._ids = self.gaussians.rows["ids"]

    def _count_rows(self) -> None:
        self._counts_of_ranks = self.ranks.tell(len(self.gaussians))
        self.planner.resized(max(self._counts_of_ranks))


def runs_on_ranks(strategy: Strategy[Any]) -> bool:
    """Whether a strategy works where each rank has a part of the Gaussians."""
    return type(strategy) is Strategy or strategy.runs_on_several_ranks


def check_sharded(strategies: Sequence[Strategy[Any]], model: Model) -> None:
    """Raise SplatrimError if something of a run does not work on several ranks."""
    for strategy in strategies:
        if not runs_on_ranks(strategy):
            raise SplatrimError(f"{strategy.name} does not run on several GPUs yet: use one GPU")
    if not model.same_in_all_views or any(True for _ in model.shared.parameters()):
        raise SplatrimError(f"{type(model).__name__} does not run on several GPUs yet: use one GPU")
