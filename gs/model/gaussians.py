"""Gaussians as a model: one row is one Gaussian, drawn as it is.

    params  means [N,3]  quats [N,4] (wxyz, any length)  scales [N,3] (log)  opacities [N] (logit)
            sh0 [N,1,3]  shN [N,K-1,3], K = (degree + 1)^2, and what strategies add; all float32

gs.model.model says what else a model has. Only `gs.model.rows` changes the number of rows: it edits
parameters, optimizer state and buffers as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .model import Model, Splats
from .neighbours import mean_squared_neighbor_distances
from .specs import PUBLISHED, ParameterSpec, published_specs
from .splats import Frozen

if TYPE_CHECKING:
    from .view import View

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
INITIAL_OPACITY = 0.1
MIN_SQUARED_DISTANCE = 1e-7  # of neighbours, so that duplicated points get a finite log-scale


class Gaussians(Model):
    """N Gaussians as raw parameters, with activations as `get_` methods."""

    same_in_all_views = True
    frozen: Frozen | None = None
    """What is drawn among them and does not belong to the model (gs.blocks)."""

    def __init__(
        self,
        tensors: dict[str, Tensor],  # as `params` in the module docstring
        *,
        specs: Iterable[ParameterSpec] = (),  # of what is there beside the parameters of 3DGS
        active_sh_degree: int | None = None,  # None: the maximum
    ) -> None:
        known = _check_tensors(tensors, specs)
        n, sh_degree = len(tensors["means"]), math.isqrt(tensors["shN"].shape[1] + 1) - 1
        super().__init__(n, tensors["means"].device)
        for name in known:  # one by one: ParameterDict sorts the names of a dict
            self.params[name] = nn.Parameter(tensors[name].detach().float().contiguous())
        self.specs = known
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
        antialiased: bool = False,
    ) -> Gaussians:
        """Wrap raw parameters, named as `params`. Float32 tensors are not copied.

        Args:
            tensors: The parameters of 3DGS, and others of which there are specs. [N, ...]
            specs: What the others are.
            active_sh_degree: None is the maximum.
            antialiased: As in Model.
        """
        model = cls(tensors, specs=specs, active_sh_degree=active_sh_degree)
        model.antialiased = antialiased
        return model

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device | str) -> Gaussians:
        """The model of a checkpoint (gs.training.checkpoint), with its row buffers.

        What its strategies have added waits for them to add it again.
        """
        params: dict[str, Tensor] = dict(state["params"])
        own = {name: params.pop(name).to(device, copy=True) for name in PUBLISHED if name in params}
        gaussians = cls(own, active_sh_degree=state["active_sh_degree"])
        next_id = int(state.get("next_id") or len(gaussians))
        return gaussians.restore(params, state["rows"], state.get("shared") or {}, next_id)

    def splats(self, view: View) -> Splats:
        """The raw parameters themselves: nothing is copied or launched."""
        p = self.params
        return Splats(
            p["means"],
            p["quats"],
            p["scales"],
            p["opacities"],
            p["sh0"],
            p["shN"],
            sh_degree=self.active_sh_degree,
            raw=True,
            frozen=self.frozen,
            antialiased=self.antialiased,
        )

    def to_ply(self) -> dict[str, Tensor]:
        """The raw parameters."""
        return self.to_tensors()

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
        model.frozen = self.frozen
        model.antialiased = self.antialiased
        return model

    def get_scales(self) -> Tensor:  # [N, 3]
        """Standard deviations along the axes, scene units."""
        return torch.exp(self.params["scales"])

    def get_opacities(self) -> Tensor:  # [N]
        """Opacities in 0..1."""
        return torch.sigmoid(self.params["opacities"])

    def get_sh(self) -> Tensor:  # [N, K, 3]
        """All SH coefficients; the caller says how many degrees are active."""
        return torch.cat([self.params["sh0"], self.params["shN"]], dim=1)


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
