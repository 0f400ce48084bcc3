"""Steps of a block among frozen surroundings; as gs.training.step, eager or captured.

The loss is that of the image's box that own Gaussians reach (gs.blocks.surroundings): outside it
the rendering counts as perfect. Within reach of own Gaussians its gradient is the whole image's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import photometric_gradient

from ..model.splats import Frozen
from ..training.step import Stepper
from ..training.strategy import M, Population, StepContext


class BlockStepper(Stepper[M]):
    """Takes steps of a block.

    `elsewhere` says how many Gaussians other blocks have, and the sum of their masks' means, a
    number on the device; None where the model is the whole.
    """

    elsewhere: tuple[int, Tensor] | None = None

    def _context(self, step: int, image: int, *args: Any, **own: Any) -> StepContext[M]:
        context = super()._context(step, image, *args, **own)
        if self.elsewhere is not None:
            n, kept = self.elsewhere
            population = Population(n + len(self.gaussians) * self.gaussians.parts, kept)
            if self.config.regularise == "seen":
                population = _observed(population, context)
            context.out.info["population"] = population
        return context

    def _compare(
        self, images: Sequence[Tensor], targets: Sequence[Tensor], context: StepContext[M]
    ) -> tuple[Tensor, list[Tensor]]:
        frozen: Frozen | None = getattr(self.gaussians, "frozen", None)
        if frozen is None or frozen.boxes is None:
            return super()._compare(images, targets, context)
        assert context.inputs is not None
        views = (context.inputs.view, *context.inputs.others)
        places = torch.cat([view.exposure for view in views]).long()
        weight = self.config.lambda_dssim
        triples = zip(images, targets, frozen.boxes[places].unbind(), strict=True)
        found = [compare_within(image, target, box, weight) for image, target, box in triples]
        return torch.stack([values for values, _ in found]).sum(0), [v for _, v in found]


def compare_within(
    image: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3 or 4] uint8
    box: Tensor,  # [4] int32
    lambda_dssim: float,
) -> tuple[Tensor, Tensor]:  # [5], [H, W, 3]
    """As `kernels.photometric_gradient`, of an image that only counts within a box.

    Args:
        image: A rendering.
        target: Its ground truth.
        box: Left, top, right, bottom, on the device.
        lambda_dssim: Share of D-SSIM.

    Returns:
        The values as means over the box, and the gradient of the image's loss, 0 outside the box.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = box.unbind()
    x = torch.arange(width, device=image.device)
    y = torch.arange(height, device=image.device)
    counts = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
    mask = counts.to(torch.uint8) * 255
    if target.shape[-1] == 4:
        mask = torch.minimum(mask, target[..., 3])
    target = torch.cat([target[..., :3], mask[..., None]], -1)
    values, v_colors = photometric_gradient(image.detach(), target, lambda_dssim)
    share = height * width / ((right - left) * (bottom - top)).clamp_min(1)
    loss, l1, ssim, *clamped = values.unbind()
    return torch.stack([share * loss, share * l1, 1 - share * (1 - ssim), *clamped]), v_colors


def _observed(population: Population, context: StepContext[Any]) -> Population:
    """With the observations of what is frozen, where regularisers are means over those."""
    seen, masked = [], []
    for out in context.renderings:
        radii, masks = out.info.get("frozen_radii"), out.info.get("frozen_masks")
        if radii is None:
            continue
        counts = (radii > 0).all(-1).sum(0).float()
        seen.append(counts.sum())
        masked.append(counts.sum() if masks is None else (counts * masks).sum())
    if not seen:
        return population
    return population._replace(
        observations=torch.stack(seen).sum(), observed=torch.stack(masked).sum()
    )
