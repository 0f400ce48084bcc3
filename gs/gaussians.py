"""The model: one ParameterDict of Gaussians, and buffers that follow their rows.

    params  means [N,3]  quats [N,4] (wxyz, any length)  scales [N,3] (log)  opacities [N] (logit)
            sh0 [N,1,3]  shN [N,K-1,3], K = (degree + 1)^2, and once a pruner has added them
            mask_logits, [N,2] (keep, drop) or [N]; all float32
    rows    ids [N] int32, one per Gaussian and never used twice, and what strategies add

Only `gs.rows` changes the number of rows: it edits parameters, optimizer state and buffers as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .neighbours import mean_squared_neighbor_distances

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
INITIAL_OPACITY = 0.1
MIN_SQUARED_DISTANCE = 1e-7  # of neighbours, so that duplicated points get a finite log-scale

# Inria's order of the optimizer's groups; a parameter that is not here comes last.
PARAMETER_ORDER = ("means", "sh0", "shN", "opacities", "mask_logits", "scales", "quats")


class Gaussians(nn.Module):
    """N Gaussians as raw parameters, with activations as `get_` methods."""

    def __init__(
        self,
        tensors: dict[str, Tensor],  # as `params` in the module docstring
        *,
        active_sh_degree: int | None = None,  # None: the maximum
    ) -> None:
        super().__init__()
        n, sh_degree = _check_tensors(tensors)
        self.params = nn.ParameterDict()
        for name in PARAMETER_ORDER:  # one by one: ParameterDict sorts the names of a dict
            if name in tensors:
                self.params[name] = nn.Parameter(tensors[name].detach().float().contiguous())
        self.rows: dict[str, Tensor] = {
            "ids": torch.arange(n, dtype=torch.int32, device=tensors["means"].device)
        }
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
        cls, tensors: dict[str, Tensor], *, active_sh_degree: int | None = None
    ) -> Gaussians:
        """Wrap raw parameters, named as `params`. Float32 tensors are not copied."""
        return cls(tensors, active_sh_degree=active_sh_degree)

    def to_tensors(self) -> dict[str, Tensor]:
        """Raw parameters by name, detached, sharing memory with the model."""
        return {name: parameter.detach() for name, parameter in self.params.items()}

    def add_parameter(self, name: str, values: Tensor) -> None:  # values [N, ...]
        """Add a parameter with one row per Gaussian, before the optimizer is built."""
        if name in self.params:
            raise ValueError(f"{name} is a parameter already")
        if len(values) != len(self):
            raise ValueError(f"{name}: expected {len(self)} rows, got {len(values)}")
        values = values.detach().to(self.device, torch.float32)
        self.params[name] = nn.Parameter(values.contiguous())

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


def _check_tensors(tensors: dict[str, Tensor]) -> tuple[int, int]:
    """Check names and shapes; return the number of Gaussians and the SH degree."""
    unknown = sorted(set(tensors) - set(PARAMETER_ORDER))
    missing = sorted(set(PARAMETER_ORDER) - {"mask_logits"} - set(tensors))
    if unknown or missing:
        raise ValueError(f"parameters of Gaussians: unknown {unknown}, missing {missing}")
    n, bands = len(tensors["means"]), tensors["shN"].shape[1] + 1
    degree = math.isqrt(bands) - 1
    if degree > 3 or (degree + 1) ** 2 != bands:
        raise ValueError(f"shN: expected 0, 3, 8 or 15 coefficients, got {bands - 1}")
    shapes: dict[str, tuple[Any, ...]] = {
        "means": (n, 3),
        "quats": (n, 4),
        "scales": (n, 3),
        "opacities": (n,),
        "sh0": (n, 1, 3),
        "shN": (n, bands - 1, 3),
        "mask_logits": (n, 2),
    }
    if "mask_logits" in tensors and tensors["mask_logits"].dim() == 1:
        shapes["mask_logits"] = (n,)
    for name, x in tensors.items():
        if x.shape != shapes[name]:
            raise ValueError(f"{name}: expected {list(shapes[name])}, got {list(x.shape)}")
    return n, degree
