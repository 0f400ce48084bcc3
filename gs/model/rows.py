"""Row edits: the only place that adds or removes Gaussians.

`keep_rows`, `gather_rows`, `copy_rows` and `replace_values` change parameters,
Adam's moments and row buffers together. A parameter that they edit loses its gradient, so an
optimizer step taken right after leaves it where it is, as in Inria's loop (densification comes
between backward and step).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SplatrimError
from .model import Model


class NoneLeft(SplatrimError):
    """Every Gaussian would be removed; the model is as it was."""


@torch.no_grad()
def keep_rows(
    gaussians: Model,
    optimizer: torch.optim.Optimizer | None,
    keep: Tensor,  # [N] bool
) -> None:
    """Remove every Gaussian whose `keep` is False. Raises NoneLeft if that is every one."""
    if keep.dtype != torch.bool or keep.shape != (len(gaussians),):
        raise ValueError(
            f"keep: expected [{len(gaussians)}] bool, got {list(keep.shape)} {keep.dtype}"
        )
    index = keep.nonzero()[:, 0]  # one synchronisation for all tensors
    gather_rows(gaussians, optimizer, index, n_kept=len(index))


@torch.no_grad()
def keep_parts(
    model: Model,
    optimizer: torch.optim.Optimizer | None,
    keep: Tensor,  # [N * parts] bool
) -> None:
    """Remove every Gaussian whose `keep` is False, and the rows that have none left.

    Raises NoneLeft if that is every one.
    """
    if keep.dtype != torch.bool or keep.shape != (len(model) * model.parts,):
        raise ValueError(
            f"keep: expected [{len(model) * model.parts}] bool, got {list(keep.shape)} {keep.dtype}"
        )
    if not bool(keep.any()):
        raise NoneLeft("no Gaussian would be left")
    keep_rows(model, optimizer, model.switch_off(keep))


@torch.no_grad()
def gather_rows(
    gaussians: Model,
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

    Raises:
        NoneLeft: M is 0.
    """
    n_rows, kept = len(sources), sources[:n_kept]
    if n_rows == 0 and not gaussians.is_shard:
        raise NoneLeft("no Gaussian would be left")
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
    gaussians: Model,
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
    gaussians: Model,
    optimizer: torch.optim.Optimizer | None,
    rows: Tensor,  # [M] int64
    sources: Tensor,  # [M] int64
) -> None:
    """Make each of `rows` a new Gaussian with the parameters of its source, in the same tensors.

    They get fresh ids, in the order of `rows`, and zero moments and statistics. CUDA graphs of
    steps stay valid.

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
    gaussians: Model,
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


def _pop_moments(optimizer: torch.optim.Optimizer | None, parameter: Tensor) -> dict[str, Tensor]:
    """Take a parameter's state out of the optimizer: {} before its first step."""
    return {} if optimizer is None else dict(optimizer.state.pop(parameter, {}))


def _install(
    gaussians: Model,
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


def _group(optimizer: torch.optim.Optimizer, name: str) -> dict[str, Any]:
    return next(group for group in optimizer.param_groups if group["name"] == name)
