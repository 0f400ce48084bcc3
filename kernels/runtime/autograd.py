"""Replacements for autograd.Function.apply and once_differentiable that cost the host less."""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")


def apply(function: type[torch.autograd.Function], *args: object) -> Any:
    """function.apply(*args), which looks for wrappers of torch.func that kernels could not take."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)  # pyright: ignore


def once_differentiable(backward: Callable[Concatenate[C, P], R]) -> Callable[..., R]:
    """As torch's decorator, which costs nothing here where no graph of the backward is made."""
    slow = torch.autograd.function.once_differentiable(backward)

    @functools.wraps(backward)
    def either(ctx: C, *gradients: P.args, **none: P.kwargs) -> R:
        if torch.is_grad_enabled():  # create_graph=True
            return slow(ctx, *gradients, **none)
        return backward(ctx, *gradients, **none)

    return either
