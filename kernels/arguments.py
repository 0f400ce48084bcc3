"""What a rendering takes: tensors by name, a hashable tuple of numbers and flags, a capacity."""

import operator
from collections.abc import Hashable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from .constants import EPS2D, FAR_PLANE, NEAR_PLANE
from .lenses import PINHOLE, LensKind


class RenderSettings(NamedTuple):
    """The numbers and flags of a rendering.

    Equal settings and equal signatures of the inputs make calls of one kind, which the host works
    out once (runtime/recording.py).
    """

    width: int
    """Of the images, in pixels."""
    height: int
    """Of the images, in pixels."""
    near_plane: float = NEAR_PLANE
    """Gaussians whose centre is not beyond this depth are culled; not negative."""
    far_plane: float = FAR_PLANE
    """Gaussians whose centre is not before this depth are culled."""
    eps2d: float = EPS2D
    """Added to the diagonal of projected covariances, in square pixels."""
    sh_degree: int | None = None
    """0 to 3 where `colors` are spherical harmonics."""
    render_mode: str = "RGB"
    """"RGB", "D", "ED", "RGB+D" or "RGB+ED"."""
    antialiased: bool = False
    """Scale opacities by sqrt(det / det_blurred)."""
    raw: bool = False
    """`scales` are logarithms and `opacities` logits; exp and sigmoid are part of projection."""
    normalize_quats: bool = True
    """False uses quaternions as they are."""
    absgrad: bool = False
    """The backward also sums absolute gradients of pixel means."""
    contributions: bool = False
    """Also measure what every Gaussian contributes."""
    deterministic: bool = False
    """Gradients do not depend on the order in which threads run."""
    exact: bool = False
    """Gradients to float32 rounding, with twice the matrix products in the backward."""
    lens: LensKind = PINHOLE
    """Of all cameras; depth is the distance where its family is fisheye or equirectangular."""
    masks_by_camera: bool = False
    """Masks of `mask_logits` are drawn for each camera; `masks` are then means over cameras."""

    @property
    def has_colors(self) -> bool:
        """Whether colours are rendered."""
        return "RGB" in self.render_mode

    @property
    def has_depth(self) -> bool:
        """Whether depth is rendered, as the last channel."""
        return "D" in self.render_mode

    @property
    def expects_depth(self) -> bool:
        """Whether that depth is divided by alpha."""
        return "ED" in self.render_mode


class Counts(NamedTuple):
    """How many rows and entries a call has."""

    rows: int
    """Visible (camera, Gaussian) pairs."""
    entries: int
    """Entries of tile lists, or what the members of bins take (binning/)."""


class Capacity(NamedTuple):
    """How many rows and entries buffers hold."""

    rows: int
    """Records."""
    entries: int
    """Entries of tile lists."""

    def holds(self, counts: Counts) -> bool:
        return counts.rows <= self.rows and counts.entries <= self.entries


class RasterInputs(NamedTuple):
    """The tensors of a rendering of N Gaussians into C cameras."""

    means: Tensor  # [N, 3]
    quats: Tensor | None  # [N, 4]
    scales: Tensor | None  # [N, 3]
    opacities: Tensor  # [N]
    colors: Tensor  # [N, D], [C, N, D] or [N, K, 3]
    viewmats: Tensor  # [C, 4, 4]
    Ks: Tensor  # [C, 3, 3]
    colors_rest: Tensor | None = None  # [N, K - 1, 3] above degree 0, `colors` [N, 1, 3] the rest
    covars: Tensor | None = None  # [N, 3, 3] in the world, in place of quats and scales
    backgrounds: Tensor | None = None  # [C, D]
    masks: Tensor | None = None  # [N]
    mask_logits: Tensor | None = None  # [N] or [N, 2]
    mask_ids: Tensor | None = None  # [N] int32
    mask_words: Tensor | None = None  # [2] int32: low and high half of the seed, in its place
    lenses: Tensor | None = None  # [C, LENS_WORDS] unless `RenderSettings.lens` is a pinhole
    mask_seed: int = 0

    def signature(self) -> Hashable:
        """Which tensors there are, and shape, dtype and device of each.

        Raises:
            AttributeError: something is no tensor.
        """
        return (*map(_IS_ABSENT, self[:-1]), *map(_DESCRIBE, filter(IS_THERE, self[:-1])))


def without_column(x: Tensor | None) -> Tensor | None:
    """[N] of masks [N, 1]; anything else as it is."""
    return x if x is None or getattr(x, "ndim", 1) != 2 or x.shape[1] != 1 else x.reshape(-1)


# In C, because a call of the rasterizer asks this each time.
_IS_ABSENT, IS_THERE = partial(operator.is_, None), partial(operator.is_not, None)
_DESCRIBE = operator.attrgetter("shape", "dtype", "device")
