"""Autograd functions applied with less Python behave as torch applies them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.runtime.autograd import apply, once_differentiable


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> Tensor:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return 2 * v * x


def test_gradient() -> None:
    x = torch.tensor([3.0, -1.0], requires_grad=True)
    apply(Square, x).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.tensor([6.0, -2.0]))
    assert not apply(Square, x.detach()).requires_grad


def test_no_second_derivative() -> None:
    x = torch.tensor([3.0], requires_grad=True)
    w = torch.ones(1, requires_grad=True)
    (v,) = torch.autograd.grad((w * apply(Square, x)).sum(), x, create_graph=True)
    assert torch.equal(v.detach(), torch.tensor([6.0]))
    with pytest.raises(RuntimeError, match="differentiate twice"):
        v.sum().backward()


def test_function_transforms_are_refused() -> None:
    """Kernels could not read what torch.func wraps: torch says so, and nothing is computed."""
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: apply(Square, x).sum())(torch.ones(2))
