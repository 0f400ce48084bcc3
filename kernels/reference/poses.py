"""Refinement of camera poses: the gradient of a rigid motion, its exponential, a step of Adam."""

import torch
from torch import Tensor


def rigid_exponential(xi: Tensor) -> Tensor:  # [..., 6] -> [..., 3, 4]
    """Exp(xi) of SE(3), xi = (tau, w): rotation by w, translation V(w) tau, in Taylor series.

    Exact to 3e-9 for |w| <= 1/2, and to float32 rounding for the small steps that it is for.
    """
    tau, w = xi[..., :3], xi[..., 3:]
    s = (w * w).sum(-1)[..., None, None]
    a = 1.0 - s / 6.0 * (1.0 - s / 20.0 * (1.0 - s / 42.0))
    b = 0.5 - s / 24.0 * (1.0 - s / 30.0 * (1.0 - s / 56.0))
    c = (1.0 - s / 20.0 * (1.0 - s / 42.0 * (1.0 - s / 72.0))) / 6.0
    zero = torch.zeros_like(w[..., 0])
    x, y, z = w.unbind(-1)
    rows = [(zero, -z, y), (z, zero, -x), (-y, x, zero)]
    W = torch.stack([torch.stack(row, -1) for row in rows], -2)
    eye = torch.eye(3, dtype=xi.dtype, device=xi.device)
    rotation, left = eye + a * W + b * (W @ W), eye + b * W + c * (W @ W)
    return torch.cat([rotation, left @ tau[..., None]], -1)


def motion_gradient(viewmats: Tensor, v_viewmats: Tensor) -> Tensor:  # [C, 4, 4] twice -> [C, 6]
    """v_tau = v_t and v_w = sum_k R_k x v_R,k + t x v_t, of V' = Exp(xi) V at xi = 0."""
    columns, v_columns = viewmats[:, :3].mT, v_viewmats[:, :3].mT  # [C, 4, 3]
    turning = torch.linalg.cross(columns, v_columns, dim=-1).sum(1)
    return torch.cat([v_viewmats[:, :3, 3], turning], -1)


def small_motions(deltas: Tensor) -> Tensor:  # [n, 3, 4] -> [n, 6]
    """Translations, and rotations by their antisymmetric parts."""
    turned = 0.5 * (deltas[:, :, :3] - deltas[:, :, :3].mT)
    w = torch.stack([turned[:, 2, 1], turned[:, 0, 2], turned[:, 1, 0]], -1)
    return torch.cat([deltas[:, :, 3], w], -1)


def step_poses(
    deltas: Tensor,  # [n + 1, 3, 4], in and out
    exp_avg: Tensor,  # [n, 6], in and out
    exp_avg_sq: Tensor,  # [n, 6], in and out
    steps: Tensor,  # [n], in and out
    rows: Tensor,  # [C] int32
    viewmats: Tensor,  # [C, 4, 4]
    v_viewmats: Tensor,  # [C, 4, 4]
    rate: Tensor,  # [1]
    unit: float,
    centred: bool,
    betas: tuple[float, float],
    eps: float,
    skip: Tensor | None,  # one int32
) -> None:
    if skip is not None and int(skip) != 0:
        return
    mean = small_motions(deltas[:-1]).mean(0) if centred else 0.0
    gradients, places = motion_gradient(viewmats, v_viewmats), rows.tolist()
    for row in dict.fromkeys(places):
        if not 0 <= row < len(steps):
            continue
        g = sum(gradients[c] for c, place in enumerate(places) if place == row)
        steps[row] += 1.0
        t = float(steps[row])
        exp_avg[row] += (1.0 - betas[0]) * (g - exp_avg[row])
        exp_avg_sq[row] = betas[1] * exp_avg_sq[row] + (1.0 - betas[1]) * g * g
        root = (exp_avg_sq[row] / (1.0 - betas[1] ** t)).sqrt()
        xi = -rate * exp_avg[row] / (1.0 - betas[0] ** t) / (root + eps)
        units = xi.new_tensor([unit] * 3 + [1.0] * 3)
        E, D = rigid_exponential(xi * units - mean), deltas[row]
        turned = E[:, :3] @ D[:, :3]
        x = torch.nn.functional.normalize(turned[0], dim=0)
        y = torch.nn.functional.normalize(turned[1] - (turned[1] @ x) * x, dim=0)
        rotation = torch.stack([x, y, torch.linalg.cross(x, y)])
        deltas[row] = torch.cat([rotation, E[:, :3] @ D[:, 3:] + E[:, 3:]], -1)
