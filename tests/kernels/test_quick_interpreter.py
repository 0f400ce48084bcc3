"""The quick interpreter computes, and complains, as Triton's own does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from quick_interpreter import KNOWN, RESTORE, quicken
from torch import Tensor
from triton.runtime import interpreter

from kernels import rasterization

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or not triton.__version__.startswith(KNOWN),
    reason="kernels are not interpreted, or by an interpreter of another version",
)


@contextmanager
def plain(config: pytest.Config) -> Iterator[None]:
    """Triton's own interpreter."""
    config.stash[RESTORE]()
    try:
        yield
    finally:
        config.stash[RESTORE] = quicken()


def rendering() -> list[Tensor]:
    """Images and gradients, into two cameras."""
    g = torch.Generator().manual_seed(2)
    rand = lambda *shape: torch.rand(*shape, generator=g)  # noqa: E731
    leaves = [
        rand(12, 3) * 2 + torch.tensor([-1.0, -1.0, 2.0]),
        rand(12, 4),
        0.05 + 0.2 * rand(12, 3),
        rand(12),
        rand(12, 4, 3),
        torch.eye(4).repeat(2, 1, 1),
        rand(12, 2),
    ]
    *inputs, logits = [x.requires_grad_() for x in leaves]
    K = torch.tensor([[14.0, 0, 8], [0, 14, 5], [0, 0, 1]]).repeat(2, 1, 1)
    means, quats, scales, opacities, colors, viewmats = inputs
    options: dict[str, Any] = {"backend": "triton", "mask_logits": logits, "mask_seed": 5}
    image, alphas, info = rasterization(
        means, quats, scales, opacities, colors, viewmats, K, 16, 11, sh_degree=1, **options
    )
    (image.square().sum() + alphas.sum()).backward()
    return [image, alphas, info["means2d"].grad, *[x.grad for x in leaves if x.grad is not None]]


def test_same_bits(pytestconfig: pytest.Config, one_thread: None) -> None:
    quick = rendering()
    with plain(pytestconfig):
        assert interpreter._get_np_dtype.__module__ == interpreter.__name__
        own = rendering()
    assert len(quick) == len(own) == 10
    for x, y in zip(quick, own, strict=True):
        assert torch.equal(x, y)


@triton.jit(do_not_specialize=["n"])
def _overflows(x_ptr, n):
    i = tl.arange(0, 4)
    x = tl.load(x_ptr + i)
    tl.store(x_ptr + i, (x + n) ^ (-x - n - 5) ^ (x * n) ^ (n - x))


def test_same_overflow(pytestconfig: pytest.Config) -> None:
    """Sums, differences and products beyond 32 bits are wrapped, and nobody complains."""

    def overflowed() -> list[int]:
        x = torch.full((4,), 2**30, dtype=torch.int32)
        _overflows[(1,)](x, 2**30 + 1)
        return x.tolist()

    quick = overflowed()
    with plain(pytestconfig):
        assert overflowed() == quick


@triton.jit(do_not_specialize=["n"])
def _joins_shapes(x_ptr, n):
    tl.store(x_ptr + tl.arange(0, 4), tl.zeros([4], tl.int32) + tl.arange(0, 8) + n)


@triton.jit(do_not_specialize=["n"])
def _odd_shape(x_ptr, n):
    tl.store(x_ptr + n, tl.zeros([3], tl.int32))


@triton.jit(do_not_specialize=["n"])
def _adds_pointers(x_ptr, n):
    i = tl.arange(0, 4)
    tl.store((x_ptr + i) + (x_ptr + i), n)


@triton.jit(do_not_specialize=["n"])
def _float_bits(x_ptr, n):
    i = tl.arange(0, 4)
    tl.store(x_ptr + i, (tl.load(x_ptr + i) * 1.5) & n)


FAULTS = [_joins_shapes, _odd_shape, _adds_pointers, _float_bits]


def complaint(kernel: Any) -> str:
    with pytest.raises((interpreter.InterpreterError, TypeError, ValueError)) as error:
        kernel[(1,)](torch.full((4,), 2**30, dtype=torch.int32), 2**30 + 1)
    return f"{type(error.value).__name__}: {error.value}"


@pytest.mark.parametrize("kernel", FAULTS, ids=lambda kernel: kernel.fn.__name__)
def test_same_complaints(kernel: Any, pytestconfig: pytest.Config) -> None:
    quick = complaint(kernel)
    with plain(pytestconfig):
        assert complaint(kernel) == quick


@pytest.mark.parametrize(
    "build",
    [
        lambda: interpreter.TensorHandle(np.zeros(2), tl.float32),
        lambda: tl.block_type(tl.int32, [3]),
    ],
)
def test_same_refusals(build: Callable[[], Any], pytestconfig: pytest.Config) -> None:
    with pytest.raises((TypeError, ValueError)) as quick:
        build()
    with plain(pytestconfig), pytest.raises(quick.type) as own:
        build()
    assert str(own.value) == str(quick.value)
