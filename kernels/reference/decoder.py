r"""Anchors decoded into Gaussians by a shared network, in plain PyTorch.

Anchor x with feature f, log-scales s and offsets O_0 .. O_(k-1), seen from c, with
d = (x - c) / |x - c|, makes k Gaussians (Lu et al., "Scaffold-GS", CVPR 2024, section 3.2):

    mean_j      x + O_j exp(s_0..2)
    opacity_j   tanh(a_j)                          a = net_opacity(f, d)    [k]
    scale_j     exp(s_3..5) sigmoid(g_j,0..2)      g = net_cov(f, d)        [k, 7]
    quat_j      g_j,3..6 / |g_j,3..6|
    color_j     sigmoid(b_j)                       b = net_color(f, d)      [k, 3]

Each net is W2 relu(W1 (f, d) + b1) + b2. All of them lie in one vector, one after the other, each
as W1 [H, F + 3], b1 [H], W2 [out, H], b2 [out] with H = F; `n_weights` says how long it is. An
opacity that is not positive draws nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..constants import EPS2D, FOV_MARGIN

VIEW = 3  # numbers of a direction
HEADS = (1, 7, 3)  # numbers per offset: opacity; scale and rotation; colour
SIGMAS = 3.0  # standard deviations within which an anchor's own Gaussian counts as seen
MIN_LENGTH = 1e-12


class Decoded(NamedTuple):
    """V k Gaussians, those of one place after the other."""

    means: Tensor
    """[V k, 3]"""
    quats: Tensor
    """(w, x, y, z), of length 1. [V k, 4]"""
    scales: Tensor
    """[V k, 3]"""
    opacities: Tensor
    """In -1..1; 0 in an empty place. [V k]"""
    colors: Tensor
    """RGB in 0..1. [V k, 3]"""


def n_weights(n_features: int, n_offsets: int) -> tuple[int, int, int]:
    """Numbers of the three nets: 1482, 3462 and 2142 for 32 features and 10 offsets."""
    hidden = (n_features + VIEW) * n_features + n_features
    opacity, cov, color = (hidden + (n_features + 1) * n * n_offsets for n in HEADS)
    return opacity, cov, color


def decode(
    anchors: Tensor,  # [N, 3]
    features: Tensor,  # [N, F]
    offsets: Tensor,  # [N, k, 3]
    scales: Tensor,  # [N, 6]
    weights: Tensor,  # [P]
    rows: Tensor,  # [V] int32
    center: Tensor,  # [3]
    off: Tensor | None,  # [N, k] bool
    view_input: str,
) -> Decoded:
    """As kernels.decode."""
    k, n_features = offsets.shape[1], features.shape[1]
    empty = rows < 0
    index = rows.long().clamp_min(0)
    if not len(anchors):  # every place is empty
        anchors, features, offsets, scales = (
            torch.cat([x, x.new_zeros(1, *x.shape[1:])])
            for x in (anchors, features, offsets, scales)
        )
        off = None
    anchor, feature = anchors.detach()[index], features[index]
    offset, scale = offsets[index], scales[index]
    direction = F.normalize(anchor - center, dim=-1, eps=MIN_LENGTH)
    blind = torch.zeros_like(direction)
    outputs: list[Tensor] = []
    parts = weights.split(n_weights(n_features, k))
    for part, n, sees in zip(parts, HEADS, (False, False, True), strict=True):
        seen = direction if sees or view_input == "all" else blind
        outputs.append(_net(part, torch.cat([feature, seen], -1), n * k).view(-1, k, n))
    opacity, cov, color = outputs
    gone = empty[:, None].expand(-1, k)
    hidden = gone if off is None else gone | off[index]
    means = anchor[:, None] + offset * scale[:, None, :3].exp()
    sizes = scale[:, None, 3:].exp() * cov[..., :3].sigmoid()
    quats = F.normalize(cov[..., 3:], dim=-1, eps=MIN_LENGTH)
    upright = F.pad(torch.ones_like(quats[..., :1]), (0, 3))  # made on the device
    return Decoded(
        means.masked_fill(gone[..., None], 0.0).reshape(-1, 3),
        torch.where(gone[..., None], upright, quats).reshape(-1, 4),
        sizes.masked_fill(gone[..., None], 1.0).reshape(-1, 3),
        opacity[..., 0].tanh().masked_fill(hidden, 0.0).reshape(-1),
        color.sigmoid().masked_fill(gone[..., None], 0.0).reshape(-1, 3),
    )


def _net(weights: Tensor, x: Tensor, n_out: int) -> Tensor:  # [p], [V, I] -> [V, n_out]
    n_in, n_hidden = x.shape[1], x.shape[1] - VIEW
    sizes = (n_hidden * n_in, n_hidden, n_out * n_hidden, n_out)
    w1, b1, w2, b2 = weights.split(sizes)
    hidden = torch.relu(x @ w1.view(n_hidden, n_in).T + b1)
    return hidden @ w2.view(n_out, n_hidden).T + b2


def seen_anchors(
    anchors: Tensor,  # [N, 3]
    scales: Tensor,  # [N, 6]
    viewmat: Tensor,  # [4, 4]
    K: Tensor,  # [3, 3]
    width: int,
    height: int,
    near: float,
) -> Tensor:  # [N] bool
    """Whether an anchor's own Gaussian, of scales exp(s_0..2) and without rotation, is in view.

    It is where its centre is beyond `near` and the square of three standard deviations around its
    projection, blurred by 0.3 square pixels, meets the image.
    """
    rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
    x, y, z = (anchors @ rotation.T + translation).unbind(-1)
    depth = z.clamp_min(near)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    # linearised as the rasterizer does, where it is far outside at the image's margin
    mx, my = FOV_MARGIN * 0.5 * width / fx, FOV_MARGIN * 0.5 * height / fy
    tx = (x / depth).clamp(-cx / fx - mx, (width - cx) / fx + mx)
    ty = (y / depth).clamp(-cy / fy - my, (height - cy) / fy + my)
    jx = (rotation[0] - tx[:, None] * rotation[2]) * (fx / depth)[:, None]
    jy = (rotation[1] - ty[:, None] * rotation[2]) * (fy / depth)[:, None]
    variances = (2.0 * scales[:, :3]).exp()
    xx = (jx * jx * variances).sum(-1) + EPS2D
    yy = (jy * jy * variances).sum(-1) + EPS2D
    xy = (jx * jy * variances).sum(-1)
    middle, half = 0.5 * (xx + yy), 0.5 * (xx - yy)
    radius = torch.ceil(SIGMAS * (middle + (half * half + xy * xy).sqrt()).sqrt())
    u, v = fx * x / depth + cx, fy * y / depth + cy
    inside = (u + radius >= 1.0) & (u - radius < width)
    inside &= (v + radius >= 1.0) & (v - radius < height)
    return (z > near) & inside
