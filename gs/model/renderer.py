"""From a model and a camera to an image: one call of `kernels.rasterization`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import rasterization

from ..data.camera import Camera
from .model import Model
from .splats import Splats
from .surrounded import rasterize_among
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
    view: View | None = None
    """Where from."""
    depths: Tensor | None = None
    """Accumulated depth sum(w z), where `split_depth` has taken it from the colours. [H, W], or
    [C, H, W]."""


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
        view = view if isinstance(model, Splats) else model.posed(view)
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
        "rasterize_mode": "antialiased" if s.antialiased else "classic",
    } | raster_kwargs
    if s.frozen is not None:
        colors, alphas, info = rasterize_among(s, s.frozen, view, keywords)
        return RenderOutput(colors.squeeze(0), alphas.squeeze(0), info, s, view)
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
    return RenderOutput(colors.squeeze(0), alphas.squeeze(0), info, s, view)


def split_depth(out: RenderOutput) -> RenderOutput:
    """The rendering with its depth apart where it has one, of render_mode "RGB+D"."""
    if out.colors.shape[-1] == 3:
        return out
    colors, depths = _SplitDepth.apply(out.colors)
    return out._replace(colors=colors, depths=depths)


class _SplitDepth(torch.autograd.Function):
    """Colours and depth, each contiguous; the backward copies once and adds nothing."""

    @staticmethod
    def forward(ctx: Any, image: Tensor) -> tuple[Tensor, Tensor]:  # [..., 4] -> [..., 3], [...]
        return image[..., :3].contiguous(), image[..., 3].contiguous()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, v_colors: Tensor, v_depths: Tensor
    ) -> Tensor:
        return torch.cat([v_colors, v_depths[..., None]], -1)
