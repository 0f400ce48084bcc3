r"""What a photograph does to the colours of a scene, in plain PyTorch, differentiable.

affine   A row of 12 numbers per image, E [3, 4] as 3DGS's exposure code has it (row vectors):

    out_c = sum_j rgb_j E[j, c] + E[c, 3]

ppisp    The first three stages of PPISP (https://github.com/nv-tlabs/ppisp): a row of 9 numbers per
image, exposure e and eight of colour z, and 15 per lens, (o_x, o_y, a_1, a_2, a_3) by channel:

    x_c = rgb_c 2^e
    y_c = x_c clip(1 + a_1 q + a_2 q^2 + a_3 q^3, 0, 1)     q = |uv - o|^2
    uv  = (pixel centre - (W, H) / 2) / max(W, H)
    h   = M (R, G, I)   I = R + G + B of y     s = I / (h_3 + 1e-5)
    out = (h_1 s, h_2 s, h_3 s - h_1 s - h_2 s)

M moves four chromaticities (r, g), of blue (0, 0), red (1, 0), green (0, 1) and neutral (1/3, 1/3),
by offsets S z, two numbers and a symmetric matrix for each. With d(p, q, r) twice the area of a
triangle, and b, r, g, n the moved points as (x, y, 1), its columns are

    (w_r / w_b) r - b    (w_g / w_b) g - b    b
    w_b = d(n, r, g)     w_r = d(b, n, g)     w_g = d(b, r, n)

which is Cramer's rule for the homography, scaled to M_33 = 1.

The regularisers hold what rendering and light can trade: the mean of all images' rows, and for
lenses that they are alike in all channels, centred and darker outside. The row of the image itself
is pulled towards no change, by a slope that is a small part of the loss's where light did change:
so what is left of an image, and of other causes, is not taken for light.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

AFFINE, PPISP = 12, 9  # numbers per image
LENS_NUMBERS = 15
NEUTRAL = 1.0 / 3.0
EPS = 1e-5
# (a, b, d) of the symmetric matrices of blue, red, green and neutral
SPREADS = (
    (0.0480542, -0.0043631, 0.0481283),
    (0.0580570, -0.0179872, 0.0431061),
    (0.0433336, -0.0180537, 0.0580500),
    (0.0128369, -0.0034654, 0.0128158),
)
# Regularisers: weight and bend of mean exposures (all of an affine row), of the image's own, and of
# mean offsets; weights of lens centres, of brightening, and of differences between channels.
MEAN, MEAN_BEND = 1.0, 0.1
PULL, PULL_BEND = 0.05, 0.01
COLOR = 0.05  # an offset of a chromaticity per number of colour, about: the unit of their pull
OFFSET, OFFSET_BEND = 1.0, 0.005
CENTRE, BRIGHTER, CHANNELS = 0.02, 0.01, 0.1


def neutral_rows(n: int, kind: Literal["affine", "ppisp"]) -> Tensor:  # [n, 12] or [n, 9]
    """Rows of images that change nothing."""
    rows = torch.zeros(n, AFFINE if kind == "affine" else PPISP)
    if kind == "affine":
        rows.view(n, 3, 4)[:, range(3), range(3)] = 1.0
    return rows


def corrected(
    colors: Tensor,  # [H, W, 3]
    rows: Tensor,  # [I, 12] or [I, 9]
    index: Tensor,  # [1]
    lenses: Tensor | None,  # [L, 15]
    lens_of: Tensor | None,  # [I]
    regularised: bool,
) -> Tensor:  # [H, W, 3]
    """As kernels.corrected."""
    if regularised:
        rows, *others = _Regularised.apply(index, rows, *(() if lenses is None else (lenses,)))
        lenses = others[0] if others else None
    row = rows[index.long()[0]]
    if rows.shape[1] == AFFINE:
        matrix = row.view(3, 4)
        return colors @ matrix[:, :3] + matrix[:, 3]
    assert lenses is not None and lens_of is not None
    colors = vignetted(colors * torch.exp2(row[0]), lenses[lens_of[index.long()[0]].long()])
    return recolored(colors, homography(row[1:]))


def vignetted(colors: Tensor, lens: Tensor) -> Tensor:  # [H, W, 3], [15] -> [H, W, 3]
    """Colours as a lens lets them through."""
    H, W, _ = colors.shape
    numbers = lens.view(3, 5)
    v, u = torch.meshgrid(
        *(torch.arange(n, dtype=colors.dtype, device=colors.device) + 0.5 - n / 2 for n in (H, W)),
        indexing="ij",
    )
    uv = torch.stack([u, v], -1)[..., None, :] / max(W, H)
    q = (uv - numbers[:, :2]).square().sum(-1)
    a1, a2, a3 = numbers[:, 2:].unbind(-1)
    return colors * (1.0 + q * (a1 + q * (a2 + q * a3))).clamp(0.0, 1.0)


def homography(z: Tensor) -> Tensor:  # [8] -> [3, 3]
    """M of the module's docstring."""
    moved = _offsets(z).view(4, 2) + z.new_tensor(
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [NEUTRAL, NEUTRAL]]
    )
    b, r, g, n = torch.cat([moved, torch.ones_like(moved[:, :1])], 1).unbind()
    w_b, w_r, w_g = (_area(*points) for points in ((n, r, g), (b, n, g), (b, r, n)))
    return torch.stack([w_r / w_b * r - b, w_g / w_b * g - b, b], 1)


