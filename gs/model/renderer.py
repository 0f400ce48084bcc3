"""From a model and a camera to an image: one call of `kernels.rasterization`."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from kernels import rasterization

from ..data.camera import Camera
from .model import Model
from .splats import Splats
from .view import NO_EXPOSURE, View, view_of

PER_PART = {"masks", "mask_logits", "mask_ids"}  # keywords with an entry per Gaussian of the model


class RenderOutput(NamedTuple):
    """A rendered view."""

    colors: Tensor
    """[H, W, D], not clamped above; D = 3, or as `render_mode` says. [C, H, W, D] of a view of
    more than one camera."""
    alphas: Tensor
    """[H, W, 1], or [C, H, W, 1]."""
    info: dict[str, Any]
    """As `kernels.rasterization` returns it, for C cameras."""
    splats: Splats | None = None
    """What was drawn; `info` has an entry for each of them."""


def render(
    model: Model | Splats,
    camera: Camera | View,
    *,
    background: Tensor | None = None,  # [3]; None: black
    sh_degree: int | None = None,  # None: the model's active degree
    opacities: Tensor | None = None,  # [N] in 0..1; None: the model's
    opacity_factors: Tensor | None = None,  # [N * parts]
    **raster_kwargs: Any,
) -> RenderOutput:
    """Render one view, differentiable in the model's parameters.

    Args:
        model: What to draw; in a view of several cameras one that is `same_in_all_views`.
        camera: The view, at the resolution to render.
        background: Colour behind the Gaussians, on the model's device. [3]
        sh_degree: Highest SH degree to use.
        opacities: In place of the model's. A factor on opacity is not the same as `masks`, a
            factor on alpha after the 1/255 test: here a faint Gaussian also reaches fewer pixels,
            and the clamp at 0.99 comes after the factor. [N]
        opacity_factors: What to multiply the model's opacities by. [N * parts]
        **raster_kwargs: Further keywords of `kernels.rasterization`: masks, render_mode, ... Masks
            have an entry for each Gaussian of the model, drawn or not.
    """
    if isinstance(camera, View):
        view = camera
    else:
        device = model.means.device if isinstance(model, Splats) else model.device
        place = NO_EXPOSURE if isinstance(model, Splats) else model.exposure(camera.image_name)
        view = view_of(camera, device, place)
    s = model if isinstance(model, Splats) else model.splats(view)
    if opacities is not None:
        scales = s.scales.exp() if s.raw else s.scales
        s = s._replace(scales=scales, opacities=opacities, raw=False)
    if opacity_factors is not None:
        scales, plain = (
            (s.scales.exp(), s.opacities.sigmoid()) if s.raw else (s.scales, s.opacities)
        )
        s = s._replace(scales=scales, opacities=plain * s.gather(opacity_factors), raw=False)
    if s.rows is not None:
        for name in PER_PART & raster_kwargs.keys():
            raster_kwargs[name] = s.gather(raster_kwargs[name])
    keywords: dict[str, Any] = {
        "near_plane": view.near,
        "sh_degree": s.sh_degree if sh_degree is None else sh_degree,
        "backgrounds": None if background is None else background.expand(view.n_cameras, -1),
        "colors_rest": s.colors_rest,
        "raw": s.raw,
        "lenses": view.lenses,
    } | raster_kwargs
    colors, alphas, info = rasterization(
        s.means,
        s.quats,
        s.scales,
        s.opacities,
        s.colors,
        view.viewmats,
        view.Ks,
        view.width,
        view.height,
        **keywords,
    )
    return RenderOutput(colors.squeeze(0), alphas.squeeze(0), info, s)
