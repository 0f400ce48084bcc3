"""What a step's images see: regularisers and Adam's steps of those Gaussians alone.

In a large scene an image shows one Gaussian in many. A regulariser over all of them has a gradient
for the unseen too, which Adam makes a full step of, as it is all that there is; momentum moves them
further. So masks fall for want of being looked at. Two settings of a run answer that, each alone:

    regularise seen   a mean over all N becomes a mean over observations: Gaussians weighed by the
                      number c of the step's images that see them, sum(c x) / sum(c)
    adam_rows seen    rows that no image of a step sees keep parameter and moments; bias corrections
                      go by the row's own number of steps
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels import count_row_steps

from ..model.model import Model
from ..schedule import multiple_in
from .observer import Observer, Run
from .row_adam import RowAdam
from .strategy import M, StepContext

if TYPE_CHECKING:
    from kernels import FusedAdam

STEPS = "adam_steps"  # rows: number of Adam's steps, int32
LOG_INTERVAL, BEFORE = 1000, 50  # iterations; those before are no multiples of other intervals


def count_steps(gaussians: Model, start: Mapping[str, Any] | None) -> None:
    """Add the row buffer of Adam's steps; rows of a start without have that of its optimizer."""
    if STEPS in gaussians.rows:
        return
    entries = ((start or {}).get("optimizer") or {}).values()
    steps = max((int(entry.get("step", 0)) for entry in entries), default=0)
    gaussians.rows[STEPS] = torch.full_like(gaussians.rows["ids"], steps)


def mark_rows(gaussians: Model, optimizer: FusedAdam | RowAdam, context: StepContext[M]) -> None:
    """Let the optimizer's next step be of the rows that are seen, and count it for them.

    A CUDA graph can capture it. Where rows have just been edited no row has a gradient, and nothing
    is done.
    """
    optimizer.rows = None
    if all(parameter.grad is None for parameter in gaussians.params.values()):
        return
    observations = context.observations.view(-1, context.gaussians.parts)
    betas = optimizer.param_groups[0]["betas"]
    optimizer.rows = count_row_steps(
        gaussians.rows[STEPS], observations, betas=betas, skip=context.skip
    )


def rows_seen(context: StepContext[M]) -> Tensor:  # [N] bool
    """Rows of which the step's images see a Gaussian."""
    parts = context.gaussians.parts
    return (context.observations.view(-1, parts) > 0).any(1)


class Unseen(Observer):
    """Measures now and then which share of the Gaussians a step moves though it does not see them.

    history.json has it as "unseen": step, share that the step's images see, and by parameter the
    share that moved and was not seen.

    Args:
        names: Parameters to look at, which regularisers push.
        n_images: Images of a step.
    """

    def __init__(self, names: Sequence[str], n_images: int) -> None:
        self.names, self.n_images = names, n_images
        self._seen: Tensor | None = None
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def is_due(self, step: int) -> bool:
        due = multiple_in(step + BEFORE, LOG_INTERVAL, self.n_images)
        return bool(self.names) and due is not None

    def report(self, run: Run, step: int) -> None:
        assert run.computed is not None
        self._seen = rows_seen(run.computed)
        params = run.gaussians.params
        self._before = {name: (params[name], params[name].detach().clone()) for name in self.names}

    def on_step(self, run: Run, step: int) -> None:
        seen, before = self._seen, self._before
        self._seen, self._before = None, {}
        params = run.gaussians.params
        if seen is None or any(params[name] is not p for name, (p, _) in before.items()):
            return  # nothing was asked, or rows came or went in this step
        shares = [seen.double().mean()]
        for p, old in before.values():
            moved = (p != old).flatten(1).any(1) if p.dim() > 1 else p != old
            shares.append((moved & ~seen).double().mean())
        share, *moved = torch.stack(shares).tolist()
        found = dict(zip(before, moved, strict=True))
        run.tracker.unseen(step, share, found)
