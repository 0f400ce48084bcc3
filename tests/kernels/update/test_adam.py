"""kernels.update.adam against torch.optim.Adam."""

import copy
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import FusedAdam
from kernels.update.adam import BLOCK, adam_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BETAS, EPS = (0.9, 0.999), 1e-15
KEYS = ("exp_avg", "exp_avg_sq")
# Means, sh0, shN of degree 1, opacities, mask logits, scales, quats.
SHAPES = ((3,), (1, 3), (3, 3), (), (2,), (3,), (4,))


def leaves(n: int, shapes: Sequence[tuple[int, ...]] = SHAPES, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *s, generator=g).to(DEVICE).requires_grad_() for s in shapes]


def groups(params: list[Tensor]) -> list[dict]:
    return [{"params": [p], "lr": 0.01 / (k + 1)} for k, p in enumerate(params)]


def fused(params: list[Tensor]) -> FusedAdam:
    return FusedAdam(groups(params), betas=BETAS, eps=EPS)


def torch_adam(params: list[Tensor]) -> torch.optim.Adam:
    return torch.optim.Adam(groups(params), betas=BETAS, eps=EPS, foreach=True)


def set_gradients(params: list[Tensor], step: int) -> None:
    """Gradients over many orders of magnitude, some exactly zero."""
    g = torch.Generator().manual_seed(1000 + step)
    for p in params:
        size = 10.0 ** torch.empty(p.shape).uniform_(-8, 0, generator=g)
        size *= torch.rand(p.shape, generator=g) > 0.1
        p.grad = (torch.randn(p.shape, generator=g) * size).to(DEVICE)


def gradients_of(params: list[Tensor]) -> list[Tensor]:
    gradients = [p.grad for p in params if p.grad is not None]
    assert len(gradients) == len(params)
    return gradients


def assert_equal(got: list[Tensor], want: list[Tensor]) -> None:
    for k, (x, y) in enumerate(zip(got, want, strict=True)):
        if DEVICE == "cuda":
            assert torch.equal(x, y), k
        else:
            # One rounding of a product where torch's vector code has none; sums of the first
            # moment cancel, so the error is that of their terms.
            torch.testing.assert_close(x, y, rtol=1e-6, atol=2e-7, msg=lambda m, k=k: f"{k}: {m}")


def moments(optimizer: torch.optim.Optimizer, params: list[Tensor], key: str) -> list[Tensor]:
    return [optimizer.state[p][key] for p in params]


@pytest.mark.parametrize("n", [1, 85, 400])
def test_a_row_steps_by_its_own_count(n: int) -> None:
    """As a torch.optim.Adam for each row; the second parameter steps as a whole."""
    got, want = leaves(n), leaves(n)
    optimizer = fused(got)
    for k, group in enumerate(optimizer.param_groups):
        group["by_row"] = k != 1
    parts = [[p.detach()[i : i + 1].clone().requires_grad_() for p in want] for i in range(n)]
    single, whole = [torch_adam(part) for part in parts], torch_adam(want)
    counts, g = torch.zeros(n, dtype=torch.float64), torch.Generator().manual_seed(n)
    for step in range(8):
        set_gradients(got, step)
        seen = torch.rand(n, generator=g) < 0.4
        if step % 2:  # programs see no row, and parts of programs
            seen[100:] = False
        counts += seen
        pair = torch.stack([1 / (1 - 0.9**counts), (1 - 0.999**counts).sqrt()], -1)
        optimizer.rows = torch.where(seen[:, None], pair, 0.0).float().to(DEVICE)
        optimizer.step()
        want[1].grad = got[1].grad
        whole.step()
        for i in seen.nonzero()[:, 0].tolist():
            for part, p in zip(parts[i], got, strict=True):
                assert p.grad is not None
                part.grad = p.grad[i : i + 1]
            single[i].step()
    for k, p in enumerate(got):
        expected = want[1] if k == 1 else torch.cat([part[k] for part in parts])
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-6)
        if k != 1 and n > 1:
            assert (counts == 0).any() == (p == leaves(n)[k]).reshape(n, -1).all(1).any()


def test_rows_that_do_not_fit_are_named() -> None:
    params = leaves(5)
    optimizer = fused(params)
    set_gradients(params, 0)
    optimizer.param_groups[2]["by_row"] = True
    optimizer.rows = torch.zeros(4, 2, device=DEVICE)
    with pytest.raises(ValueError, match=r"rows: expected \[5, 2\] as params\[2\]"):
        optimizer.step()


