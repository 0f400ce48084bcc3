"""Depths that the reconstruction knows, as a further loss: settings and strategy.

Where few images see a place, many depths explain them. Structure from motion has measured some: the
points that it has seen in an image. The rendered expected depth D is compared with theirs, d, in
disparities, which noise of a point in the image changes equally wherever it is:

    loss = weight extent 0.01^(t / T)  mean |1/D - 1/d|

in iteration t of T (the decay is that of Inria's depth regularisation, hierarchical 3DGS 2024; the
loss that of DS-NeRF, Deng et al., CVPR 2022, in disparities). Outliers among points cease to matter
so. Points with an error above 2 pixels, or in fewer than three images, are left out when the scene
is read. Where a reconstruction has lost its observations, what images show follows from what hides
what (gs.data.tracks).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from kernels import SparseDepths, depth_loss

from ..data.scene import Scene
from ..data.tracks import depths_of
from ..errors import SplatrimError
from ..model.model import Model
from ..ranges import POSITIVE, check_ranges
from .strategy import StepContext, Strategy

WEIGHT = "depth_weight"  # of the numbers on the device
LEFT = 0.01  # share of the weight at the end

logger = logging.getLogger("splatrim")


@dataclass(frozen=True)
class DepthConfig:
    """Whether and how rendered depths are compared with those of reconstructed points."""

    depth_loss: bool = False
    """Compare rendered depths with those of the points that the scene's reconstruction has seen in
    an image."""
    depth_weight: Annotated[float, POSITIVE] = 0.01
    """Weight of that loss: times the scene's extent, of disparities. Falls to a hundredth."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def build(self, scene: Scene) -> DepthSupervision | None:
        """The strategy, or None where depths are not compared.

        Raises:
            SplatrimError: the scene has no reconstructed points.
        """
        return DepthSupervision(self, scene) if self.depth_loss else None


class DepthSupervision(Strategy[Model]):
    """Adds the loss of known depths to every image's."""

    name = "depths"
    needs_depth = True

    def __init__(self, config: DepthConfig, scene: Scene) -> None:
        self.config = config
        self.known = _known_depths(scene)
        self._on_device: SparseDepths | None = None
        self._end, self._extent = 0, scene.extent

    def setup(self, gaussians: Model, *, extent: float, iterations: int, seed: int) -> None:
        self._end, self._extent = iterations, extent
        tensors = [x.to(gaussians.device) for x in self.known[:3]]
        self._on_device = SparseDepths(*tensors, most=self.known.most)

    def weight(self, step: int) -> float:
        """Of iteration `step`."""
        share = math.exp(step / max(self._end, 1) * math.log(LEFT))
        return self.config.depth_weight * self._extent * share

    def device_numbers(self, step: int) -> dict[str, float]:
        return {WEIGHT: self.weight(step)}

    def image_loss(self, step: int, ctx: StepContext[Model]) -> Tensor | None:
        assert ctx.inputs is not None and self._on_device is not None
        terms: list[Tensor] = []
        for view, out in zip(ctx.inputs.views, ctx.renderings, strict=True):
            assert out.depths is not None
            size = (view.n_cameras, view.height, view.width)
            depths, alphas = out.depths.view(size), out.alphas.reshape(size)
            weight = ctx.inputs.numbers[WEIGHT]
            terms.append(depth_loss(depths, alphas, view.exposure, self._on_device, weight))
        return terms[0] if len(terms) == 1 else torch.stack(terms).sum()

    def phase(self, step: int) -> Hashable | None:
        return "depths"


def _known_depths(scene: Scene) -> SparseDepths:
    """The depths of the training images' points, on the host."""
    if scene.tracks is None:
        raise SplatrimError(
            f"{scene.source} has no reconstructed points, as a COLMAP model with its points3D does:"
            " leave --depth_loss out"
        )
    found = [depths_of(scene.tracks, camera) for camera in scene.train]
    counts = torch.tensor([0, *(len(pixels) for pixels, _ in found)])
    if not bool(counts.any()):
        raise SplatrimError(
            f"no training image of {scene.source} shows a point that is well reconstructed: leave"
            " --depth_loss out"
        )
    if not scene.tracks.rows:
        logger.info(
            f"{scene.source} does not say which points its images show: {int(counts.sum())} that no"
            f" other hides are taken for seen, in {len(found)} images"
        )
    pixels, depths = (torch.cat(parts) for parts in zip(*found, strict=True))
    return SparseDepths(counts.cumsum(0).int(), pixels, 1.0 / depths, int(counts.max()))
