"""Steps of a model whose Gaussians are spread over ranks; each rank takes its part of every step.

As gs.training.step, but that the rendering is cut in three phases (gs.distributed.step) between
which records and their gradients travel, and which are graphs where steps are alike
(gs.training.sharded_graphs). Where a GPU renders and nothing is to be looked at, the host does not
wait: a step's report is read when the next begins, and a step that found a buffer too
small has changed nothing and is taken again. On a CPU the report is read at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..distributed.exchange import Plan as StepPlan
from ..distributed.exchange import Planner, exchange_images
from ..distributed.ownership import move_rows
from ..distributed.ranks import Ranks
from ..distributed.step import (
    KEPT,
    OVERFLOW,
    STOP,
    VALUES,
    Buffers,
    Layout,
    Projection,
    Report,
    Rooms,
    ShardedStep,
)
from ..errors import SplatrimError
from ..model.model import Model
from ..model.renderer import RenderOutput
from ..model.rows import NoneLeft
from .batch import grouped
from .captured_steps import Body
from .optimizer import set_learning_rates
from .sharded_graphs import Captured, Phase, PhaseGraphs
from .step import Rates, Stepper
from .step_inputs import StepInputs
from .strategy import M, Population, StepContext, Strategy


class _Pending(NamedTuple):
    """A step whose report has not been read."""

    step: int
    images: Sequence[int]
    rates: Rates
    report: Report
    captured: Captured[Any] | None


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
        self.phase_graphs = None if self.graphs is None else PhaseGraphs[M](self.graphs)
        self.graphs = None
        check_sharded(self.strategies, self.gaussians)
        if self.images.has_masks:
            raise SplatrimError("masks do not run on several GPUs yet: --masks none, or one GPU")
        self.ranks, self._agreed_to_stop = ranks, False
        self._counts_of_ranks: list[int] = []  # known once all have come here
        self.planner = Planner(self.images.cameras, ranks.size)
        self.phases = ShardedStep(ranks, self.planner)
        self._kept_buffers: tuple[Hashable, Buffers | None] = None, None
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
                self.tracker.record(losses[:1], losses[1:], n_images=n_images)
                return context
            self.optimizer.zero_grad(set_to_none=True)

    def update(self, step: int, computed: StepContext[M], rates: Rates) -> None:
        self.ranks.enter("update")
        set_learning_rates(self.optimizer, rates)
        self._update(step, computed)

    def replay(self, step: int, indices: Sequence[int], rates: Rates) -> bool:
        self._announce(len(indices))
        graphs, todo = self.phase_graphs, "run"
        if graphs is None and self._waits or not self._running or step == self.config.iterations:
            return False
        if None in [strategy.phase(step) for strategy in self.strategies]:
            return False
        plan, key = self.planner.plan(indices), self._key(step, indices)
        rooms = self.phases.rooms(plan, len(self.gaussians))
        layout = plan.key, rooms
        if graphs is not None and key is not None and plan.key is not None:
            todo = graphs.plan(key, layout, self.gaussians)
        if graphs is not None and todo in ("capture", "replay"):
            set_learning_rates(self.optimizer, rates)
            inputs = self._inputs_of(step, indices, rates)
            if todo == "capture":
                on_device = self.phases.lay_out(plan, rooms, self.gaussians.device)
                graphs.begin(key, Captured(layout, on_device, self._buffers_of(plan)))
            captured = graphs.captured(key)
            bodies = self._bodies(captured, step, indices, inputs) if todo == "capture" else {}
            report = self._replay(graphs, key, captured, plan, rooms, bodies)
            if todo == "capture":
                states = (self.optimizer.state[p] for p in self._stepped)
                captured.counts = [state["step"] for state in states]
            captured.count(1)
            self._pending = _Pending(step, indices, rates, report, captured)
            return True
        if self._waits:
            return False
        context = self._take(step, indices)
        report, self._report = self._report, None
        assert report is not None
        losses, n_images = self._recorded
        self.tracker.record(losses[:1], losses[1:], context.skip, n_images)
        self.update(step, context, rates)
        self._pending = _Pending(step, indices, rates, report, None)
        return True

    @property
    def is_replaying(self) -> bool:
        """Whether the last step, which is not settled, was taken by graphs."""
        return self._pending is not None and self._pending.captured is not None

    def settle(self) -> None:
        if self._pending is None:
            return
        (step, images, rates, report, captured), self._pending = self._pending, None
        if self._read(report):
            if captured is not None:
                captured.count(-1)
            else:
                for parameter in self._stepped:
                    self.optimizer.state[parameter]["step"] -= 1
            with torch.enable_grad():
                self.update(step, self.forward_backward(step, images), rates)

    def _take(self, step: int, indices: Sequence[int]) -> StepContext[M]:
        """Find gradients, whether or not all buffers were large enough."""
        self._announce(len(indices))
        self.ranks.step = step
        ranks, phases, device = self.ranks, self.phases, self.gaussians.device
        indices, views = grouped(self.images.cameras, indices, device, together=True)
        background = torch.tensor(self.background_color(step), device=device)
        inputs = StepInputs(
            views[0], background, self._device_inputs(step), others=tuple(views[1:])
        )
        plan = self.planner.plan(indices)
        layout = phases.lay_out(plan, phases.rooms(plan, len(self.gaussians)), device)
        buffers = self._buffers_of(plan)
        ranks.enter("project")
        made = self._project(step, layout, buffers, inputs)
        phases.exchange_records(plan, buffers)
        targets = exchange_images(plan, ranks, self.images.__getitem__)
        ranks.enter("picture")
        row = self._picture(layout, buffers, made, targets, background)
        self._report = phases.report(plan, layout.rooms, row, buffers, wants_stop=self.wants_stop)
        phases.exchange_gradients(plan, buffers)
        ranks.enter("finish")
        context, losses = self._finish(step, indices, layout, buffers, made, inputs)
        self._recorded = losses, len(indices)
        return context

    def _replay(
        self,
        graphs: PhaseGraphs[M],
        key: Hashable,
        captured: Captured[M],
        plan: StepPlan,
        rooms: Rooms,
        bodies: Mapping[Phase, Body],
    ) -> Report:
        """Take a whole step by graphs, of which those that have bodies are captured first."""
        ranks, phases, buffers = self.ranks, self.phases, captured.buffers
        ranks.enter("project")
        graphs.run(key, "project", bodies.get("project"))
        phases.exchange_records(plan, buffers)
        images = exchange_images(plan, ranks, self.images.__getitem__)
        ranks.enter("picture")
        captured.let_targets_in(images)
        graphs.run(key, "picture", bodies.get("picture"))
        report = phases.report(plan, rooms, captured.row, buffers, wants_stop=self.wants_stop)
        phases.exchange_gradients(plan, buffers)
        ranks.enter("finish")
        graphs.run(key, "finish", bodies.get("finish"))
        ranks.enter("update")
        graphs.run(key, "update", bodies.get("update"))
        return report

    def _bodies(
        self, captured: Captured[M], step: int, indices: Sequence[int], inputs: StepInputs
    ) -> dict[Phase, Body]:
        """What each phase launches."""
        layout, buffers = captured.layout, captured.buffers

        def project() -> None:
            captured.made = self._project(step, layout, buffers, inputs)

        def picture() -> None:
            assert captured.made is not None
            targets, background = captured.targets, inputs.background
            captured.row = self._picture(layout, buffers, captured.made, targets, background)

        def finish() -> None:
            made, captured.made = captured.made, None
            assert made is not None
            context, losses = self._finish(step, indices, layout, buffers, made, inputs)
            self.tracker.record(losses[:1], losses[1:], context.skip, len(indices))
            captured.context = context

        def update() -> None:
            context, captured.context = captured.context, None
            assert context is not None
            self._update(step, context)

        return {"project": project, "picture": picture, "finish": finish, "update": update}

    def _project(
        self, step: int, layout: Layout, buffers: Buffers, inputs: StepInputs
    ) -> Projection:
        keywords: dict[str, Any] = dict(inputs.integers)
        for strategy in self.strategies:
            keywords |= strategy.before_render(step, self.gaussians)
        splats = [self.gaussians.splats(view) for view in inputs.views]
        ids = self.gaussians.rows["ids"]
        return self.phases.project(layout, buffers, splats, inputs.views, ids, keywords)

    def _picture(
        self,
        layout: Layout,
        buffers: Buffers,
        made: Projection,
        targets: Sequence[Tensor],
        background: Tensor,
    ) -> Tensor:  # [L] float64
        shown = self.phases.picture(
            layout,
            buffers,
            targets,
            background,
            self.config.lambda_dssim,
            deterministic=self.config.deterministic,
            by_id=self.by_id,
        )
        return self.phases.counted(layout, made, shown)

    def _finish(
        self,
        step: int,
        indices: Sequence[int],
        layout: Layout,
        buffers: Buffers,
        made: Projection,
        inputs: StepInputs,
    ) -> tuple[StepContext[M], Tensor]:  # [3] loss, L1, mean squared error
        """Gradients of parameters; `skip` says whether a buffer was too small."""
        model, table = self.gaussians, buffers.table
        skip = (table[:, OVERFLOW].amax() > 0).int().view(1)
        outs = []
        for size, records in zip(layout.plan.sizes, made.records, strict=True):
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
        if self.config.regularise == "seen":
            counts = outs[0].info["observations"] = context.observations
            masks = outs[0].info["masks"]
            observed = counts if masks is None else counts * masks.detach()
            sums = torch.stack([counts.sum(), observed.sum()]).double()
            elsewhere = self.ranks.stack(sums).sum(0) - sums
            outs[0].info["population"] = population._replace(
                observations=elsewhere[0], observed=elsewhere[1]
            )
        terms = [strategy.loss(step, model, outs[0]) for strategy in self.strategies]
        terms = [len(indices) * term for term in terms if term is not None]
        self.phases.finish(made, buffers.own, terms)
        values = table[:, VALUES].sum(0)
        loss = torch.stack([values[0], *(term.detach() for term in terms)]).sum()
        return context, torch.cat([loss.view(1), values[3:]]).float()

    def _key(self, step: int, indices: Sequence[int]) -> Hashable | None:
        """As that of one rank; None also where ranks talk, or somebody looks on, within phases."""
        if self.by_id or self.config.regularise == "seen" or self.phases.on_picture is not None:
            return None
        return super()._key(step, indices)

    def _inputs_of(self, step: int, indices: Sequence[int], rates: Rates) -> StepInputs:
        """A captured step's inputs, which are on their way to the device."""
        self.ranks.step = step
        camera = self.pictures.cameras[indices[0]]
        buffer = self._upload_inputs(step, indices, rates)
        return buffer.inputs(camera.width, camera.height, camera.near, camera.lens)

    def _buffers_of(self, plan: StepPlan) -> Buffers:
        """What a step exchanges; the same in all steps of one key."""
        means = self.gaussians.params["means"]
        if plan.key is None:
            return self.phases.buffers(plan, means.dtype, means.device)
        key, buffers = self._kept_buffers
        if buffers is None or key != (plan.key, means.dtype):
            self._kept_buffers = key, buffers = None, None  # before the next are made
            buffers = self.phases.buffers(plan, means.dtype, means.device)
            self._kept_buffers = (plan.key, means.dtype), buffers
        return buffers

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
