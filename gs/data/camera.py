"""A camera of a scene, and the cameras.json that viewers read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .undistort import Undistortion

NEAR_PLANE = 0.2  # Inria's


@dataclass(frozen=True)
class Camera:
    """A posed pinhole camera at the training resolution. OpenCV axes, pixel centres at +0.5."""

    image_name: str
    """Name in the scene, sub-folders included ("a/0001.jpg")."""
    image_path: Path | None
    """The file that `gs.data.loader.ImageLoader` decodes; None where there is no image."""
    width: int
    """Training width in pixels."""
    height: int
    """Training height in pixels."""
    viewmat: Tensor
    """World to camera. [4, 4] float32, on the CPU"""
    K: Tensor
    """Intrinsics in pixels of the training resolution. [3, 3] float32, on the CPU"""
    original_width: int
    """Width that the scene's own description gives, before any down-scaling."""
    original_height: int
    """Height that the scene's own description gives."""
    file_size: tuple[int, int] | None = None
    """Width and height of the file on disk, upright where `upright`; None: the original size."""
    near: float = NEAR_PLANE
    """Depth up to which nothing is drawn, in world units."""
    upright: bool = False
    """Whether the file is turned as its EXIF orientation says."""
    undistortion: Undistortion | None = None
    """What makes the file's pixels those of a pinhole camera."""
    mask_path: Path | None = None
    """A file whose black pixels do not count (gs.data.masks); None where all do."""
    alpha_is_mask: bool = False
    """Whether transparent pixels do not count, instead of showing the background."""

    @property
    def position(self) -> Tensor:  # [3] float32
        """Camera centre in the world."""
        return -self.viewmat[:3, :3].T @ self.viewmat[:3, 3]

    @property
    def expected_file_size(self) -> tuple[int, int]:
        """Width and height that the image file must have."""
        return self.file_size or (self.original_width, self.original_height)


def cameras_json(train: list[Camera], test: list[Camera]) -> list[dict[str, Any]]:
    """Describe the cameras in the layout of 3DGS's cameras.json.

    Test cameras come first, then the train cameras; `rotation` is camera to world, focal lengths
    and the principal point (cx, cy) are pixels of the original resolution; near is the near plane.
    """
    return [
        {
            "id": index,
            "img_name": camera.image_name,
            "width": camera.original_width,
            "height": camera.original_height,
            "position": camera.position.tolist(),
            "rotation": camera.viewmat[:3, :3].T.tolist(),
            "fy": float(camera.K[1, 1]) * camera.original_height / camera.height,
            "fx": float(camera.K[0, 0]) * camera.original_width / camera.width,
            "cx": float(camera.K[0, 2]) * camera.original_width / camera.width,
            "cy": float(camera.K[1, 2]) * camera.original_height / camera.height,
            "near": camera.near,
        }
        for index, camera in enumerate([*test, *train])
    ]


def camera_extent(cameras: list[Camera]) -> float:
    """Radius of the camera path: 1.1 times the largest distance to the mean centre.

    The unit of the position learning rate and of the densification thresholds (3DGS, section
    7.1). 1.0 where all the cameras stand on one spot.
    """
    centres = torch.stack([camera.position for camera in cameras]).double()
    radius = 1.1 * (centres - centres.mean(dim=0)).norm(dim=1).max().item()
    return radius if radius > 0 else 1.0
