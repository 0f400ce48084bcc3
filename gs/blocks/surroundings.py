"""Surroundings of a block: frozen Gaussians of other blocks that its cameras see.

A block is trained among copies of its neighbours' Gaussians as they were when its wave began. The
image is that of the whole, so supervision is right up to the border and beyond, and the gradient of
its own rows is that of training in one piece; the copies get none and never change.

    seen = seen_rows(cameras, means, scales)      of other blocks, once per wave
    render(among(own.splats(view), frozen), view)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import lenses

from ..data.camera import Camera
from ..model.splats import Splats

REACH = 3.5  # standard deviations; beyond sqrt(2 ln 255) = 3.33 alpha is below 1/255
PADDING = 8.0  # pixels; the antialiasing blur reaches 3.33 sqrt(0.3) = 1.8


def seen_rows(
    cameras: Sequence[Camera],
    means: Tensor,  # [N, 3]
    scales: Tensor,  # [N, 3] log
) -> Tensor:  # [N] bool
    """Which Gaussians may reach a pixel of any camera: spheres that meet a view's frustum.

    Some are kept that reach none; none is left out that does.
    """
    radius = REACH * scales.amax(dim=1).exp()
    seen = torch.zeros(len(means), dtype=torch.bool, device=means.device)
    for camera in cameras:
        viewmat, K = camera.viewmat.to(means), camera.K.to(means)
        t = means @ viewmat[:3, :3].T + viewmat[:3, 3]
        if camera.distortion is not None:
            # asin(x) <= pi/2 x; angles of the image's corners are those of all of it
            reach = 0.5 * torch.pi * (radius / t.norm(dim=1)).clamp_max(1.0)
            seen |= lenses.angles_beyond(camera.lens_words.to(means), t) <= reach
            continue
        x, y, z = t.unbind(1)
        inside = z > camera.near
        for across, focal, centre, size in (
            (x, K[0, 0], K[0, 2], camera.width),
            (y, K[1, 1], K[1, 2], camera.height),
        ):
            low, high = (-PADDING - centre) / focal, (size + PADDING - centre) / focal
            inside = inside & (across - low * z > -radius * (1 + low * low).sqrt())
            inside = inside & (high * z - across > -radius * (1 + high * high).sqrt())
        seen |= inside
    return seen


def among(own: Splats, frozen: Splats) -> Splats:
    """A block's splats, and after them those of its surroundings, which get no gradient.

    Raises:
        ValueError: one has raw parameters and the other has not, or their SH degrees differ.
    """
    if len(frozen.means) == 0:
        return own
    if (own.raw, own.sh_degree) != (frozen.raw, frozen.sh_degree):
        raise ValueError(
            f"surroundings: expected raw={own.raw} and SH degree {own.sh_degree}, "
            f"got raw={frozen.raw} and {frozen.sh_degree}"
        )
    if own.rows is not None or frozen.rows is not None:
        raise ValueError("surroundings: expected splats that are the model's rows as they are")
    joined = {
        name: torch.cat([value, getattr(frozen, name).detach()])
        for name, value in own._asdict().items()
        if isinstance(value, Tensor)
    }
    return own._replace(**joined)
