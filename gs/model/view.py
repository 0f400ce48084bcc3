"""Cameras as rendering reads them: tensors on the model's device, packed into a vector each.

A vector's layout, in words of 4 bytes; a captured step finds its views at the head of its inputs:

    0   viewmat     world to camera, row by row     16 floats
    16  K           intrinsics in pixels             9 floats
    28  exposure    place among the run's cameras    1 integer
    32  lens        kernels.lenses                  20 floats, zeros for pinholes
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import Lenses, LensKind, lenses

from ..data.camera import NEAR_PLANE, Camera

VIEWMAT, INTRINSICS, EXPOSURE, LENS = 0, 16, 28, 32  # multiples of 16 bytes
VIEW_WORDS = LENS + lenses.LENS_WORDS
NO_EXPOSURE = -1


class View(NamedTuple):
    """A camera on a device, or C of them of one size that are rendered at once."""

    viewmats: Tensor
    """World to camera. [C, 4, 4] float32"""
    Ks: Tensor
    """Intrinsics in pixels. [C, 3, 3] float32"""
    exposure: Tensor
    """Place among the run's cameras, as a row of what is learnt for each; NO_EXPOSURE where the
    camera is none of them. [C] int32"""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    near: float = NEAR_PLANE
    """Depth of the near plane."""
    lens: LensKind = lenses.PINHOLE
    """Of all cameras."""
    lens_words: Tensor | None = None
    """Their lenses; None: pinholes. [C, LENS_WORDS] float32"""

    @property
    def lenses(self) -> Lenses | None:
        """What `kernels.rasterization` takes; None for pinholes."""
        return None if self.lens_words is None else Lenses(self.lens, self.lens_words)

    @property
    def n_cameras(self) -> int:
        return len(self.viewmats)

    def one(self, k: int) -> View:
        """Camera k alone; it shares memory."""
        if self.n_cameras == 1:
            return self
        rows = slice(k, k + 1)
        return self._replace(
            viewmats=self.viewmats[rows],
            Ks=self.Ks[rows],
            exposure=self.exposure[rows],
            lens_words=None if self.lens_words is None else self.lens_words[rows],
        )


def pack_view(camera: Camera, exposure: int = NO_EXPOSURE) -> NDArray[np.float32]:  # [VIEW_WORDS]
    """The vector of a camera, on the host."""
    words = np.zeros(VIEW_WORDS, dtype=np.float32)
    words[VIEWMAT:INTRINSICS] = camera.viewmat.numpy().ravel()
    words[INTRINSICS : INTRINSICS + 9] = camera.K.numpy().ravel()
    words.view(np.int32)[EXPOSURE] = exposure
    if camera.distortion is not None:
        words[LENS:] = camera.lens_words.numpy()
    return words


def unpack_view(
    words: Tensor,  # [C VIEW_WORDS] float32
    width: int,
    height: int,
    near: float,
    lens: LensKind = lenses.PINHOLE,
) -> View:
    """The view in one or more vectors, which it shares memory with."""
    words = words.view(-1, VIEW_WORDS)
    return View(
        words[:, VIEWMAT:INTRINSICS].view(-1, 4, 4),
        words[:, INTRINSICS : INTRINSICS + 9].view(-1, 3, 3),
        words[:, EXPOSURE].view(torch.int32),
        width,
        height,
        near,
        lens,
        None if lens == lenses.PINHOLE else words[:, LENS:],
    )


@lru_cache(maxsize=8192)
def view_of(camera: Camera, device: torch.device, exposure: int = NO_EXPOSURE) -> View:
    """A camera on the device, copied there once and not per step."""
    words = torch.from_numpy(pack_view(camera, exposure)).to(device)
    return unpack_view(words, camera.width, camera.height, camera.near, camera.lens)


def views_of(cameras: Sequence[Camera], device: torch.device, exposures: Sequence[int]) -> View:
    """Cameras of one size, near plane and kind of lens on the device, as one view."""
    views = [view_of(camera, device, k) for camera, k in zip(cameras, exposures, strict=True)]
    if len(views) == 1:
        return views[0]
    bent = [view.lens_words for view in views if view.lens_words is not None]
    return views[0]._replace(
        lens_words=torch.cat(bent) if bent else None,
        viewmats=torch.cat([view.viewmats for view in views]),
        Ks=torch.cat([view.Ks for view in views]),
        exposure=torch.cat([view.exposure for view in views]),
    )
