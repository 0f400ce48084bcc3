"""What steps compare with: the cameras and images of a run, at the size of its present stage.

Where images are reduced by a factor s (--resolution_schedule), one of W x H pixels becomes
max(round(W/s), 1) x max(round(H/s), 1) pixels, means over areas, and its camera's intrinsics are
scaled with it. They are made when they are first asked for, on the device, and kept until the next
stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..data.camera import Camera, resized_camera
from ..data.loader import CameraImages
from ..model.view import pack_view

MAX_BYTES = 2 * 2**30  # of reduced images that are kept


class Pictures:
    """Cameras, their images and their packed views, by one index.

    Args:
        images: Those of the full size.
    """

    def __init__(self, images: CameraImages) -> None:
        self._images = images.targets
        self._kept: dict[int, Tensor] = {}
        self._kept_bytes = 0
        self.reduction = 1.0
        """What both sides of images are divided by."""
        self.cameras: Sequence[Camera] = images.cameras
        """Of images of the present size."""
        self.views: Sequence[NDArray[np.float32]] = self._packed()
        """The cameras as captured steps take them. [VIEW_WORDS] each"""

    def reduce(self, reduction: float) -> None:
        """Divide both sides of images by that from now on."""
        if reduction == self.reduction:
            return
        self.reduction = reduction
        self._kept, self._kept_bytes = {}, 0
        self.cameras = [reduced_camera(camera, reduction) for camera in self._images.cameras]
        self.views = self._packed()

    def __getitem__(self, index: int) -> Tensor:  # [H, W, 3 or 4] uint8
        """The image of camera `index`, on the device; with its mask where images have some."""
        if self.reduction == 1:
            return self._images[index]
        image = self._kept.get(index)
        if image is None:
            camera = self.cameras[index]
            image = reduced_image(self._images[index], camera.width, camera.height)
            if self._images.has_masks:  # a pixel counts where all beneath it do
                image[..., 3] = torch.where(image[..., 3] == 255, 255, 0)
            if self._kept_bytes + image.nbytes <= MAX_BYTES:
                self._kept[index] = image
                self._kept_bytes += image.nbytes
        return image

    def _packed(self) -> list[NDArray[np.float32]]:
        return [pack_view(camera, k) for k, camera in enumerate(self.cameras)]


def reduced_camera(camera: Camera, reduction: float) -> Camera:
    """The same view on fewer pixels; itself where nothing is reduced."""
    if reduction == 1:
        return camera
    width = max(round(camera.width / reduction), 1)
    height = max(round(camera.height / reduction), 1)
    return resized_camera(camera, width, height)


def reduced_image(image: Tensor, width: int, height: int) -> Tensor:  # [H, W, D] uint8
    """The image on width x height pixels: means over their areas, rounded. [height, width, D]"""
    pixels = image.permute(2, 0, 1)[None].float()
    means = functional.adaptive_avg_pool2d(pixels, (height, width))[0]
    return means.permute(1, 2, 0).round().to(torch.uint8).contiguous()
