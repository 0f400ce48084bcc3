"""Gaussians in the colours of the blocks that own them, and all of them from above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.camera import Camera
from ..model.gaussians import SH_C0
from .page import upward

COLORS = ("#2a78d6", "#d9571f", "#14936a", "#a44fc4", "#c29a00", "#d6457f", "#4aa3b5", "#7a6a58")
ABOVE = 800, 600, 0.9  # width and height of the view from above; focal length, in widths
MARGIN = 1.1
DARKEST = 0.35  # of a block's colour, where the model is black


def block_colors(blocks: Tensor) -> Tensor:  # [N] -> [N, 3]
    """The colour of each block, in 0..1; the ninth has that of the first."""
    table = [[int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)] for color in COLORS]
    return torch.tensor(table)[blocks.cpu().long() % len(COLORS)]


def tinted(tensors: Mapping[str, Tensor], blocks: Tensor) -> dict[str, Tensor]:
    """A model in its blocks' colours, as bright as it was, from everywhere alike.

    Args:
        tensors: means, quats, scales, opacities, sh0 [N, 1, 3], shN.
        blocks: The block of each Gaussian. [N]

    Raises:
        ValueError: blocks of another number of Gaussians.
    """
    sh0 = tensors["sh0"]
    if len(blocks) != len(sh0):
        raise ValueError(f"blocks: expected {len(sh0)}, got {len(blocks)}")
    brightness = (0.5 + SH_C0 * sh0).clamp(0, 1).mean(-1, keepdim=True)  # [N, 1, 1]
    colors = block_colors(blocks).to(sh0)[:, None] * (DARKEST + (1 - DARKEST) * brightness)
    shN = tensors["shN"]
    return {**tensors, "sh0": (colors - 0.5) / SH_C0, "shN": shN[:, :0]}


def from_above(means: Tensor, cameras: Sequence[Camera]) -> Camera:
    """A view of a whole scene from above.

    Args:
        means: What is seen, but for the outermost hundredth on each side. [N, 3]
        cameras: Those of the scene, which say what is up.
    """
    points = means.detach().double().cpu().numpy()
    up = upward(np.array([camera.viewmat[:3, :3].double().numpy() for camera in cameras]))
    middle = np.median(points, axis=0)
    flat = points - middle
    flat = flat - np.outer(flat @ up, up)
    right = np.linalg.eigh(flat.T @ flat)[1][:, -1]  # the longer side lies across
    right = right - up * (right @ up)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(-up, right), -up])
    low, high = np.percentile((points - middle) @ axes.T, (1, 99), axis=0)
    width, height, focal = ABOVE
    sides = (high - low)[:2] / (1, height / width)
    # what lies nearest, at the highest point, is to fit
    distance = max(MARGIN * focal * sides.max(), 1e-6) - low[2]
    place = middle + ((low + high)[:2] / 2) @ axes[:2] + distance * up
    viewmat = np.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = axes, -axes @ place
    K = [[focal * width, 0, width / 2], [0, focal * width, height / 2], [0, 0, 1]]
    pose, lens = (torch.tensor(x, dtype=torch.float32) for x in (viewmat, K))
    near = cameras[0].near
    return Camera("from above", None, width, height, pose, lens, width, height, near=near)
