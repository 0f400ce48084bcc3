r"""Adam over all parameters of a model in one launch.

For step t of an element p with gradient g (Kingma and Ba 2015, algorithm 1):

    m <- m + (1 - beta1) (g - m)
    v <- beta2 v + (1 - beta2) g^2
    p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

in this order of operations, which is that of torch.optim.Adam with foreach=True, and with the fused
multiply-adds that its CUDA kernels contain, so that on a GPU the results are the same bits (the
tests demand it there). On a CPU, torch fuses in the vectorised part of a tensor and not in its
tail, and Triton's interpreter does not fuse: one rounding, 6e-8 relative, per operation. A step may
also be of some rows alone, each with a count t of its own: `adam_step` says how.

Every element moves 28 bytes and needs few instructions, so all that matters is that memory is read
16 bytes per lane. A program owns BLOCK elements of one parameter, which it finds by comparing its
number with where the parameters end. Learning rate and step count arrive as numbers on the device,
so that a CUDA graph can be replayed with others.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..runtime.launch import launch

PARAMS = 7  # of one launch: as many as a model of Gaussians has
BLOCK = 1024  # elements per program


@triton.jit
def _pick(k, x0, x1, x2, x3, x4, x5, x6):
    """The k-th of seven scalars or pointers."""
    x = tl.where(k == 1, x1, x0)
    x = tl.where(k == 2, x2, x)
    x = tl.where(k == 3, x3, x)
    x = tl.where(k == 4, x4, x)
    x = tl.where(k == 5, x5, x)
    return tl.where(k == 6, x6, x)


@triton.jit
def _update(p, g, m, v, step_size, root_bias, weight1, beta2, weight2, eps):
    """Parameter and moments after a step."""
    m = tl.fma(weight1, g - m, m)
    v = tl.fma(weight2, g * g, beta2 * v)
    change = tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), root_bias) + eps)
    return tl.fma(-step_size, change, p), m, v


@triton.jit
def _step_block(
    p_ptr,
    g_ptr,
    m_ptr,
    v_ptr,
    rows_ptr,
    width,
    base,
    n_valid,
    step_size,
    root_bias,
    weight1,
    beta2,
    weight2,
    eps,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update n_valid elements from `base`."""
    i = tl.arange(0, BLOCK)
    mask = None if FULL else i < n_valid
    if rows_ptr is not None:
        inside = i < n_valid
        by_row = inside & (width > 0)
        width = tl.maximum(width, 1)
        first = base // width  # 64 bits once, 32 per element
        row = first + ((base - first * width).to(tl.int32) + i) // width
        gain = tl.load(rows_ptr + 2 * row, mask=by_row, other=1.0)
        root_bias *= tl.load(rows_ptr + 2 * row + 1, mask=by_row, other=1.0)
        step_size *= gain
        mask = inside & (gain > 0.0)
    p = tl.load(p_ptr + base + i, mask=mask)
    g = tl.load(g_ptr + base + i, mask=mask)
    m = tl.load(m_ptr + base + i, mask=mask)
    v = tl.load(v_ptr + base + i, mask=mask)
    p, m, v = _update(p, g, m, v, step_size, root_bias, weight1, beta2, weight2, eps)
    tl.store(p_ptr + base + i, p, mask=mask)
    tl.store(m_ptr + base + i, m, mask=mask)
    tl.store(v_ptr + base + i, v, mask=mask)


_INTEGERS = [f"{name}{k}" for name in ("end", "tail", "width") for k in range(PARAMS)]
_INTEGERS += ["first_rate"]


@triton.jit(do_not_specialize=_INTEGERS)
def _adam_kernel(
    # of every parameter: values (in and out), gradients, moments (in and out)
    p0, p1, p2, p3, p4, p5, p6,
    g0, g1, g2, g3, g4, g5, g6,
    m0, m1, m2, m3, m4, m5, m6,
    v0, v1, v2, v3, v4, v5, v6,
    rates_ptr,  # [P, 2]
    rows_ptr,  # [N, 2] or None
    skip_ptr,  # [1] or None
    # the program after its last one, elements of that one
    end0, end1, end2, end3, end4, end5, end6,
    tail0, tail1, tail2, tail3, tail4, tail5, tail6,
    # elements per row where the step is by row, else 0
    width0, width1, width2, width3, width4, width5, width6,
    first_rate, weight1, beta2, weight2, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    k = (pid >= end0).to(tl.int32) + (pid >= end1).to(tl.int32) + (pid >= end2).to(tl.int32)
    k += (pid >= end3).to(tl.int32) + (pid >= end4).to(tl.int32) + (pid >= end5).to(tl.int32)
    start = tl.where(k == 0, 0, _pick(k, end0, end0, end1, end2, end3, end4, end5))
    end = _pick(k, end0, end1, end2, end3, end4, end5, end6)
    n_valid = tl.where(
        pid == end - 1, _pick(k, tail0, tail1, tail2, tail3, tail4, tail5, tail6), BLOCK
    )
    p_ptr = _pick(k, p0, p1, p2, p3, p4, p5, p6)
    g_ptr = _pick(k, g0, g1, g2, g3, g4, g5, g6)
    m_ptr = _pick(k, m0, m1, m2, m3, m4, m5, m6)
    v_ptr = _pick(k, v0, v1, v2, v3, v4, v5, v6)
    step_size = tl.load(rates_ptr + (first_rate + k) * 2)
    root_bias = tl.load(rates_ptr + (first_rate + k) * 2 + 1)
    base = (pid - start).to(tl.int64) * BLOCK
    width = _pick(k, width0, width1, width2, width3, width4, width5, width6)
    if skip_ptr is not None:
        n_valid = tl.where(tl.load(skip_ptr) == 0, n_valid, 0)
    if n_valid == BLOCK:
        _step_block(
            p_ptr,
            g_ptr,
            m_ptr,
            v_ptr,
            rows_ptr,
            width,
            base,
            n_valid,
            step_size,
            root_bias,
            weight1,
            beta2,
            weight2,
            eps,
            True,
            BLOCK,
        )
    elif n_valid > 0:
        _step_block(
            p_ptr,
            g_ptr,
            m_ptr,
            v_ptr,
            rows_ptr,
            width,
            base,
            n_valid,
            step_size,
            root_bias,
            weight1,
            beta2,
            weight2,
            eps,
            False,
            BLOCK,
        )


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
        launch(_adam_kernel, (end,), *tensors, rates, rows, skip, *numbers, BLOCK=BLOCK)


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