@pytest.mark.parametrize("n", [1, 85, 400])
def test_steps_are_those_of_torch(n: int) -> None:
    got, want = leaves(n), leaves(n)
    optimizer, reference = fused(got), torch_adam(want)
    for step in range(20):
        for one in (optimizer, reference):
            one.param_groups[0]["lr"] = 0.01 * 0.8**step
        set_gradients(got, step)
        set_gradients(want, step)
        if step in (3, 7):  # counts differ by parameter from here on
            got[step % 5].grad = want[step % 5].grad = None
        optimizer.step()
        reference.step()
    assert_equal(got, want)
    assert [s.item() for s in moments(optimizer, got, "step")] == [20, 20, 19, 19, 20, 20, 20]
    for key in KEYS:
        assert_equal(moments(optimizer, got, key), moments(reference, want, key))


def test_a_step_is_the_formula() -> None:
    """In float64, from a state that is not zero; sizes around a program's."""
    g = torch.Generator().manual_seed(0)
    for n in (BLOCK - 1, BLOCK, BLOCK + 1):
        p, grad, m = (torch.randn(n, generator=g) for _ in range(3))
        v = torch.rand(n, generator=g)
        mean = 0.9 * m.double() + 0.1 * grad.double()
        square = 0.999 * v.double() + 0.001 * grad.double().square()
        want = p.double() - 0.25 * mean / (square.sqrt() / 0.5 + 1e-3)
        rates = torch.tensor([[0.25, 0.5]], device=DEVICE)
        ps, gs, ms, vs = ([x.to(DEVICE)] for x in (p, grad, m, v))
        adam_step(ps, gs, ms, vs, rates, betas=BETAS, eps=1e-3)
        for got, expected in ((ps, want), (ms, mean), (vs, square)):
            torch.testing.assert_close(got[0].double().cpu(), expected, rtol=1e-6, atol=1e-6)


