"""Adam of some rows by their own counts, in plain PyTorch; on a GPU kernels.FusedAdam does it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class RowAdam(torch.optim.Adam):
    """Adam of some rows by their own counts, as kernels.FusedAdam has it, on any device."""

    rows: Tensor | None = None  # [N, 2]

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], float] | None = None
    ) -> None:
        """Parameters of groups with "by_row" step in the rows whose factor in `rows` is not 0."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1.0
                t = float(state["step"])
                gain, root = torch.tensor([[1.0 / (1.0 - beta1**t)], [(1.0 - beta2**t) ** 0.5]])
                if group["by_row"]:
                    assert self.rows is not None
                    gain, root = self.rows.unbind(-1)
                gain, root = (x.view(-1, *[1] * (p.dim() - 1)) for x in (gain, root))
                m = state["exp_avg"].lerp(p.grad, 1.0 - beta1)
                v = beta2 * state["exp_avg_sq"] + (1.0 - beta2) * p.grad.square()
                moved = p - group["lr"] * gain * m / (v.sqrt() / root + group["eps"])
                for x, new in ((p, moved), (state["exp_avg"], m), (state["exp_avg_sq"], v)):
                    x.copy_(torch.where(gain > 0.0, new, x))
