"""Replacements for autograd.Function.apply and once_differentiable that cost the host less."""

import functools
from collections.abc import Callable
from typing import Any

import torch


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """function.apply(*args), which looks for wrappers of torch.func that kernels could not take."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    bound: Any = super(torch.autograd.Function, function)
    return bound.apply(*args)


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """As torch's decorator, which costs nothing here where no graph of the backward is made."""
    slow = torch.autograd.function.once_differentiable(backward)

    @functools.wraps(backward)
    def either(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():  # create_graph=True
            return slow(ctx, *gradients)
        return backward(ctx, *gradients)

    return either