def tensors_of(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> list[Tensor]:
    return [*params, *(x for key in KEYS for x in moments(optimizer, params, key))]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_skip(shape: tuple[int, ...]) -> None:
    params = leaves(30)
    optimizer = fused(params)
    set_gradients(params, 0)
    optimizer.step()
    set_gradients(params, 1)
    tensors = tensors_of(optimizer, params)
    before = [x.detach().clone() for x in tensors]
    skip = torch.full(shape, 3, dtype=torch.int32, device=DEVICE)
    optimizer.step(skip=skip)
    for x, y in zip(tensors, before, strict=True):
        assert torch.equal(x, y)
    optimizer.advance(-1)
    optimizer.step(skip=torch.zeros_like(skip))
    want = leaves(30)
    reference = torch_adam(want)
    for step in range(2):
        set_gradients(want, step)
        reference.step()
    assert_equal(params, want)
    assert optimizer.state[params[0]]["step"].item() == 2


def test_rates_are_those_of_the_next_step() -> None:
    params = leaves(3)
    optimizer = fused(params)
    for step in range(3):
        rates = optimizer.rates_for()
        assert rates.dtype == torch.float32 and rates.device.type == "cpu"
        want = [
            [0.01 / (k + 1) / (1 - 0.9 ** (step + 1)), math.sqrt(1 - 0.999 ** (step + 1))]
            for k in range(len(SHAPES))
        ]
        assert torch.equal(rates, torch.tensor(want, dtype=torch.float32))
        set_gradients(params, step)
        optimizer.step()


def test_apply_and_advance_make_a_step() -> None:
    got, want = leaves(20), leaves(20)
    parts, whole = fused(got), fused(want)
    rates = torch.empty(len(SHAPES), 2, device=DEVICE)
    for step in range(3):
        set_gradients(got, step)
        set_gradients(want, step)
        rates.copy_(parts.rates_for())
        parts.apply(rates)
        parts.advance()
        whole.step()
    for x, y in zip(got, want, strict=True):
        assert torch.equal(x, y)


def test_no_rows_no_gradients_and_more_parameters_than_one_launch_takes() -> None:
    empty = leaves(0)
    optimizer = fused(empty)
    set_gradients(empty, 0)
    optimizer.step()
    assert optimizer.state[empty[0]]["step"].item() == 1
    fused(leaves(4)).step()  # no gradients: nothing to do

    shapes = [*SHAPES, (2, 0), (5,), (), (3,)]  # shN of degree 0 has no columns
    got, want = leaves(9, shapes), leaves(9, shapes)
    optimizer, reference = fused(got), torch_adam(want)
    for step in range(3):
        set_gradients(got, step)
        set_gradients(want, step)
        got[8].grad = want[8].grad = None
        optimizer.step()
        reference.step()
    assert_equal(got, want)


def test_gradients_of_any_layout() -> None:
    got, want = leaves(50, [(3,), (4,)]), leaves(50, [(3,), (4,)])
    optimizer, reference = fused(got), fused(want)
    set_gradients(want, 0)
    records = torch.zeros(50, 8, device=DEVICE)
    records[:, 1:4], records[:, 4:] = gradients_of(want)
    got[0].grad, got[1].grad = records[:, 1:4], records[:, 4:]
    optimizer.step()
    reference.step()
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("old", [fused, torch_adam])
@pytest.mark.parametrize("new", [fused, torch_adam])
def test_resume_from_own_and_from_torch_state(old: Any, new: Any) -> None:
    first, second = leaves(40), leaves(40)
    a, b = old(first), new(second)
    for step in range(3):
        set_gradients(first, step)
        a.step()
    with torch.no_grad():
        for x, y in zip(first, second, strict=True):
            y.copy_(x)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    assert a.state_dict()["param_groups"][0].keys() == b.state_dict()["param_groups"][0].keys()
    for step in range(3, 6):
        for params, optimizer in ((first, a), (second, b)):
            set_gradients(params, step)
            optimizer.step()
    if old is new:
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert_equal(first, second)
    assert all(b.state[p]["step"].item() == 6 for p in second)


def test_bad_input_is_named() -> None:
    p, m = torch.zeros(4, 3, device=DEVICE), torch.zeros(4, 3, device=DEVICE)
    rates = torch.ones(1, 2, device=DEVICE)

    def step(p=p, g=p, m=m, v=m, rates=rates, **more) -> None:
        adam_step([p], [g], [m], [v], rates, betas=BETAS, eps=EPS, **more)

    with pytest.raises(ValueError, match=r"exp_avgs\[0\]: expected contiguous \[4, 3\]"):
        step(m=m[:3])
    with pytest.raises(ValueError, match=r"params\[0\].*strides"):
        step(p=torch.zeros(3, 4, device=DEVICE).T)
    with pytest.raises(ValueError, match=r"grads\[0\]"):
        step(g=p.double())
    with pytest.raises(ValueError, match="rates"):
        step(rates=rates[0])
    with pytest.raises(ValueError, match="skip"):
        step(skip=torch.zeros(2, dtype=torch.int32, device=DEVICE))
    with pytest.raises(ValueError, match="number"):
        adam_step([p], [], [m], [m], rates, betas=BETAS, eps=EPS)
    with pytest.raises(ValueError, match="same betas"):
        other = fused([p.requires_grad_(), m.requires_grad_()])
        other.param_groups[1]["eps"] = 1e-8
        other.apply(torch.ones(2, 2, device=DEVICE))


@pytest.mark.gpu
def test_a_graph_replays_with_other_rates() -> None:
    got, want = leaves(1000), leaves(1000)
    optimizer, reference = fused(got), fused(want)
    set_gradients(got, 0)
    set_gradients(want, 0)
    optimizer.step()
    reference.step()
    rates, skip = torch.zeros(len(SHAPES), 2, device=DEVICE), torch.zeros(1, dtype=torch.int32)
    skip = skip.to(DEVICE)
    optimizer.apply(rates, skip=torch.ones_like(skip))  # compiled, without an effect
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.apply(rates, skip=skip)
    gradients = gradients_of(got)
    for step in range(1, 5):
        set_gradients(want, step)
        for v, g in zip(gradients_of(want), gradients, strict=True):
            g.copy_(v)
        reference.step()
        rates.copy_(optimizer.rates_for())
        graph.replay()
        optimizer.advance()
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_it_leaves_the_compiler_alone() -> None:
    code = """
import sys, torch
from kernels import FusedAdam
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
optimizer = FusedAdam([{"params": [p], "lr": 0.1, "name": "p"}], lr=0.0)
optimizer.zero_grad(set_to_none=True)
assert p.grad is None
assert optimizer.param_groups[0]["lr"] == 0.1 and len(optimizer.param_groups) == 1
assert not any(name.startswith("torch._dynamo") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
