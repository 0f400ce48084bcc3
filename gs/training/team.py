"""What a trainer does together with the ranks that its model is spread over, and what one does.

Alone, a trainer does all of it itself, and nothing here costs anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..distributed.ownership import gather_model, keep_own, new_ids
from ..distributed.ranks import Ranks, Solo
from ..errors import SplatrimError, ToldElsewhere
from ..model.histograms import Histogram
from ..model.model import Model
from ..model.rows import NoneLeft
from .finite import LossNotFinite
from .memory import peak_memory
from .sharded_step import ShardedStepper
from .step import Stepper

T = TypeVar("T")

SAME_SIGNAL = 10.0  # seconds in which signals come more than once under torchrun


class Team:
    """The ranks of a trainer, or None where it is alone."""

    def __init__(self, ranks: Ranks | None) -> None:
        self.ranks = None if isinstance(ranks, Solo) else ranks

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and shows what is of all."""
        return self.ranks is None or self.ranks.rank == 0

    def keeps_image(self, index: int) -> bool:
        """Whether this rank decodes the image of a camera."""
        return self.ranks is None or index % self.ranks.size == self.ranks.rank

    def alone(self, act: Callable[[], T]) -> T | None:
        """Do something on the first rank, while the others wait; None on them."""
        return act() if self.ranks is None else self.ranks.first_only(act)

    def spread(self, model: Model, optimizer: torch.optim.Optimizer) -> None:
        """Keep of a model that every rank has whole, or of this rank's part of it, what is own."""
        ranks = self.ranks
        if ranks is not None:
            keep_own(model, optimizer, ranks)
            model.numbering = lambda parents, first: new_ids(ranks, parents, first)

    def stepper(self, *args: Any, **options: Any) -> Stepper[Any]:
        """Who takes the steps, built of what `Stepper` takes."""
        if self.ranks is None:
            return Stepper(*args, **options)
        return ShardedStepper(self.ranks, *args, **options)

    def describe(self, device: torch.device) -> str:
        """Where the run is."""
        if self.ranks is None:
            return str(device)
        return f"{self.ranks.size} ranks ({device.type})"

    def complete(self, model: Model, ids: Tensor) -> Model:  # [N]
        """On the first rank the model of which each rank has exported a part."""
        return model if self.ranks is None else gather_model(model, ids, self.ranks)

    def summed(self, histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
        """Histograms over the Gaussians of all ranks, of those over each one's."""
        if self.ranks is None:
            return dict(histograms)
        parts = self.ranks.tell(dict(histograms))
        return {
            name: {
                **found,
                "counts": [sum(x) for x in zip(*(p[name]["counts"] for p in parts), strict=True)],
            }
            for name, found in parts[0].items()
        }

    def about(self, model: Model) -> dict[str, Any]:
        """What history.json says of the ranks; nothing for one."""
        if self.ranks is None:
            return {}
        entry = {
            "rank": self.ranks.rank,
            "device": str(self.ranks.device),
            "n_gaussians": len(model),
            "sent_mb": round(self.ranks.sent_bytes / 1e6, 3),
            "seconds": self.ranks.clock.seconds(),
            **peak_memory(self.ranks.device),
        }
        return {"ranks": self.ranks.tell(entry)}

    @contextlib.contextmanager
    def told_once(self) -> Iterator[None]:
        """Where what fails on all ranks alike is told by the first."""
        try:
            yield
        except (NoneLeft, LossNotFinite):
            if not self.is_first:
                raise ToldElsewhere from None
            raise

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Refuse ranks that were started with different commands.

        Raises:
            SplatrimError: On the first rank, which names a setting that differs.
            ToldElsewhere: On the others.
        """
        if self.ranks is None:
            return
        everyone = self.ranks.tell(_flat(settings))
        for rank, other in enumerate(everyone):
            for name, value in everyone[0].items():
                if other.get(name) != value:
                    raise self._refusal(rank, name, other.get(name), value)

    def _refusal(self, rank: int, name: str, value: Any, first: Any) -> BaseException:
        if not self.is_first:
            return ToldElsewhere()
        return SplatrimError(
            f"rank {rank} has --{name} {value} and rank 0 has {first}:"
            " start all ranks with the same command"
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, those of parts among the others."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat
