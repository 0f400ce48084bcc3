"""A camera of a scene, and the cameras.json that viewers read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels import Distortion, LensKind, lenses

if TYPE_CHECKING:
    from .undistort import Undistortion

NEAR_PLANE = 0.2  # Inria's


@dataclass(frozen=True)
class Camera:
    """A posed camera at the training resolution. OpenCV axes, pixel centres at +0.5."""

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
    distortion: Distortion | None = None
    """What its lens bends, through which it is drawn; None: a pinhole."""
    mask_path: Path | None = None
    """A file whose black pixels do not count (gs.data.masks); None where all do."""
    alpha_is_mask: bool = False
    """Whether transparent pixels do not count, instead of showing the background."""

    @property
    def lens(self) -> LensKind:
        """What the rasterizer is compiled for."""
        return lenses.PINHOLE if self.distortion is None else lenses.kind_of([self.distortion])

    @property
    def lens_words(self) -> Tensor:  # [lenses.LENS_WORDS] float64
        """The lens as kernels read it; zeros for a pinhole."""
        if self.distortion is None:
            return torch.zeros(lenses.LENS_WORDS, dtype=torch.float64)
        K = self.K.double()
        intrinsics = (K[0, 0].item(), K[1, 1].item(), K[0, 2].item(), K[1, 2].item())
        return lenses.pack_lens(self.distortion, intrinsics, self.width, self.height)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:  # [N, 3] -> [N, 2], [N]
        """Pixels and depths of points in the world, in the image or not.

        Depth is that of the rasterizer; at most zero where a lens does not show a direction.
        """
        viewmat, K = self.viewmat.to(points), self.K.to(points)
        x = points @ viewmat[:3, :3].T + viewmat[:3, 3]
        if self.distortion is None:
            pixels = x @ K.T
            return pixels[:, :2] / pixels[:, 2:], x[:, 2]
        family, words = self.distortion.family, self.lens_words.to(points)
        shown = lenses.angles_beyond(words, x) <= 0
        pixels = lenses.project_points(family, K, words, x)
        return pixels, torch.where(shown, lenses.depths_of(family, x), 0.0)

    @property
    def position(self) -> Tensor:  # [3] float32
        """Camera centre in the world."""
        return -self.viewmat[:3, :3].T @ self.viewmat[:3, 3]

    @property
    def expected_file_size(self) -> tuple[int, int]:
        """Width and height that the image file must have."""
        return self.file_size or (self.original_width, self.original_height)


def resized_camera(camera: Camera, width: int, height: int) -> Camera:
    """The camera at another size, of its own field of view along both axes."""
    K = camera.K.clone()
    K[0] *= width / camera.width
    K[1] *= height / camera.height
    return replace(camera, width=width, height=height, K=K)


def cameras_json(train: list[Camera], test: list[Camera]) -> list[dict[str, Any]]:
    """Describe the cameras in the layout of 3DGS's cameras.json.

    Test cameras come first, then the train cameras; `rotation` is camera to world, focal lengths
    and the principal point (cx, cy) are pixels of the original resolution; near is the near plane.
    Cameras that are drawn through a lens with distortion also say which.
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
        | ({} if camera.distortion is None else {"distortion": camera.distortion._asdict()})
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
