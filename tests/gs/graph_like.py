"""What stands in for a GPU where steps are captured on a CPU: renderer, optimizer and graphs."""

from collections.abc import Callable, Hashable
from typing import Any

import pytest
import torch
from torch import Tensor

from gs.model.model import Model, Splats
from gs.model.renderer import RenderOutput, render
from gs.model.view import View
from gs.training.captured_steps import Body, Plan, StepGraphs
from kernels import Capacity, Counts, FusedAdam


class PlainAdam(FusedAdam):
    """The same in PyTorch: kernels that are interpreted take half a second per step."""

    @torch.no_grad()
    def apply(self, rates: Tensor, *, skip: Tensor | None = None, **options: Any) -> None:
        if skip is not None and int(skip) != 0:
            return
        (beta1, beta2), eps, one = self.defaults["betas"], self.defaults["eps"], torch.ones(1, 2)
        for group, (lr, root) in zip(self.param_groups, rates.tolist(), strict=True):
            for p in (p for p in group["params"] if p.grad is not None):
                state, rows = self._state(p), self.rows if group["by_row"] else one
                assert rows is not None and p.grad is not None
                gain, bias = (x.view(-1, *[1] * (p.dim() - 1)).to(p) for x in rows.unbind(-1))
                m = state["exp_avg"].lerp(p.grad, 1.0 - beta1)
                v = state["exp_avg_sq"] * beta2 + (1.0 - beta2) * p.grad * p.grad
                new = p - lr * gain * m / (v.sqrt() / (root * bias) + eps)
                for x, y in ((p, new), (state["exp_avg"], m), (state["exp_avg_sq"], v)):
                    x.copy_(torch.where(gain > 0, y, x))


class Recording:
    """What a body launches: done at capture, where a graph waits for its first replay.

    A real graph calls no hook again. Here hooks are called anew, with the iteration and the context
    of the capture.
    """

    def __init__(self, body: Body) -> None:
        self.body, self.done = body, True
        body()

    def replay(self) -> None:
        if not self.done:
            self.body()
        self.done = False


class Watched(StepGraphs):
    """Keeps what was planned, counts replays and those that did not fit, and makes capacities too
    small where `tight` says so."""

    def __init__(self, tight: Callable[[int], bool] = lambda k: False) -> None:
        super().__init__(Recording)
        self.tight, self.plans, self.misfits, self.replays = tight, [], 0, 0
        self.keys: set[Hashable] = set()

    def plan(self, key: Hashable, model: Model) -> Plan:
        self.keys.add(key)
        self.plans.append(super().plan(key, model))
        return self.plans[-1]

    def capacity(self, n: int) -> Capacity:
        small = self.tight(self.plans.count("capture"))
        return Capacity(n, 64) if small else super().capacity(n)

    def fits(self, key: Hashable, n: int, counts: Counts, missing: int = 0) -> bool:
        fits = super().fits(key, n, counts, missing)
        self.replays += 1
        self.misfits += not fits
        return fits


@pytest.fixture
def graph_like(monkeypatch: pytest.MonkeyPatch) -> None:
    """The renderer and the optimizer of a GPU, as far as captured steps need them."""

    def render_within(
        model: Model | Splats, camera: View, *, capacity: Capacity | None = None, **options: Any
    ) -> RenderOutput:
        out = render(model, camera, **options)
        if capacity is None:
            return out
        n_rows = (out.info["radii"] > 0).all(-1).sum()
        out.info["counts"] = torch.stack([n_rows, out.info["n_isects"].view(())]).int()
        fits = n_rows <= capacity.rows and int(out.info["n_isects"]) <= capacity.entries
        return out if fits else out._replace(colors=out.colors * float("nan"))

    for name in ("gs.training.step.render", "gs.viewer.picture.render"):
        monkeypatch.setattr(name, render_within)
    monkeypatch.setattr("gs.training.optimizer.uses_triton", lambda *_: True)
    monkeypatch.setattr("kernels.FusedAdam", PlainAdam)
