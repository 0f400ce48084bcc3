"""Checkpoints of the original 3D Gaussian Splatting, as named state.

They are `(tuple, iteration)`; the tuple holds, by position,

    active SH degree, xyz [N,3], f_dc [N,1,3], f_rest [N,K-1,3], scaling [N,3], rotation [N,4],
    opacity [N,1], (others [N,...]), max_radii2D [N], gradient sum [N,1], view count [N,1],
    Adam's state_dict, extent

so 12 entries, and one more for each parameter that a method's code adds. Adam's groups come in the
order xyz, f_dc, f_rest, opacity, (others,) scaling, rotation and carry those names. Others keep the
names of their groups, until the method that they belong to adopts them.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import SplatrimError
from ..model.specs import published_specs
from .run_state import RunState

# published names of the optimizer's groups, in their order, and the parameters here
_GROUPS = {
    "xyz": "means",
    "f_dc": "sh0",
    "f_rest": "shN",
    "opacity": "opacities",
    "scaling": "scales",
    "rotation": "quats",
}
_TUPLE_ORDER = ("means", "sh0", "shN", "scales", "quats", "opacities")
_MOMENTS = ("exp_avg", "exp_avg_sq")
_STATISTICS = ("max_radii", "densify_gradients", "densify_views")  # rows, in tuple order


def is_inria(obj: Any) -> bool:
    """Whether an unpickled object has the outer form of a published checkpoint."""
    return isinstance(obj, (tuple, list)) and len(obj) == 2 and isinstance(obj[0], (tuple, list))


def import_inria(obj: Any, *, source: str = "the checkpoint") -> dict[str, Any]:
    """Turn a published checkpoint into the named state of gs.training.checkpoint.

    Args:
        obj: `(tuple of 12 or more, iteration)`.
        source: What to call it in error messages.

    Returns:
        State of method "3dgs", with Adam's moments by parameter name. Strategies, sampler and rng
        are empty: they are not in those files.

    Raises:
        SplatrimError: another number of entries, or shapes that do not belong together.
    """
    if not is_inria(obj):
        raise SplatrimError(f"{source} is not a checkpoint of 3D Gaussian Splatting")
    entries, step = obj
    n_others = len(entries) - 12
    if n_others < 0:
        raise SplatrimError(
            f"{source} holds {len(entries)} entries; 3D Gaussian Splatting writes 12,"
            " and one more for each parameter that a method adds"
        )
    *statistics, adam, extent = entries[7 + n_others :]
    others = _other_names(adam, source) if n_others else []
    if len(others) != n_others:
        raise SplatrimError(
            f"{source} is damaged: of {n_others} further parameters it names {len(others)}"
        )
    names = (*_TUPLE_ORDER, *others)
    params: dict[str, Any] = dict(zip(names, entries[1 : 7 + n_others], strict=True))
    for name, x in [*params.items(), *zip(_STATISTICS, statistics, strict=True)]:
        if not isinstance(x, Tensor):
            raise SplatrimError(f"{source} is damaged: {name} is not a tensor")
    params = {name: _rows(name, x, source) for name, x in params.items()}
    n = len(params["means"])
    rows: dict[str, Tensor] = {"ids": torch.arange(n, dtype=torch.int32)}
    for name, x in zip(_STATISTICS, statistics, strict=True):
        # restored models of the published code may carry empty statistics
        rows[name] = x.detach().float().reshape(-1) if x.numel() == n else torch.zeros(n)
    if any(len(x) != n for x in params.values()):
        raise SplatrimError(f"{source} is damaged: its tensors differ in their number of Gaussians")
    try:
        state = RunState(
            method="3dgs",
            step=int(step),
            params=params,
            rows=rows,
            next_id=n,
            active_sh_degree=int(entries[0]),
            sh_degree=math.isqrt(params["shN"].shape[1] + 1) - 1,
            optimizer=_import_adam(adam, params, source),
            extent=float(extent),
        )
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise SplatrimError(f"{source} is damaged: {error}") from error
    return {"format": "splatrim", "version": 1, **state.to_dict()}


def _rows(name: str, x: Tensor, source: str) -> Tensor:
    """A published tensor as a parameter here, checked."""
    x = x.detach().float()
    if name == "opacities":
        x = x.reshape(-1)
    k = x.shape[1] if name == "shN" and x.dim() == 3 else 15
    tails = {spec.name: spec.tail for spec in published_specs(k)}
    tail = tuple(x.shape[1:])
    if x.dim() == 0 or tail != tails.get(name, tail) or k not in (0, 3, 8, 15):
        raise SplatrimError(f"{source} is damaged: {name} has shape {list(x.shape)}")
    return x


def _other_names(adam: Any, source: str) -> list[str]:
    """Names of Adam's groups beside those of 3DGS, in their order."""
    names = [group.get("name") for group in _groups(adam, source)]
    return [str(name) for name in names if name not in _GROUPS]


def _groups(adam: Any, source: str) -> list[dict[str, Any]]:
    if not isinstance(adam, dict) or not {"state", "param_groups"} <= adam.keys():
        raise SplatrimError(f"{source} is damaged: it has no optimizer state")
    return adam["param_groups"]


def _import_adam(adam: Any, params: dict[str, Tensor], source: str) -> dict[str, Any]:
    optimizer: dict[str, Any] = {"lrs": {}}
    for group in _groups(adam, source):
        name = str(group.get("name"))
        name = _GROUPS.get(name, name)
        if name not in params:
            continue
        optimizer["lrs"][name] = float(group["lr"])
        moments = adam["state"].get(group["params"][0])
        if moments is None:  # saved before the first step
            continue
        if not isinstance(moments, dict):
            raise SplatrimError(f"{source} is damaged: the optimizer's state of {name} is no state")
        if not moments:
            continue
        entry: dict[str, Any] = {"step": torch.as_tensor(float(moments["step"]))}
        for key in _MOMENTS:
            entry[key] = moments[key].detach().float().reshape(params[name].shape)
        optimizer[name] = entry
    return optimizer
