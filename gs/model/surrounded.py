"""A model's Gaussians rendered among frozen ones: keywords of a rendering as both parts have them.

Masks are drawn for the frozen by the same seed, by their own ids, where they are for the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kernels import RasterInputs, RenderSettings, rasterization_among

from .splats import Frozen, Splats
from .view import View

_INPUTS = {"masks", "mask_logits", "mask_ids"}
_SETTINGS = {"render_mode", "contributions", "deterministic", "masks_by_camera"}
_KNOWN = {*_INPUTS, *_SETTINGS, "mask_seed", "capacity", "precision"}
_GIVEN = {
    "near_plane",
    "sh_degree",
    "backgrounds",
    "colors_rest",
    "raw",
    "rasterize_mode",
    "lenses",
}


def rasterize_among(
    own: Splats, frozen: Frozen, view: View, keywords: Mapping[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """As `kernels.rasterization` of `own`, but that `frozen` are in the image.

    Args:
        own: Whom the results are about.
        frozen: The others.
        view: The cameras.
        keywords: Of the rendering, for `own`.

    Raises:
        ValueError: a keyword is not supported here.
    """
    unknown = sorted(keywords.keys() - _KNOWN - _GIVEN)
    if unknown:
        raise ValueError(f"a rendering among frozen Gaussians has no {', '.join(unknown)}")
    seed = keywords.get("mask_seed", 0)
    seeds: dict[str, Any] = {"mask_seed": seed}
    if isinstance(seed, Tensor):
        seeds = {"mask_words": seed}
    cameras = {"viewmats": view.viewmats, "Ks": view.Ks, "backgrounds": keywords["backgrounds"]}
    cameras["lenses"] = view.lens_words
    mine = RasterInputs(
        own.means,
        own.quats,
        own.scales,
        own.opacities,
        own.colors,
        colors_rest=own.colors_rest,
        **cameras,
        **seeds,
        **{name: keywords[name] for name in _INPUTS & keywords.keys()},
    )
    s = frozen.splats
    is_masked = "mask_logits" in keywords and frozen.mask_logits is not None
    theirs = RasterInputs(
        s.means,
        s.quats,
        s.scales,
        s.opacities,
        s.colors,
        colors_rest=s.colors_rest,
        **cameras,
        **(seeds if is_masked else {}),
        mask_logits=frozen.mask_logits if is_masked else None,
        mask_ids=frozen.ids if is_masked else None,
    )
    settings = RenderSettings(
        view.width,
        view.height,
        keywords["near_plane"],
        sh_degree=keywords["sh_degree"],
        raw=keywords["raw"],
        antialiased=keywords["rasterize_mode"] == "antialiased",
        lens=view.lens,
        exact=keywords.get("precision") == "exact",
        **{name: keywords[name] for name in _SETTINGS & keywords.keys()},
    )
    return rasterization_among(
        mine,
        theirs,
        settings,
        settings._replace(sh_degree=s.sh_degree, raw=s.raw, contributions=False),
        boxes=_boxes_of(frozen, view),
        capacity=keywords.get("capacity"),
    )


def _boxes_of(frozen: Frozen, view: View) -> Tensor | None:  # [C, 4] int32
    """Those of the view's cameras, found on the device; all of an image that is none of them."""
    if frozen.boxes is None:
        return None
    places = view.exposure.long()
    whole = torch.zeros(len(places), 4, dtype=torch.int32, device=places.device)
    whole[:, 2], whole[:, 3] = view.width, view.height
    return torch.where(places[:, None] < 0, whole, frozen.boxes[places.clamp_min(0)])
