"""The optimizer: Inria's learning rates, and the only place that adds or removes Gaussians.

`keep_rows`, `gather_rows`, `copy_rows` and `replace_values` change parameters, Adam's moments and
row buffers together. A parameter that they edit loses its gradient, so an
optimizer step taken right after leaves it where it is, as in Inria's loop (densification comes
between backward and step).

On a GPU the optimizer is kernels.FusedAdam, elsewhere torch's: both have the same state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels import uses_triton

from .errors import SplatrimError
from .gaussians import PARAMETER_ORDER, Gaussians

BETAS = (0.9, 0.999)
EPS = 1e-15  # gradients of one Gaussian are tiny: torch's 1e-8 would swallow them

_SCALED_RATES = (
    "position_lr_init", "position_lr_final", "feature_lr", "scaling_lr", "rotation_lr",
)  # fmt: skip


@dataclass(frozen=True)
class OptimConfig:
    """Learning rates; the defaults are Inria's, with MaskGaussian's for mask logits."""

    position_lr_init: float = 1.6e-4
    """Learning rate of positions at the start, per unit of scene extent."""
    position_lr_final: float = 1.6e-6
    """Learning rate of positions at position_lr_max_steps, per unit of scene extent."""
    position_lr_max_steps: int = 30_000
    """Iterations over which the learning rate of positions falls, log-linearly."""
    feature_lr: float = 0.0025
    """Learning rate of constant SH coefficients."""
    feature_rest_divisor: float = 20.0
    """Higher bands of SH have the learning rate of the constant ones, divided by this."""
    opacity_lr: float = 0.05
    """Learning rate of opacities (logits)."""
    scaling_lr: float = 0.005
    """Learning rate of scales (logarithms)."""
    rotation_lr: float = 0.001
    """Learning rate of quaternions."""
    mask_lr: float = 0.01
    """Learning rate of mask logits."""
    anneal_to: float = 1.0
    """Share of the learning rates of features, opacities, scales and quaternions that is left at
    position_lr_max_steps."""
    anneal_from: float = 0.5
    """Share of position_lr_max_steps at which they begin to fall, log-linearly."""

    def __post_init__(self) -> None:
        if not self.anneal_to > 0:
            raise SplatrimError(f"--anneal_to must be positive, not {self.anneal_to}")
        if not 0 <= self.anneal_from <= 1:
            raise SplatrimError(f"--anneal_from must be between 0 and 1, not {self.anneal_from}")

    def scaled(self, factor: float) -> OptimConfig:
        """The same schedule over `factor` times as many iterations.

        Shorter runs take larger steps, by the cube root of the shortening (600 iterations on the
        fox at an eighth of its size: 31 dB instead of 28). The gap that mask logits have to cross
        stays the same, so their learning rate grows by the square of that.
        """
        gain = max(1.0, factor ** (-1 / 3))
        scaled_rates = {name: getattr(self, name) * gain for name in _SCALED_RATES}
        steps = max(round(self.position_lr_max_steps * factor), 1)
        mask_lr = self.mask_lr * gain**2
        return replace(self, position_lr_max_steps=steps, mask_lr=mask_lr, **scaled_rates)

    def hastened(self) -> OptimConfig:
        """For a run that is short for its quality (--recipe fast).

        What sets colours and shapes learns faster and comes to rest in the last three tenths;
        opacities, which noise in short runs prunes, learn slower. On bonsai over 14,000 iterations
        (H200, test PSNR): 30.98 dB without, rates at the end +0.2, higher SH bands at a fifth in
        place of a twentieth +0.4, opacities at half +0.1, scales +0.1.
        """
        return replace(
            self,
            feature_lr=1.5 * self.feature_lr,
            feature_rest_divisor=5.0,
            scaling_lr=1.5 * self.scaling_lr,
            opacity_lr=0.5 * self.opacity_lr,
            anneal_to=0.1,
            anneal_from=0.7,
        )

    def learning_rates(self, extent: float) -> dict[str, float]:
        """Learning rate of every parameter at the start."""
        return {
            "means": position_lr(self, extent, 0),
            "sh0": self.feature_lr,
            "shN": self.feature_lr / self.feature_rest_divisor,
            "opacities": self.opacity_lr,
            "mask_logits": self.mask_lr,
            "scales": self.scaling_lr,
            "quats": self.rotation_lr,
        }


def position_lr(config: OptimConfig, extent: float, step: int) -> float:
    """Learning rate of positions at `step`: log-linear, constant after the last."""
    t = min(max(step / max(config.position_lr_max_steps, 1), 0.0), 1.0)
    start, end = math.log(config.position_lr_init), math.log(config.position_lr_final)
    return extent * math.exp(start + t * (end - start))


def annealing(config: OptimConfig, step: int) -> float:
    """What is left of the learning rates that are annealed, at `step`: 1, then log-linear."""
    end = max(config.position_lr_max_steps, 1)
    start = config.anneal_from * end
    t = min(max((step - start) / max(end - start, 1.0), 0.0), 1.0)
    return config.anneal_to**t


def build_optimizer(
    gaussians: Gaussians,
    config: OptimConfig,
    *,
    extent: float,
) -> torch.optim.Adam:
    """Adam with one named group per parameter, in the order of `PARAMETER_ORDER`.

    Args:
        gaussians: The model, with all parameters of its strategies.
        config: Learning rates.
        extent: Radius of the scene, which scales the learning rate of positions.
    """
    rates = config.learning_rates(extent)
    names = [name for name in PARAMETER_ORDER if name in gaussians.params]
    groups = [{"params": [gaussians.params[n]], "lr": rates[n], "name": n} for n in names]
    if uses_triton("auto", gaussians.params["means"]):
        from kernels import FusedAdam

        return FusedAdam(groups, lr=0.0, betas=BETAS, eps=EPS)
    return torch.optim.Adam(groups, lr=0.0, betas=BETAS, eps=EPS, fused=True)


def update_learning_rates(
    optimizer: torch.optim.Optimizer, config: OptimConfig, *, extent: float, step: int
) -> None:
    """Set the learning rates of iteration `step`: of positions, and of all others but mask logits
    where they are annealed."""
    _group(optimizer, "means")["lr"] = position_lr(config, extent, step)
    if config.anneal_to != 1.0:
        share = annealing(config, step)
        rates = config.learning_rates(extent)
        for group in optimizer.param_groups:
            if group["name"] not in ("means", "mask_logits"):
                group["lr"] = share * rates[group["name"]]


def learning_rate(optimizer: torch.optim.Optimizer, name: str) -> float:
    """The present learning rate of the parameter `name`."""
    return float(_group(optimizer, name)["lr"])


@torch.no_grad()
def keep_rows(
    gaussians: Gaussians,
    optimizer: torch.optim.Optimizer | None,
    keep: Tensor,  # [N] bool
) -> None:
    """Remove every Gaussian whose `keep` is False."""
    if keep.dtype != torch.bool or keep.shape != (len(gaussians),):
        raise ValueError(
            f"keep: expected [{len(gaussians)}] bool, got {list(keep.shape)} {keep.dtype}"
        )
    index = keep.nonzero()[:, 0]  # one synchronisation for all tensors
    gather_rows(gaussians, optimizer, index, n_kept=len(index))


@torch.no_grad()
def gather_rows(
    gaussians: Gaussians,
    optimizer: torch.optim.Optimizer | None,
    sources: Tensor,  # [M] int64
    *,
    n_kept: int,
    new_ids: Tensor | None = None,  # [M - n_kept] int32
    last: Mapping[str, Tensor] | None = None,
) -> None:
    """Make row i a copy of the present row sources[i], in one pass and without synchronisation.

    Args:
        gaussians: The model.
        optimizer: Its optimizer, or None when there is none yet.
        sources: Where each row comes from; any order. [M]
        n_kept: So many rows from the first on take their moments and buffers along. The others are
            new Gaussians, with zeros for both.
        new_ids: Ids of the new ones, taken from `gaussians.next_id`, which the caller advances.
            [M - n_kept]
        last: Values that parameters of the last rows have instead, by name. [K, ...]
    """
    n_rows, kept = len(sources), sources[:n_kept]
    for name in list(gaussians.params):
        moments = _pop_moments(optimizer, gaussians.params[name])
        new = gaussians.params[name].detach()[sources]
        if last is not None and name in last:
            new[n_rows - len(last[name]) :] = last[name]
        moments = {key: _take(m, kept, n_rows) if m.dim() else m for key, m in moments.items()}
        _install(gaussians, optimizer, name, new, moments)
    gaussians.rows = {name: _take(x, kept, n_rows) for name, x in gaussians.rows.items()}
    if new_ids is not None:
        gaussians.rows["ids"][n_kept:] = new_ids


@torch.no_grad()
def replace_values(
    gaussians: Gaussians,
    optimizer: torch.optim.Optimizer | None,
    name: str,
    values: Tensor,  # [N, ...]
) -> None:
    """Give all rows of one parameter new values, and zero moments."""
    old = gaussians.params[name]
    if values.shape != old.shape:
        raise ValueError(f"{name}: expected {list(old.shape)}, got {list(values.shape)}")
    moments = _pop_moments(optimizer, old)
    moments = {key: torch.zeros_like(m) if m.dim() else m for key, m in moments.items()}
    _install(gaussians, optimizer, name, values.detach().to(old, copy=True), moments)


@torch.no_grad()
def copy_rows(
    gaussians: Gaussians,
    optimizer: torch.optim.Optimizer | None,
    rows: Tensor,  # [M] int64
    sources: Tensor,  # [M] int64
) -> None:
    """Make each of `rows` a new Gaussian with the parameters of its source, in the same tensors.

    They get fresh ids and zero moments and statistics. CUDA graphs of steps stay valid.

    Args:
        gaussians: The model.
        optimizer: Its optimizer, or None when there is none yet.
        rows: Which Gaussians to replace; no source is among them. [M]
        sources: What by. [M]
    """
    for parameter in gaussians.params.values():
        parameter[rows] = parameter[sources]
    clear_moments(gaussians, optimizer, rows)
    for name, values in gaussians.rows.items():
        values[rows] = 0
        if name == "ids":
            first = gaussians.next_id
            ids = torch.arange(first, first + len(rows), device=rows.device)
            values[rows] = ids.to(values)
    gaussians.next_id += len(rows)


@torch.no_grad()
def clear_moments(
    gaussians: Gaussians,
    optimizer: torch.optim.Optimizer | None,
    rows: Tensor,  # [M] int64
) -> None:
    """Zero the moments of some Gaussians, and drop the gradients of all."""
    for parameter in gaussians.params.values():
        parameter.grad = None
        moments = {} if optimizer is None else optimizer.state.get(parameter, {})
        for values in moments.values():
            if values.dim():
                values[rows] = 0


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State by parameter name, plus learning rates: {"means": {"step", "exp_avg", ...}, "lrs"}.

    Tensors share memory with the optimizer. A parameter that never stepped has no entry.
    """
    state: dict[str, Any] = {"lrs": {g["name"]: float(g["lr"]) for g in optimizer.param_groups}}
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


def _pop_moments(optimizer: torch.optim.Optimizer | None, parameter: Tensor) -> dict[str, Tensor]:
    """Take a parameter's state out of the optimizer: {} before its first step."""
    return {} if optimizer is None else dict(optimizer.state.pop(parameter, {}))


def _install(
    gaussians: Gaussians,
    optimizer: torch.optim.Optimizer | None,
    name: str,
    values: Tensor,
    moments: dict[str, Tensor],
) -> None:
    """Make `values` the parameter `name`, in the model and in its group."""
    parameter = nn.Parameter(values.contiguous())
    gaussians.params[name] = parameter
    if optimizer is not None:
        _group(optimizer, name)["params"] = [parameter]
        if moments:
            optimizer.state[parameter] = moments


def _take(x: Tensor, index: Tensor, n_rows: int) -> Tensor:
    """The rows `index`, then zeros up to n_rows."""
    if len(index) == n_rows:
        return x[index]
    out = x.new_zeros(n_rows, *x.shape[1:])
    torch.index_select(x, 0, index, out=out[: len(index)])
    return out
