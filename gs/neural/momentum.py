r"""A teacher of the decoder, and the loss that keeps the decoder near it.

Fan et al., "Momentum-GS: Momentum Gaussian Self-Distillation for High-Quality Large Scene
Reconstruction" (ICCV 2025, https://arxiv.org/abs/2412.04887), section 3.2. The teacher theta_t is
the exponential average of the decoder theta_s,

    theta_t <- m theta_t + (1 - m) theta_s

once after each step of the decoder, which is once before each rendering. Both decode the anchors
that a view sees, and with o for opacity, s scale, q rotation, c colour of their Gaussians

    loss = mean (c_s - c_t)^2 + mean (q_s - q_t)^2 + mean (s_s - s_t)^2 + mean (o_s - o_t)^2

The first three means are over the Gaussians that the decoder draws (o_s > 0) and their components,
the last over all offsets of these anchors. The teacher's weights get no gradient; features and
scales of anchors get that of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from kernels import Decoded

from ..model.splats import Splats
from ..model.view import View
from ..ranges import COUNT, NOT_NEGATIVE, SHARE, check_ranges
from .anchors import Anchors, center_of
from .decoder import NETS


@dataclass(frozen=True)
class MomentumConfig:
    """What blocks of neural Gaussians have in common, and how they are kept alike."""

    teacher: Literal["none", "iteration", "wave"] = "iteration"
    """What the decoder of all blocks is kept near: its exponential average over iterations, as
    Momentum-GS has it, that over waves, or nothing."""
    momentum: Annotated[float, SHARE] = 0.9
    """Share of the former teacher in the next one."""
    lambda_consistency: Annotated[float, NOT_NEGATIVE] = 50.0
    """Weight of what lies between decoder and teacher in the loss."""
    sigma: Annotated[float, NOT_NEGATIVE] = 10.0
    """Width, in dB, of the bell by which blocks that lag behind the best one count more for the
    decoder; 0: all count alike."""
    weighted: Literal["decoder", "loss"] = "decoder"
    """What weights multiply: a block's part in the decoder's gradient; or, as published, its whole
    loss, and so the gradients that its anchors grow by."""
    freeze_decoder: Annotated[float, SHARE] = 0.05
    """In this last share of a run the decoder stays as it is, and all blocks fit their anchors to
    it."""
    lockstep: Annotated[int, COUNT] = 0
    """Blocks whose gradients make one step of the decoder; 0: all of a wave."""
    decoder_adam: Literal["shared", "per_slot"] = "shared"
    """One Adam of the decoder for all blocks; or, as published, one for each place in the lockstep
    order, whose averages are old when its turn comes."""
    swap: Literal["host", "none"] = "host"
    """host: blocks are in page-locked memory between their turns. none: all stay on the device,
    with the same result."""

    def __post_init__(self) -> None:
        check_ranges(self)


class Teacher:
    """The decoder's exponential average.

    Args:
        decoder: Weights by net; copied.
        momentum: m, in 0..1.

    `nets` has its weights by net. Equal decoders make equal teachers, bit for bit.
    """

    def __init__(self, decoder: dict[str, Tensor], momentum: float) -> None:
        self.momentum = momentum
        self.nets = {name: decoder[name].detach().clone() for name in NETS}

    @torch.no_grad()
    def follow(self, decoder: dict[str, Tensor], skip: Tensor | None = None) -> None:
        """The decoder has stepped. A CUDA graph can capture it.

        Args:
            decoder: Its weights by net.
            skip: One int32 on the device; if it is not 0, nothing changes.
        """
        for name, weights in self.nets.items():
            # lerp leaves equal weights equal, and at m = 0 gives the decoder's own
            following = torch.lerp(weights, decoder[name].detach(), 1.0 - self.momentum)
            weights.copy_(following if skip is None else torch.where(skip == 0, following, weights))

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights, sharing memory."""
        return dict(self.nets)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over weights."""
        for name, weights in self.nets.items():
            weights.copy_(state[name])


def decoder_of(model: Anchors) -> dict[str, Tensor]:
    """A model's weights by net, sharing memory."""
    return {name: model.shared.get_parameter(name) for name in NETS}


def consistency(
    model: Anchors,
    drawn: Splats,
    view: View,
    teacher: Teacher,
) -> Tensor:  # []
    """The loss of one rendering, as in the module's docstring.

    Args:
        model: What was rendered.
        drawn: What the view drew of it.
        view: Of one camera.
        teacher: Of its decoder.
    """
    assert drawn.rows is not None
    taught = model.decoded(drawn.rows, center_of(view), view.exposure, nets=teacher.nets)
    seen = (drawn.rows >= 0).repeat_interleave(model.parts)
    return difference(drawn, taught, seen)


def difference(
    student: Splats | Decoded,
    teacher: Decoded,
    seen: Tensor,  # [M] bool
) -> Tensor:  # []
    """The four means of squares.

    Args:
        student: M Gaussians of the decoder.
        teacher: The same of the teacher.
        seen: Which of them stand for an offset: places can be empty.
    """
    shown = (seen & (student.opacities.detach() > 0)).float()[:, None]
    n_shown, n_seen = shown.sum().clamp_min(1.0), seen.sum().clamp_min(1)
    loss = ((student.opacities - teacher.opacities).square() * seen).sum() / n_seen
    for a, b in (
        (student.colors, teacher.colors),
        (student.quats, teacher.quats),
        (student.scales, teacher.scales),
    ):
        loss = loss + ((a - b).square() * shown).sum() / (n_shown * a.shape[1])
    return loss
