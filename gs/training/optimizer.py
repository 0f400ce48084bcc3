"""The optimizer: Adam with Inria's learning rates, and its state by parameter name.

On a GPU the optimizer is kernels.FusedAdam, elsewhere torch's: both have the same state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from kernels import uses_triton

from ..model.model import Model
from ..model.rates import OptimConfig, annealing
from ..model.specs import ParameterSpec
from .batch import batched
from .row_adam import RowAdam
from .run_state import Part

BETAS = (0.9, 0.999)
EPS = 1e-15  # gradients of one Gaussian are tiny: torch's 1e-8 would swallow them


def build_optimizer(
    gaussians: Model,
    config: OptimConfig,
    *,
    extent: float,
    n_images: float = 1,
    by_row: bool = False,
    which: Literal["all", "rows", "shared"] = "all",
) -> torch.optim.Adam:
    """Adam with one group per parameter, in the order of their specs.

    A group has the parameter's "name" and "spec", and the "gain" that every learning rate is
    multiplied by. What needs no gradient has no group.

    Args:
        gaussians: The model, with all parameters of its strategies.
        config: Learning rates.
        extent: Radius of the scene, which scales the learning rate of positions.
        n_images: Images of a step (gs.training.batch).
        by_row: Whether parameters with rows step by row (gs.training.seen).
        which: All parameters, or those with rows, or those without.
    """
    adam = batched(BETAS, EPS, n_images)
    tensors = dict(gaussians.params) | dict(gaussians.shared.named_parameters())
    with_rows = [] if which == "shared" else gaussians.specs.values()
    specs = [*with_rows, *([] if which == "rows" else gaussians.shared_specs.values())]
    groups = [
        {
            "params": [tensors[spec.name]],
            "lr": adam.gain * spec.rate(config, extent),
            "name": spec.name,
            "spec": spec,
            "gain": adam.gain,
            "by_row": by_row and spec.name in gaussians.params,
        }
        for spec in sorted(specs, key=lambda spec: spec.order)
        if tensors[spec.name].requires_grad
    ]
    if uses_triton("auto", next(iter(gaussians.params.values()))):
        from kernels import FusedAdam

        return FusedAdam(groups, lr=0.0, betas=adam.betas, eps=adam.eps)
    if by_row:
        return RowAdam(groups, lr=0.0, betas=adam.betas, eps=adam.eps)
    return torch.optim.Adam(groups, lr=0.0, betas=adam.betas, eps=adam.eps, fused=True)


def learning_rates(
    optimizer: torch.optim.Optimizer, config: OptimConfig, *, extent: float, step: int
) -> dict[str, float]:
    """Learning rates of iteration `step` by parameter: scheduled or annealed, else as they are."""
    anneals = config.anneal_to != 1.0
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        spec: ParameterSpec = group["spec"]
        rates[spec.name] = group["lr"]
        if spec.scheduled or (spec.anneals and anneals):
            share = annealing(config, step) if spec.anneals else 1.0
            rates[spec.name] = group["gain"] * share * spec.rate(config, extent, step)
    return rates


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: Mapping[str, float]) -> None:
    """Give every parameter its learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]


def learning_rate(optimizer: torch.optim.Optimizer, name: str) -> float:
    """The present learning rate of the parameter `name`."""
    return float(_group(optimizer, name)["lr"])


def optimizer_state(optimizer: torch.optim.Optimizer) -> Part:
    """State by parameter name, plus learning rates: {"means": {"step", "exp_avg", ...}, "lrs"}.

    Tensors share memory with the optimizer. A parameter that never stepped has no entry.
    """
    state: Part = {"lrs": {g["name"]: float(g["lr"]) for g in optimizer.param_groups}}
    for group in optimizer.param_groups:
        moments = optimizer.state.get(group["params"][0])
        if moments:
            state[group["name"]] = dict(moments)
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore what `optimizer_state` gave; parameters that it does not name start afresh.

    Raises:
        ValueError: The state names a parameter that the model has not, or a moment's shape differs.
    """
    groups = {group["name"]: group for group in optimizer.param_groups}
    unknown = sorted(set(state) - set(groups) - {"lrs"})
    if unknown:
        raise ValueError(f"optimizer state: the model has no parameters {unknown}")
    optimizer.state.clear()
    for name, lr in state.get("lrs", {}).items():
        if name in groups:
            groups[name]["lr"] = float(lr)
    for name in groups:
        if name not in state:
            continue
        parameter, moments = groups[name]["params"][0], state[name]
        # torch's fused Adam counts on the device, all others on the host
        device = parameter.device if groups[name]["fused"] else "cpu"
        step = torch.as_tensor(moments["step"], dtype=torch.float32, device=device)
        loaded = {"step": step.clone()}
        for key in ("exp_avg", "exp_avg_sq"):
            if moments[key].shape != parameter.shape:
                raise ValueError(
                    f"optimizer state: {name} {key}: expected {list(parameter.shape)},"
                    f" got {list(moments[key].shape)}"
                )
            loaded[key] = moments[key].detach().to(parameter.detach(), copy=True)
        optimizer.state[parameter] = loaded


def _group(optimizer: torch.optim.Optimizer, name: str) -> dict[str, Any]:
    return next(group for group in optimizer.param_groups if group["name"] == name)
