"""What a parameter is: a name and a shape, its learning rate, and who takes it along.

Optimizer, row edits, checkpoints, export and annealing go by the specs of a model's parameters and
know none of them by name. The six of 3DGS are here; a strategy brings those that it adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .rates import OptimConfig, position_lr

Rate = Callable[[OptimConfig, float, int], float]
"""A learning rate, given the settings, the radius of the scene, and the iteration."""

LAST = 100


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter: float32, with a row per Gaussian, or shared by all of them."""

    name: str
    """Key in the model, the optimizer's groups and checkpoints."""
    tail: tuple[int, ...]
    """Shape of one row; of the whole where there are no rows."""
    lr: float | Rate
    """Learning rate."""
    order: int = LAST
    """Place among the optimizer's groups; of equals, what is added first comes first."""
    exported: bool = False
    """Whether the model that is tested and saved has it. The .ply has room for those of 3DGS."""
    anneals: bool = False
    """Whether the rate falls towards the end with --anneal_to."""
    scheduled: bool = False
    """Whether the rate depends on the iteration and so is set in each."""

    def rate(self, config: OptimConfig, extent: float, step: int = 0) -> float:
        """The learning rate at `step` in a scene of radius `extent`, before annealing."""
        return self.lr(config, extent, step) if callable(self.lr) else self.lr


def published_specs(n_rest: int) -> tuple[ParameterSpec, ...]:
    """The parameters of 3DGS with `n_rest` coefficients of higher SH bands, in Inria's order."""
    return (
        ParameterSpec(
            "means",
            (3,),
            lambda c, extent, step: position_lr(c, extent, step),
            order=0,
            exported=True,
            scheduled=True,
        ),
        _published("sh0", (1, 3), lambda c, extent, step: c.feature_lr, 10),
        _published(
            "shN", (n_rest, 3), lambda c, extent, step: c.feature_lr / c.feature_rest_divisor, 20
        ),
        _published("opacities", (), lambda c, extent, step: c.opacity_lr, 30),
        _published("scales", (3,), lambda c, extent, step: c.scaling_lr, 40),
        _published("quats", (4,), lambda c, extent, step: c.rotation_lr, 50),
    )


def _published(name: str, tail: tuple[int, ...], lr: Rate, order: int) -> ParameterSpec:
    return ParameterSpec(name, tail, lr, order=order, exported=True, anneals=True)


PUBLISHED = tuple(spec.name for spec in published_specs(0))
"""Names of the parameters of 3DGS."""
