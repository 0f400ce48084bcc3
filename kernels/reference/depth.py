"""The loss of rendered depths at pixels where depths are known."""

from torch import Tensor


def depth_loss(
    depths: Tensor,  # [C, H, W]
    alphas: Tensor,  # [C, H, W]
    rows: Tensor,  # [C] int32
    offsets: Tensor,  # [n + 1] int32
    pixels: Tensor,  # [S] int32
    disparities: Tensor,  # [S]
    most: int,
    weight: Tensor,  # [1]
) -> Tensor:  # []
    bounds, total = offsets.tolist(), (depths.sum() + alphas.sum()) * 0.0
    for c, row in enumerate(rows.tolist()):
        if not 0 <= row < len(bounds) - 1 or bounds[row] == bounds[row + 1]:
            continue
        own = slice(bounds[row], bounds[row + 1])
        where = pixels[own].long()
        depth, alpha = depths[c].flatten()[where], alphas[c].flatten()[where]
        seen = depth > 0.0
        disparity = (alpha / depth.where(seen, 1.0)).where(seen, 0.0)
        total = total + (disparity - disparities[own]).abs().mean()
    return weight[0] * total
