"""The model: one ParameterDict of Gaussians, and buffers that follow their rows.

    params  means [N,3]  quats [N,4] (wxyz, any length)  scales [N,3] (log)  opacities [N] (logit)
            sh0 [N,1,3]  shN [N,K-1,3], K = (degree + 1)^2, and what strategies add; all float32
    rows    ids [N] int32, one per Gaussian and never used twice, and what strategies add
    shared  modules and parameters without rows, which strategies add
    specs, shared_specs     gs.model.specs.ParameterSpec of every parameter by name

Only `gs.model.rows` changes the number of rows: it edits parameters, optimizer state and buffers as
one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SplatrimError
from .neighbours import mean_squared_neighbor_distances
from .specs import LAST, PUBLISHED, ParameterSpec, Rate, published_specs

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
INITIAL_OPACITY = 0.1
MIN_SQUARED_DISTANCE = 1e-7  # of neighbours, so that duplicated points get a finite log-scale


class Gaussians(nn.Module):
    """N Gaussians as raw parameters, with activations as `get_` methods."""

    def __init__(
        self,
        tensors: dict[str, Tensor],  # as `params` in the module docstring
        *,
        specs: Iterable[ParameterSpec] = (),  # of what is there beside the parameters of 3DGS
        active_sh_degree: int | None = None,  # None: the maximum
    ) -> None:
        super().__init__()
        known = _check_tensors(tensors, specs)
        n, sh_degree = len(tensors["means"]), math.isqrt(tensors["shN"].shape[1] + 1) - 1
        self.params = nn.ParameterDict()
        for name in known:  # one by one: ParameterDict sorts the names of a dict
            self.params[name] = nn.Parameter(tensors[name].detach().float().contiguous())
        self.rows: dict[str, Tensor] = {
            "ids": torch.arange(n, dtype=torch.int32, device=tensors["means"].device)
        }
        self.specs = known
        self.shared = nn.Module()
        self.shared_specs: dict[str, ParameterSpec] = {}
        self._waiting: dict[str, Tensor] = {}  # a checkpoint's values for what is yet to be added
        self._waiting_shared: dict[str, Tensor] = {}
        self.next_id = n
        self.sh_degree = sh_degree
        self.active_sh_degree = sh_degree if active_sh_degree is None else active_sh_degree
        if not 0 <= self.active_sh_degree <= sh_degree:
            raise ValueError(
                f"active_sh_degree: expected 0 to {sh_degree}, got {self.active_sh_degree}"
            )

    @classmethod
    def from_points(
        cls,
        points: Tensor,  # [N, 3]
        colors: Tensor,  # [N, 3] in 0..1
        *,
        sh_degree: int = 3,
        device: torch.device | str = "cpu",
    ) -> Gaussians:
        """Start from a point cloud as Inria does, with SH degree 0 active.

        Args:
            points: Positions. [N, 3]
            colors: RGB in 0..1, which become the constant SH coefficients. [N, 3]
            sh_degree: Highest degree that training may reach, 0 to 3.
            device: Where the parameters live.

        Returns:
            Gaussians of opacity 0.1, without rotation, whose scale is the root of the mean squared
            distance to the 3 nearest neighbours.
        """
        if points.dim() != 2 or points.shape[1] != 3 or len(points) == 0:
            raise ValueError(f"points: expected [N 3] with N > 0, got {list(points.shape)}")
        if colors.shape != points.shape:
            raise ValueError(f"colors: expected {list(points.shape)}, got {list(colors.shape)}")
        if not 0 <= sh_degree <= 3:
            raise ValueError(f"sh_degree: expected 0 to 3, got {sh_degree}")
        points, colors = points.to(device).float(), colors.to(device).float()
        n = len(points)
        if not bool(points.isfinite().all()):
            raise ValueError("points: some coordinates are not finite")
        squared = mean_squared_neighbor_distances(points).clamp_min(MIN_SQUARED_DISTANCE)
        quats = points.new_zeros(n, 4)
        quats[:, 0] = 1.0
        tensors = {
            "means": points.clone(),
            "sh0": ((colors - 0.5) / SH_C0)[:, None],
            "shN": points.new_zeros(n, (sh_degree + 1) ** 2 - 1, 3),
            "opacities": points.new_full((n,), math.log(INITIAL_OPACITY / (1 - INITIAL_OPACITY))),
            "scales": (0.5 * squared.log())[:, None].repeat(1, 3),
            "quats": quats,
        }
        return cls(tensors, active_sh_degree=0)

    @classmethod
    def from_tensors(
        cls,
        tensors: dict[str, Tensor],
        *,
        specs: Iterable[ParameterSpec] = (),
        active_sh_degree: int | None = None,
    ) -> Gaussians:
        """Wrap raw parameters, named as `params`. Float32 tensors are not copied.

        Args:
            tensors: The parameters of 3DGS, and others of which there are specs. [N, ...]
            specs: What the others are.
            active_sh_degree: None is the maximum.
        """
        return cls(tensors, specs=specs, active_sh_degree=active_sh_degree)

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device | str) -> Gaussians:
        """The model of a checkpoint (gs.training.checkpoint), with its row buffers.

        What its strategies have added waits for them to add it again.
        """
        params = {name: x.to(device, copy=True) for name, x in state["params"].items()}
        own = {name: params.pop(name) for name in PUBLISHED if name in params}
        gaussians = cls(own, active_sh_degree=state["active_sh_degree"])
        gaussians.rows |= {name: x.to(device, copy=True) for name, x in state["rows"].items()}
        gaussians.next_id = int(state.get("next_id") or len(gaussians))
        gaussians._waiting, gaussians._waiting_shared = params, dict(state.get("shared") or {})
        return gaussians

    def to_tensors(self) -> dict[str, Tensor]:
        """Raw parameters by name, detached, sharing memory with the model."""
        return {name: parameter.detach() for name, parameter in self.params.items()}

    def exported(self, keep: Tensor | None = None, **replaced: Tensor) -> Gaussians:
        """The model to test and save: what its specs call exported, and what is shared.

        Args:
            keep: Which rows it has; None for all. [N] bool
            replaced: Values that parameters have instead, by name. [N, ...]
        """
        tensors = {
            name: x for name, x in self.to_tensors().items() if self.specs[name].exported
        } | replaced
        if keep is not None:
            tensors = {name: x[keep] for name, x in tensors.items()}
        model = Gaussians(tensors, specs=self.specs.values())
        model.active_sh_degree = min(self.active_sh_degree, model.sh_degree)
        model.shared, model.shared_specs = self.shared, self.shared_specs
        return model

    def add_parameter(self, spec: ParameterSpec, values: Tensor) -> bool:  # [N, *spec.tail]
        """Add a parameter with one row per Gaussian, before the optimizer is built.

        Returns:
            Whether it has `values`: in a model that goes on from a checkpoint it has those of the
            checkpoint, if they are there.

        Raises:
            ValueError: there is one of that name, or the shape is not that of the spec.
            SplatrimError: the checkpoint has it in another shape.
        """
        self._check_name(spec.name)
        shape, got = (len(self), *spec.tail), tuple(values.shape)
        if got != shape:
            raise ValueError(f"{spec.name}: expected {list(shape)}, got {list(got)}")
        restored = self._waiting.pop(spec.name, None)
        if restored is not None:
            _check_restored(spec.name, restored, shape)
            values = restored
        values = values.detach().to(self.device, torch.float32)
        self.params[spec.name] = nn.Parameter(values.contiguous())
        self.specs[spec.name] = spec
        return restored is None

    def add_shared(
        self,
        name: str,
        value: nn.Parameter | nn.Module,
        *,
        lr: float | Rate,
        order: int = LAST,
        anneals: bool = False,
        scheduled: bool = False,
    ) -> None:
        """Add a parameter without rows, or a module of them, before the optimizer is built.

        It is optimised, checkpointed and resumed, and no row edit touches it. `value` itself moves
        to the model's device; its parameters are called `name`, or `name.weight` and so on, and of
        those that need a gradient the learning rate is `lr`. In a model that goes on from a
        checkpoint it takes the checkpoint's values, if they are there.

        Args:
            name: Key in `shared`.
            value: float32, at least one dimension each.
            lr: As in ParameterSpec, and so are order, anneals and scheduled.
            order: Place among the optimizer's groups.
            anneals: Whether the rate falls towards the end with --anneal_to.
            scheduled: Whether the rate depends on the iteration.

        Raises:
            ValueError: the name is taken, or a parameter is not as above.
            SplatrimError: the checkpoint has it in another shape.
        """
        self._check_name(name)
        if isinstance(value, nn.Module):
            self.shared.add_module(name, value.to(self.device))
        else:
            value.data = value.data.to(self.device)
            self.shared.register_parameter(name, value)

        for key, x in _part(self.shared.named_parameters(), name).items():
            if x.dtype != torch.float32 or x.dim() == 0:
                raise ValueError(f"{key}: expected float32 [...], got {list(x.shape)} {x.dtype}")
            self.shared_specs[key] = ParameterSpec(
                key, tuple(x.shape), lr, order=order, anneals=anneals, scheduled=scheduled
            )
        own = _part(self.shared.state_dict().items(), name)
        restored = _part(self._waiting_shared.items(), name)
        if restored and restored.keys() != own.keys():
            differing = ", ".join(sorted(restored.keys() ^ own.keys()))
            raise SplatrimError(
                f"the checkpoint's {name} has other parts than this run's ({differing}):"
                " go on with the settings that it was made with"
            )
        for key, x in restored.items():
            _check_restored(key, x, tuple(own[key].shape))
            own[key].copy_(x)
            del self._waiting_shared[key]

    def check_complete(self) -> None:
        """Raise SplatrimError if a checkpoint has parameters that nobody has added."""
        left = sorted([*self._waiting, *self._waiting_shared])
        if left:
            raise SplatrimError(
                f"the checkpoint has parameters that this run does not know ({', '.join(left)}):"
                " go on with the method that it is of"
            )

    def _check_name(self, name: str) -> None:
        if name in self.specs or hasattr(self.shared, name):
            raise ValueError(f"{name} is taken: parameters have names of their own")
        if not name.isidentifier():
            raise ValueError(f"{name!r} is no name of a parameter")

    def __len__(self) -> int:
        return len(self.params["means"])

    @property
    def device(self) -> torch.device:
        return self.params["means"].device

    def get_scales(self) -> Tensor:  # [N, 3]
        """Standard deviations along the axes, scene units."""
        return torch.exp(self.params["scales"])

    def get_opacities(self) -> Tensor:  # [N]
        """Opacities in 0..1."""
        return torch.sigmoid(self.params["opacities"])

    def get_sh(self) -> Tensor:  # [N, K, 3]
        """All SH coefficients; the caller says how many degrees are active."""
        return torch.cat([self.params["sh0"], self.params["shN"]], dim=1)

    def one_up_sh_degree(self) -> None:
        """Activate the next SH degree, up to the maximum."""
        self.active_sh_degree = min(self.active_sh_degree + 1, self.sh_degree)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gaussians:
        # Makes .to() and .cuda() carry the row buffers too.
        super()._apply(fn, recurse)
        self.rows = {name: fn(rows) for name, rows in self.rows.items()}
        return self


def _check_tensors(
    tensors: dict[str, Tensor], specs: Iterable[ParameterSpec]
) -> dict[str, ParameterSpec]:
    """Check names and shapes; return the specs of what is there, in order."""
    known = {spec.name: spec for spec in specs if spec.name in tensors}
    unknown = sorted(set(tensors) - set(known) - set(PUBLISHED))
    missing = sorted(set(PUBLISHED) - set(tensors))
    if unknown or missing:
        raise ValueError(f"parameters of Gaussians: unknown {unknown}, missing {missing}")
    n, bands = len(tensors["means"]), tensors["shN"].shape[1] + 1
    degree = math.isqrt(bands) - 1
    if degree > 3 or (degree + 1) ** 2 != bands:
        raise ValueError(f"shN: expected 0, 3, 8 or 15 coefficients, got {bands - 1}")
    known |= {spec.name: spec for spec in published_specs(bands - 1)}
    for name, x in tensors.items():
        shape = (n, *known[name].tail)
        if x.shape != shape:
            raise ValueError(f"{name}: expected {list(shape)}, got {list(x.shape)}")
    return {spec.name: spec for spec in sorted(known.values(), key=lambda spec: spec.order)}


def _part(tensors: Iterable[tuple[str, Tensor]], name: str) -> dict[str, Tensor]:
    """What is called `name` or is a part of it."""
    return {key: x for key, x in tensors if key == name or key.startswith(f"{name}.")}


def _check_restored(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise SplatrimError(
            f"the checkpoint's {name} has shape {list(x.shape)} and this run's {list(shape)}:"
            " go on with the settings that it was made with"
        )
