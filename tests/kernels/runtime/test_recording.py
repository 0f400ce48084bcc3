"""Recordings do again, for other tensors, what was done while a call was watched."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import caches, rasterization
from kernels.runtime import recording
from kernels.runtime.launch import empty, launch, zeros
from kernels.runtime.recording import Recording, Results, Scalar, run_recorded

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
N = 64


@triton.jit(do_not_specialize=["number", "n"])
def _axpy_kernel(x_ptr, y_ptr, out_ptr, number, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    if y_ptr is not None:
        x += tl.load(y_ptr + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, number * x, mask=i < n)


def axpy(x: Tensor, y: Tensor | None, out: Tensor, number: int) -> Tensor:
    launch(_axpy_kernel, (1,), x, y, out, number, N, BLOCK=N)
    return out


def make(n: int = N) -> Tensor:
    return empty((n,), torch.float32, DEVICE)


@pytest.fixture(autouse=True)
def fresh(spoil_memory: Callable[[int], None]) -> None:
    """Nothing is remembered, and what nothing writes is NaN or a huge integer."""
    caches.clear()
    spoil_memory(2**31 - 3)


def chain_of(x: Tensor, number: Scalar) -> Callable[[], Results]:
    """Results number (x + 2 x), nothing, and x + 0 + 0; five buffers of which two can share."""

    def run() -> Results:
        twice = axpy(x, None, make(), 2)
        sum_ = axpy(x, twice, make(), 1)
        result = axpy(sum_, None, make(), number)
        nothing, again = zeros((N,), torch.float32, DEVICE), zeros((N,), torch.int32, DEVICE)
        copy = axpy(nothing, x, make(), 1)
        return result, None, axpy(copy, again.view(torch.float32), make(), 1)

    return run


def test_replay() -> None:
    torch.manual_seed(0)
    for k in range(5):
        x, number = torch.randn(N).to(DEVICE), Scalar(k)
        first, second, third = run_recorded("chain", (x, number), chain_of(x, number))
        assert second is None and first is not None and third is not None
        torch.testing.assert_close(first, 3 * k * x)
        assert torch.equal(third, x)
    found = recording._recordings["chain"]
    assert isinstance(found, Recording) and found.n_steps == 6
    # one launch for both zeros; twice and sum_ live together, and copy lies where one of them was
    assert found.made[-1].shape == (4 * recording.ALIGNMENT // 4,)


def test_views_and_alignment() -> None:
    """Parts of inputs and buffers are found; inputs that are not aligned take the slow way."""

    def run(x: Tensor) -> Results:
        pair = make(2 * N)
        axpy(x[N:], None, pair[N:], 1)
        axpy(x, pair[N:], pair[:N], 1)
        return (axpy(pair[:N], None, make(), 2),)

    for k in range(4):
        x = torch.arange(2.0 * N + 1, device=DEVICE)[int(k == 3) :][: 2 * N]
        (result,) = run_recorded("views", (x,), functools.partial(run, x))
        assert result is not None
        torch.testing.assert_close(result, 2 * (x[:N] + x[N:]))
    assert isinstance(recording._recordings["views"], Recording)


@pytest.mark.parametrize("what", ["foreign", "result", "same"])
def test_what_is_not_known_is_not_replayed(what: str) -> None:
    for k in range(4):
        x = torch.full((N,), float(k), device=DEVICE)
        y = x if what == "same" else x + 1

        def run() -> tuple[Tensor]:
            if what == "foreign":
                return (axpy(x, x + 1, make(), 1),)  # noqa: B023
            if what == "result":
                return (axpy(x, y, make(), 1) * 1,)  # noqa: B023
            return (axpy(x, y, make(), 1),)  # noqa: B023

        (result,) = run_recorded(what, (x, y), run)
        assert torch.equal(result, x + y if what != "foreign" else 2 * x + 1)
    assert recording._recordings[what] == recording.NOT_RECORDED


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "drawn": {"logits": True, "absgrad": True},
    "background": {"background": True, "render_mode": "RGB+D"},
    "channels": {"channels": 2},
    "cameras": {},
}


@pytest.mark.parametrize("case", CASES)
def test_rasterization_again(case: str, assert_close: Callable[..., None]) -> None:
    """Four calls of a kind with other Gaussians and seeds, the last two of them replayed."""
    options = dict(CASES[case])
    channels, with_logits = options.pop("channels", None), options.pop("logits", False)
    with_background = options.pop("background", False)
    g = torch.Generator().manual_seed(7)
    rand = lambda *shape: torch.rand(*shape, generator=g)  # noqa: E731
    K = torch.tensor([[14.0, 0, 8], [0, 14, 5], [0, 0, 1]])[None]
    for call in range(4):
        leaves = [
            rand(30, 3) * 2 + torch.tensor([-1.0, -1.0, 2.0]),
            rand(30, 4),
            0.05 + 0.2 * rand(30, 3),
            rand(30),
            rand(30, channels) if channels else rand(30, 4, 3),
            torch.eye(4)[None],
        ]
        logits, background = rand(30, 2), rand(1, 3)
        results = []
        for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
            inputs = [
                x.to(DEVICE, dtype, copy=True).requires_grad_(k != 5 or case == "cameras")
                for k, x in enumerate((*leaves, logits, background))
            ]
            keywords = dict(options)
            if with_logits:
                keywords |= {"mask_logits": inputs[6], "mask_seed": 3 + call}
            if with_background:
                keywords["backgrounds"] = inputs[7]
            if backend == "triton":
                keywords["precision"] = "exact"
            if not channels:
                keywords["sh_degree"] = 1
            image, alphas, info = rasterization(
                *inputs[:6], K.to(DEVICE, dtype), 16, 11, backend=backend, **keywords
            )
            (image.square().sum() + alphas.sum()).backward()
            grads = [None if x.grad is None else x.grad for x in inputs]
            results.append([image, alphas, info["means2d"].grad, info["depths"], *grads])
        for k, (got, want) in enumerate(zip(*results, strict=True)):
            assert (got is None) == (want is None), k
            if want is not None:
                assert_close(f"call {call}, result {k}", got, want, 2e-4)
    made = [r.n_steps for r in recording._recordings.values() if isinstance(r, Recording)]
    # the backward of features, and of cameras, is more than kernels
    assert len(made) == (2 if case in ("channels", "cameras") else 3)
