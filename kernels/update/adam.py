r"""Adam over all parameters of a model in one launch.

For step t of an element p with gradient g (Kingma and Ba 2015, algorithm 1):

    m <- m + (1 - beta1) (g - m)
    v <- beta2 v + (1 - beta2) g^2
    p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

in this order of operations, which is that of torch.optim.Adam with foreach=True, and with the fused
multiply-adds that its CUDA kernels contain, so that on a GPU the results are the same bits (the
tests demand it there). On a CPU, torch fuses in the vectorised part of a tensor and not in its
tail, and Triton's interpreter does not fuse: one rounding, 6e-8 relative, per operation. A step may
also be of some rows alone, each with a count t of its own: `adam_step` says how. The kernel is in
adam_kernel.py. Learning rate and step count arrive as numbers on the device, so that a CUDA graph
can be replayed with others.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..runtime.launch import launch
from .adam_kernel import BLOCK, PARAMS, adam_kernel


def adam_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    rates: Tensor,  # [P, 2]
    *,
    betas: tuple[float, float],
    eps: float,
    skip: Tensor | None = None,  # [1] or []
    rows: Tensor | None = None,  # [N, 2]
    by_row: Sequence[bool] = (),
) -> None:
    """One step of Adam in place, without host synchronisation; CUDA graphs can capture it.

    Args:
        params: P contiguous float32 tensors with one row per Gaussian. [N, ...]
        grads: Their gradients; where one is None, parameter and moments stay as they are.
        exp_avgs: First moments, contiguous.
        exp_avg_sqs: Second moments, contiguous.
        rates: lr / (1 - beta1^t) and sqrt(1 - beta2^t) of every parameter, on the device. [P, 2]
        betas: Decay of the moments.
        eps: Added to the denominator.
        skip: int32 on the device; if it is not 0, everything stays as it is.
        rows: What the two columns of `rates` are multiplied by in each row, float32; a row where
            the first is 0 stays as it is, moments and all. [N, 2]
        by_row: For which parameters `rows` counts. [P]

    Raises:
        ValueError: a tensor's shape, dtype, device or layout is not as above.
    """
    _check_rows(params, rows, by_row)
    _check(params, grads, exp_avgs, exp_avg_sqs, rates, skip)
    weights = (1.0 - betas[0], betas[1], 1.0 - betas[1])
    for first in range(0, len(params), PARAMS):
        addresses: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        ends: list[int] = []
        tails: list[int] = []
        widths: list[int] = []
        end = 0
        for k in range(first, first + PARAMS):
            # what is absent gets no program, and pointers of a kind that compiles to the same
            k, absent = (k, grads[k] is None) if k < len(params) else (first, True)
            gradient = params[k] if absent else grads[k]
            assert gradient is not None
            n = 0 if absent else params[k].numel()
            programs = -(-n // BLOCK)
            end += programs
            addresses.append((params[k], gradient.contiguous(), exp_avgs[k], exp_avg_sqs[k]))
            ends.append(end)
            tails.append(n - (programs - 1) * BLOCK)
            apart = rows is not None and not absent and by_row[k]
            widths.append(params[k].numel() // max(len(params[k]), 1) if apart else 0)
        tensors = [x for column in zip(*addresses, strict=True) for x in column]
        numbers = (*ends, *tails, *widths, first, *weights, eps)
        launch(adam_kernel, (end,), *tensors, rates, rows, skip, *numbers, BLOCK=BLOCK)


def _check_rows(params: Sequence[Tensor], rows: Tensor | None, by_row: Sequence[bool]) -> None:
    if rows is None:
        return
    if len(by_row) != len(params):
        raise ValueError(f"by_row: expected {len(params)} entries, got {len(by_row)}")
    if rows.dtype != torch.float32 or not rows.is_contiguous():
        raise ValueError(f"rows: expected contiguous float32, got {rows.dtype}")
    for k, p in enumerate(params):
        if by_row[k] and rows.shape != (len(p), 2):
            raise ValueError(f"rows: expected [{len(p)}, 2] as params[{k}], got {list(rows.shape)}")


def _check(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    rates: Tensor,
    skip: Tensor | None,
) -> None:
    n_params = len(params)
    if not n_params == len(grads) == len(exp_avgs) == len(exp_avg_sqs):
        raise ValueError(
            f"adam_step: {n_params} parameters with another number of gradients or moments"
        )
    if rates.shape != (n_params, 2) or rates.dtype != torch.float32:
        raise ValueError(
            f"rates: expected [{n_params}, 2] float32, got {list(rates.shape)} {rates.dtype}"
        )
    for k, p in enumerate(params):
        for name, x in (("params", p), ("exp_avgs", exp_avgs[k]), ("exp_avg_sqs", exp_avg_sqs[k])):
            if x.shape != p.shape or x.dtype != torch.float32 or not x.is_contiguous():
                raise ValueError(
                    f"{name}[{k}]: expected contiguous {list(p.shape)} float32,"
                    f" got {list(x.shape)} {x.dtype} with strides {x.stride()}"
                )
        g = grads[k]
        if g is not None and (g.shape != p.shape or g.dtype != torch.float32):
            raise ValueError(
                f"grads[{k}]: expected {list(p.shape)} float32, got {list(g.shape)} {g.dtype}"
            )
    if skip is not None and (skip.numel() != 1 or skip.dtype != torch.int32):
        raise ValueError(f"skip: expected one int32, got {list(skip.shape)} {skip.dtype}")


class FusedAdam(torch.optim.Adam):
    """torch.optim.Adam whose step is one kernel, with the same state and results.

    State dicts go to and from torch.optim.Adam as they are: "step" is a float32 scalar on the CPU.
    All groups share betas and eps. A group with "by_row" steps the rows that `rows` has, by their
    own counts (`adam_step`); whoever sets that makes it anew for every step.

    `step` is the whole. Whoever replays a CUDA graph captures `apply`, and then for every
    replay copies `rates_for()` to the captured `rates` and calls `advance()`.
    """

    # As torch wraps them, their first call imports torch._dynamo, which takes seconds.
    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps)
        self.rows: Tensor | None = None  # [N, 2]

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        closure: Callable[[], float] | None = None,
        *,
        skip: Tensor | None = None,  # [1] or []
    ) -> float | None:
        """One step of all parameters that have a gradient; `skip` as in `adam_step`.

        Steps are counted on the host, so a skipped one counts too: `advance(-1)` takes it back.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rates = self.rates_for()
        device = self.param_groups[0]["params"][0].device
        if device.type == "cuda":  # a copy from pinned memory does not wait
            rates = rates.pin_memory().to(device, non_blocking=True)
        self.apply(rates, skip=skip)
        self.advance()
        return loss

    @torch.no_grad()
    def apply(
        self,
        rates: Tensor,  # [P, 2]
        *,
        skip: Tensor | None = None,  # [1] or []
    ) -> None:
        """Launch the step with `rates` on the device; nothing is counted.

        Raises:
            ValueError: groups differ in betas or eps.
        """
        groups = self.param_groups
        if any((g["betas"], g["eps"]) != (groups[0]["betas"], groups[0]["eps"]) for g in groups):
            raise ValueError("FusedAdam: all groups must have the same betas and eps")
        params = self._params()
        states = [self._state(p) if p.grad is not None else None for p in params]
        adam_step(
            params,
            [p.grad for p in params],
            [p if s is None else s["exp_avg"] for p, s in zip(params, states, strict=True)],
            [p if s is None else s["exp_avg_sq"] for p, s in zip(params, states, strict=True)],
            rates,
            betas=groups[0]["betas"],
            eps=groups[0]["eps"],
            skip=skip,
            rows=self.rows,
            by_row=[bool(g.get("by_row")) for g in groups for _ in g["params"]],
        )

    def rates_for(self) -> Tensor:  # [P, 2]
        """The `rates` of the next step, float32 on the CPU, in the order of the groups.

        Bias corrections are computed in double precision, as torch does.
        """
        rows = []
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                t = 1.0 + float(self.state[p]["step"] if self.state.get(p) else 0.0)
                if group.get("by_row"):
                    rows.append((group["lr"], 1.0))
                else:
                    rows.append((group["lr"] / (1.0 - beta1**t), (1.0 - beta2**t) ** 0.5))
        return torch.tensor(rows, dtype=torch.float32)

    def advance(self, steps: int = 1) -> None:
        """Count steps of all parameters that have a gradient, without taking them."""
        for p in self._params():
            if p.grad is not None:
                self._state(p)["step"].add_(steps)

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # may come from torch.optim.Adam with other choices
            group |= {"foreach": None, "capturable": False, "fused": None}
        for moments in self.state.values():
            moments["step"] = moments["step"].cpu()

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
        return state
