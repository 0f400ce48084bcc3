"""The decoder of all blocks, its optimizer and its teacher: the same on every rank, bit for bit.

Blocks of a group each find a gradient; their weighted mean, summed in float64 in the order of the
blocks, makes one step on every rank. Which rank a block is trained on changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..distributed.ranks import Ranks
from ..errors import SplatrimError
from ..model.rates import OptimConfig
from ..neural.anchors import Anchors
from ..neural.momentum import MomentumConfig, Teacher, decoder_of
from ..neural.surrounded import shared_parameters
from ..training.optimizer import (
    build_optimizer,
    learning_rates,
    load_optimizer_state,
    optimizer_state,
    set_learning_rates,
)


class SharedDecoder:
    """The decoder while blocks are trained.

    Args:
        model: Anchors, of which the parameters without rows are taken.
        config: What blocks have in common.
        optim: Learning rates of the run.
        extent: Radius of the scene.
        n_images: Images of a step.
        n_slots: Groups of a round, which have an optimizer each with `decoder_adam` per_slot.
        ranks: All that train; None for one.

    `parameters` has them by name; blocks' models have the same objects.
    """

    def __init__(
        self,
        model: Anchors,
        config: MomentumConfig,
        optim: OptimConfig,
        *,
        extent: float,
        n_images: int = 1,
        n_slots: int = 1,
        ranks: Ranks | None = None,
    ) -> None:
        self.config, self.optim, self.extent, self.ranks = config, optim, extent, ranks
        self.model = model
        self.parameters = shared_parameters(model)
        self.learnt = {name: p for name, p in self.parameters.items() if p.requires_grad}
        own = n_slots if config.decoder_adam == "per_slot" else 1
        self.optimizers = [
            build_optimizer(model, optim, extent=extent, n_images=n_images, which="shared")
            for _ in range(own)
        ]
        self.teacher = Teacher(decoder_of(model), config.momentum)
        self.is_frozen = False

    def freeze(self, is_frozen: bool) -> None:
        """Learn nothing from now on, or learn again."""
        self.is_frozen = is_frozen
        for parameter in self.learnt.values():
            parameter.requires_grad_(not is_frozen)

    def take_gradient(self, weight: float) -> Tensor:  # [P] float32
        """The gradient that a block's step has left, times its weight; it is gone from there."""
        parts: list[Tensor] = []
        for parameter in self.learnt.values():
            grad, parameter.grad = parameter.grad, None
            parts.append(torch.zeros_like(parameter) if grad is None else grad)
        return weight * torch.cat([part.flatten() for part in parts])

    def gather(
        self,
        found: Mapping[int, Tensor],  # [P] by block
        owners: Mapping[int, int],
    ) -> list[Tensor]:  # [P] each
        """Gradients of all blocks that have taken a step, in the order of blocks, on every rank.

        Args:
            found: Of this rank's blocks.
            owners: Rank of each block that has taken the step.
        """
        blocks = sorted(owners)
        if self.ranks is None:
            return [found[block] for block in blocks]
        size = self.ranks.size
        shares = [[b for b in blocks if owners[b] == rank] for rank in range(size)]
        n_parameters = sum(p.numel() for p in self.learnt.values())
        device = next(iter(self.learnt.values())).device
        mine = torch.zeros(max(map(len, shares)), n_parameters, device=device)
        for place, block in enumerate(shares[self.ranks.rank]):
            mine[place] = found[block]
        everyone = self.ranks.stack(mine)
        return [everyone[owners[b], shares[owners[b]].index(b)] for b in blocks]

    def step(self, gradients: Sequence[Tensor], iteration: int, slot: int = 0) -> None:
        """Take one step by the mean of gradients, and let the teacher follow.

        Args:
            gradients: As `gather` gives them. [P] each
            iteration: How far the run is, which learning rates follow from.
            slot: Of the group in its round.
        """
        total = gradients[0].double()
        for gradient in gradients[1:]:
            total = total + gradient.double()
        mean, first = (total / len(gradients)).float(), 0
        for parameter in self.learnt.values():
            n = parameter.numel()
            parameter.grad = mean[first : first + n].view_as(parameter)
            first += n
        optimizer = self.optimizers[slot % len(self.optimizers)]
        rates = learning_rates(optimizer, self.optim, extent=self.extent, step=iteration)
        set_learning_rates(optimizer, rates)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.config.teacher == "iteration":
            self.teacher.follow(decoder_of(self.model))

    def end_wave(self) -> None:
        """A group has ended its interval."""
        if self.config.teacher == "wave" and not self.is_frozen:
            self.teacher.follow(decoder_of(self.model))

    def check_replicas(self) -> None:
        """Raise SplatrimError if ranks have come to different decoders. Waits."""
        if self.ranks is None:
            return
        digests = self.ranks.tell(self.digest())
        for rank, digest in enumerate(digests):
            if digest != digests[0]:
                raise SplatrimError(
                    f"rank {rank} has another decoder than rank 0: start all ranks on machines of"
                    " one kind, with the same command"
                )

    def digest(self) -> str:
        """Of all weights and the teacher's. Waits."""
        found = hashlib.sha256()
        for x in (*self.parameters.values(), *self.teacher.nets.values()):
            found.update(x.detach().cpu().numpy().tobytes())
        return found.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs; tensors share memory."""
        return {
            "parameters": {name: p.detach() for name, p in self.parameters.items()},
            "optimizers": [optimizer_state(optimizer) for optimizer in self.optimizers],
            "teacher": self.teacher.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            SplatrimError: it is of another number of optimizers, or of other shapes.
        """
        known = state["optimizers"]
        if len(known) != len(self.optimizers) or state["parameters"].keys() != {*self.parameters}:
            raise SplatrimError(
                "the blocks' decoder was trained with other settings (--decoder_adam, --lockstep,"
                " --appearance_dim): go on with the same"
            )
        for name, parameter in self.parameters.items():
            parameter.copy_(state["parameters"][name])
        for optimizer, own in zip(self.optimizers, known, strict=True):
            load_optimizer_state(optimizer, own)
        self.teacher.load_state_dict(state["teacher"])
