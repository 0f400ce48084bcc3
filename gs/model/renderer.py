"""From the model and a camera to an image: one call of `kernels.rasterization`."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kernels import rasterization

from .gaussians import Gaussians

if TYPE_CHECKING:
    from ..data.camera import Camera

NEAR_PLANE = 0.2  # Inria's


class RenderOutput(NamedTuple):
    """A rendered view."""

    colors: Tensor
    """[H, W, D], not clamped above; D = 3, or as `render_mode` says."""
    alphas: Tensor
    """[H, W, 1]."""
    info: dict[str, Any]
    """As `kernels.rasterization` returns it, for C = 1 camera."""


def render(
    gaussians: Gaussians,
    camera: Camera,
    *,
    background: Tensor | None = None,  # [3]; None: black
    sh_degree: int | None = None,  # None: the model's active degree
    opacities: Tensor | None = None,  # [N] in 0..1; None: the model's
    camera_tensors: tuple[Tensor, Tensor] | None = None,  # [1, 4, 4], [1, 3, 3]
    **raster_kwargs: Any,
) -> RenderOutput:
    """Render one view, differentiable in the model's parameters.

    Args:
        gaussians: The model.
        camera: The view, at the resolution to render.
        background: Colour behind the Gaussians, on the model's device. [3]
        sh_degree: Highest SH degree to use.
        opacities: In place of the model's. A factor on opacity is not the same as `masks`, a
            factor on alpha after the 1/255 test: here a faint Gaussian also reaches fewer pixels,
            and the clamp at 0.99 comes after the factor. [N]
        camera_tensors: viewmats and Ks on the device, in place of the camera's own.
        **raster_kwargs: Further keywords of `kernels.rasterization`: masks, render_mode, ...
    """
    viewmats, Ks = camera_tensors or _camera_tensors(camera, gaussians.device)
    params = gaussians.params
    # activations and the two parts of the SH coefficients are fused into the kernels
    raw = opacities is None
    keywords: dict[str, Any] = {
        "near_plane": NEAR_PLANE,
        "sh_degree": gaussians.active_sh_degree if sh_degree is None else sh_degree,
        "backgrounds": None if background is None else background[None],
        "colors_rest": params["shN"],
        "raw": raw,
    } | raster_kwargs
    colors, alphas, info = rasterization(
        params["means"], params["quats"], params["scales"] if raw else gaussians.get_scales(),
        params["opacities"] if opacities is None else opacities, params["sh0"], viewmats, Ks,
        camera.width, camera.height, **keywords,
    )  # fmt: skip
    return RenderOutput(colors.squeeze(0), alphas.squeeze(0), info)


@lru_cache(maxsize=8192)
def _camera_tensors(camera: Camera, device: torch.device) -> tuple[Tensor, Tensor]:
    """viewmat [1,4,4] and K [1,3,3] on the device, copied once per camera and not per step."""
    return camera.viewmat[None].to(device), camera.K[None].to(device)
