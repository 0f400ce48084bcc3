"""What a run refuses to save or go on with: numbers that are not finite, and empty models.

All checks of a save take one transfer from the device together. Training steps check nothing here:
a model that has gone wrong is noticed when its loss is logged or when it is saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import SplatrimError
from ..model.gaussians import Gaussians
from ..model.rows import NoneLeft

if TYPE_CHECKING:
    from ..model.model import Model
    from .strategy import Strategy

REMEDY = "lower the learning rates, or go on from an earlier checkpoint with other settings"

SHOWN = 3  # tensors that are named


class LossNotFinite(SplatrimError):
    """The loss of some iteration is NaN or infinite."""


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Which tensors have NaN or infinite values, and how many; "" where all are finite.

    Integers are finite. The tensors may lie on several devices, as Adam's counts stay on the host;
    one transfer from each, and more only where something is wrong.
    """
    floats = {name: x for name, x in tensors.items() if x.is_floating_point() and x.numel()}
    if not floats:
        return ""
    verdicts: dict[torch.device, list[Tensor]] = {}
    for x in floats.values():
        verdicts.setdefault(x.device, []).append(x.detach().isfinite().all())
    fine = {device: iter(torch.stack(all_).tolist()) for device, all_ in verdicts.items()}
    bad = []
    for name, x in floats.items():
        if not next(fine[x.device]):
            count = int((~x.detach().isfinite()).sum())
            bad.append(f"{name} ({count} of {x.numel()})")
    more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return f"numbers are not finite in {', '.join(bad[:SHOWN])}{more}" if bad else ""


def check_model(model: Model, n_before: int, step: int, good: Path | None) -> None:
    """Refuse to save a model that is empty or not finite.

    Args:
        model: As it would be saved.
        n_before: Gaussians before the strategies chose whom it keeps.
        step: The iteration.
        good: The last model or checkpoint that is whole.

    Raises:
        SplatrimError: What is wrong, at which iteration, and what is left.
    """
    if len(model) == 0:
        raise SplatrimError(
            f"iteration {step}: the model to save would have none of {n_before} Gaussians, as the"
            f" pruning method drops every one: prune less{_left(good)}"
        )
    bad = not_finite(model.to_tensors())
    if bad:
        raise SplatrimError(f"iteration {step}: {bad}; no model is saved: {REMEDY}{_left(good)}")


def check_state(state: Mapping[str, Any], step: int, good: Path | None) -> None:
    """Refuse to save a checkpoint that could not be gone on from; as `check_model`.

    Raises:
        SplatrimError: A parameter, moment or row buffer is not finite, or there are no rows.
    """
    if any(len(x) == 0 for x in state["params"].values()):
        raise SplatrimError(f"iteration {step}: no Gaussian is left, so none is saved{_left(good)}")
    tensors = {**state["params"], **state["rows"], **state.get("shared", {})}
    for name, moments in state["optimizer"].items():
        tensors |= {f"{key} of {name}": x for key, x in moments.items() if isinstance(x, Tensor)}
    bad = not_finite(tensors)
    if bad:
        raise SplatrimError(
            f"iteration {step}: {bad}; no checkpoint is saved: {REMEDY}{_left(good)}"
        )


@contextlib.contextmanager
def explained(
    gaussians: Model,
    strategies: Sequence[Strategy[Any]],
    step: Callable[[], int],
    good: Callable[[], Path | None],
) -> Iterator[None]:
    """Where a model that dies in training is told of by iteration and cause.

    Args:
        gaussians: The model, which is whole when the failure comes.
        strategies: Those that may have removed its rows.
        step: Gives the iteration before the one that fails.
        good: Gives the last model or checkpoint that is whole.

    Raises:
        SplatrimError: No Gaussian would be left, or the loss is not finite.
    """
    try:
        yield
    except NoneLeft as error:
        at = step() + 1
        bad = not_finite(gaussians.to_tensors())
        causes = bad or _causes(gaussians, strategies, at)
        remedy = REMEDY if bad else "prune less"
        raise SplatrimError(
            f"iteration {at}: pruning would leave none of {len(gaussians)} Gaussians ({causes}):"
            f" {remedy}{_left(good())}"
        ) from error
    except LossNotFinite as error:
        bad = not_finite(gaussians.to_tensors())
        raise SplatrimError(
            f"{error}{f' ({bad})' if bad else ''}: {REMEDY}{_left(good())}"
        ) from error


@torch.no_grad()
def _causes(gaussians: Model, strategies: Sequence[Strategy[Any]], step: int) -> str:
    """What speaks against a model's Gaussians."""
    causes: list[str] = []
    if isinstance(gaussians, Gaussians):
        highest = float(gaussians.get_opacities().max())
        causes.append(f"their opacities go up to {highest:.2g}")
    for strategy in strategies:
        rows = strategy.prune_rows(step, gaussians)
        if rows is not None and bool(rows.any()):
            causes.append(f"{strategy.name} drops {int(rows.sum())}")
    return ", ".join(causes)


def _left(good: Path | None) -> str:
    return f"; {good} stays" if good is not None else ""