def recolored(colors: Tensor, matrix: Tensor) -> Tensor:  # [..., 3], [3, 3] -> [..., 3]
    """Colours whose chromaticities M has moved, of the same intensity."""
    red, green, blue = colors.unbind(-1)
    intensity = red + green + blue
    h = torch.stack([red, green, intensity], -1) @ matrix.T
    h = h * (intensity / (h[..., 2] + EPS))[..., None]
    return torch.stack([h[..., 0], h[..., 1], h[..., 2] - h[..., 0] - h[..., 1]], -1)


def regulariser(index: Tensor, rows: Tensor, lenses: Tensor | None) -> Tensor:  # []
    """What keeps light from trading places with the scene, at a step of one image."""
    mean, row = rows.mean(0), rows[index.long()[0]]
    if lenses is None:
        still = neutral_rows(1, "affine")[0].to(rows)
        pull = PULL * smooth_l1_loss(row, still, beta=PULL_BEND, reduction="sum")
        return pull + MEAN * smooth_l1_loss(mean, still, beta=MEAN_BEND)
    zero = torch.zeros_like(mean)
    numbers = lenses.view(-1, 3, 5)
    return (
        PULL * smooth_l1_loss(_in_units(row), zero, beta=PULL_BEND, reduction="sum")
        + MEAN * smooth_l1_loss(mean[0], zero[0], beta=MEAN_BEND)
        + OFFSET * smooth_l1_loss(_offsets(mean[1:]), zero[1:], beta=OFFSET_BEND)
        + CENTRE * numbers[..., :2].square().sum(-1).mean()
        + BRIGHTER * numbers[..., 2:].relu().mean()
        + CHANNELS * numbers.var(1, correction=0).mean()
    )


def _offsets(z: Tensor) -> Tensor:  # [8] -> [8]
    matrices = z.new_tensor([[[a, b], [b, d]] for a, b, d in SPREADS])
    return (matrices @ z.view(4, 2, 1)).flatten()


def _in_units(row: Tensor) -> Tensor:  # [9] -> [9]
    """Exposure, and about the offsets of colours."""
    return torch.cat([row[:1], COLOR * row[1:]])


def _area(p: Tensor, q: Tensor, r: Tensor) -> Tensor:  # three of [3] -> []
    """Twice the area of a triangle, with its sign."""
    return (q[0] - p[0]) * (r[1] - p[1]) - (r[0] - p[0]) * (q[1] - p[1])


class _Regularised(torch.autograd.Function):
    """Rows and lenses as they are, whose gradients are also those of the regulariser."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(index, *tables)
        return tuple(x.view_as(x) for x in tables)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        index, *tables = ctx.saved_tensors
        leaves = [x.detach().requires_grad_() for x in tables]
        with torch.enable_grad():
            value = regulariser(index, leaves[0], leaves[1] if len(leaves) > 1 else None)
            own = torch.autograd.grad(value, leaves)
        return None, *(v + w for v, w in zip(gradients, own, strict=True))
