"""Seams: how much worse an image is where two blocks meet than elsewhere, beside one piece.

The owner of a pixel is the block whose Gaussians weigh most in it. Border pixels are those within 8
pixels of a change of owner. With the mean squared error of an image over border pixels and over the
rest, the excess of blocks is

    (border / rest) of the blocks  over  (border / rest) of one piece, on the same pixels

which is 1 where borders show no more than what lies there anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kernels import rasterization

from ..data.camera import Camera
from ..data.loader import CameraImages
from ..evaluation.views import quantize
from ..files import atomic_write
from ..losses import to_float
from ..model.model import Model
from ..model.renderer import render
from ..model.view import view_of
from ..neural.loading import load_model
from ..run_record import OWNERS, find_model

REACH = 8  # pixels
LEAST_PIXELS = 100  # of a view's border and of its rest


@dataclass(frozen=True)
class Seam:
    """A view's errors."""

    name: str
    """The camera's image name."""
    border_share: float
    """Of the pixels."""
    ratio: float
    """Error at borders over that elsewhere."""
    excess: float | None
    """That over the same of one piece, where there is one."""


@torch.no_grad()
def owner_map(model: Model, blocks: Tensor, camera: Camera) -> Tensor:  # [N] -> [H, W] int64
    """The block that weighs most in each pixel; -1 where there is nothing.

    Args:
        model: All Gaussians, or anchors.
        blocks: The block of each. [N] int64
        camera: The view.
    """
    n_blocks = int(blocks.max()) + 1
    view = view_of(camera, model.device, model.exposure(camera.image_name))
    s = model.splats(view)
    owners = s.gather(blocks.to(model.device).repeat_interleave(model.parts))
    colors = functional.one_hot(owners, n_blocks).float()
    image, alphas, _ = rasterization(
        s.means,
        s.quats,
        s.scales,
        s.opacities,
        colors,
        view.viewmats,
        view.Ks,
        view.width,
        view.height,
        near_plane=view.near,
        raw=s.raw,
    )
    return torch.where(alphas[0, ..., 0] > 0, image[0].argmax(-1), -1)


def borders(owners: Tensor) -> Tensor:  # [H, W] int64 -> [H, W] bool
    """Pixels within REACH of a change of owner, along both axes."""
    changes = torch.zeros_like(owners, dtype=torch.bool)
    across, down = owners[:, 1:] != owners[:, :-1], owners[1:] != owners[:-1]
    changes[:, 1:] |= across
    changes[:, :-1] |= across
    changes[1:] |= down
    changes[:-1] |= down
    wide = functional.max_pool2d(changes.float()[None], 2 * REACH - 1, 1, REACH - 1)
    return wide[0] > 0


@torch.no_grad()
def measure_seams(
    model: Model,
    blocks: Tensor,  # [N] int64
    cameras: Sequence[Camera],
    images: CameraImages,
    background: Tensor,  # [3]
    indices: Sequence[int],
    one_piece: Model | None = None,
) -> list[Seam]:
    """Seams of some views; those without a border, or all border, are left out.

    Args:
        model: The whole of a run's blocks, on the images' device.
        blocks: The block of each Gaussian.
        cameras: All cameras.
        images: Their images.
        background: Colour behind the Gaussians.
        indices: Which views.
        one_piece: The scene trained in one piece, to compare with.
    """
    found = []
    for index in indices:
        camera, truth = cameras[index], to_float(images[index])
        border = borders(owner_map(model, blocks, camera))
        if int(border.sum()) < LEAST_PIXELS or int((~border).sum()) < LEAST_PIXELS:
            continue

        def ratio(
            of: Model, camera: Camera = camera, truth: Tensor = truth, border: Tensor = border
        ) -> float:
            shown = to_float(quantize(render(of, camera, background=background).colors))
            error = (shown - truth).square().mean(-1)
            return float(error[border].mean() / error[~border].mean().clamp_min(1e-12))

        own = ratio(model)
        excess = None if one_piece is None else own / max(ratio(one_piece), 1e-12)
        share = float(border.float().mean())
        found.append(Seam(camera.image_name, share, own, excess))
    return found


def load_whole(folder: Path, device: torch.device) -> tuple[Model, Tensor | None]:
    """A run's latest model, and the block of each Gaussian where it was trained in blocks.

    Raises:
        SplatrimError: there is no model, or it is broken.
    """
    _, path = find_model(folder)
    beside = path.with_name(OWNERS)
    blocks = torch.from_numpy(np.load(beside)).long() if beside.is_file() else None
    return load_model(path, device), blocks


def save_owners(model: Path, blocks: Tensor) -> None:  # [N]
    """Write the block of each Gaussian beside a model's file."""
    with atomic_write(model.with_name(OWNERS)) as file:
        np.save(file, blocks.to(torch.int16).numpy())
