r"""From camera space to pixels and back, in plain PyTorch: kinds.py has the equations.

A lens is continued beyond r0 (packing.py), linearly, so that every direction has a pixel:

    |m| = r > r0:     D(m r0 / r) + e s0 (r - r0),   s0 = d(r g)/dr at r0
    tan family, theta > theta0 = atan r0:   h = r0 + (1 + r0^2)(theta - theta0)

which is finite behind the camera too. It is once differentiable where D is radial.
"""

import torch
from torch import Tensor

from .kinds import EDGE, R0, RADIAL, RATIONAL, SLOPE0, TANGENTIAL, THETA0, THIN_PRISM

AXIS = 1e-6  # share of the distance to the camera; nearer to the axis the azimuth does not count
STEPS = 60  # of bisection, and at most of Newton's method
FARTHEST = 1e4  # radius, in focal lengths, up to which a lens is inverted


def radial_factor(words: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """g(q) and its derivative."""
    ones = torch.ones_like(q)
    N, dN = ones, torch.zeros_like(q)
    B, dB = ones, torch.zeros_like(q)
    power = ones
    for k in range(4):
        N, dN = N + words[RADIAL + k] * power * q, dN + (k + 1) * words[RADIAL + k] * power
        if k < 3:
            B, dB = B + words[RATIONAL + k] * power * q, dB + (k + 1) * words[RATIONAL + k] * power
        power = power * q
    return N / B, (dN * B - N * dB) / (B * B)


def distort(words: Tensor, m: Tensor) -> Tensor:  # [LENS_WORDS], [..., 2] -> [..., 2]
    """D(m) as it is, without continuation."""
    u, v = m.unbind(-1)
    q = u * u + v * v
    g, _ = radial_factor(words, q)
    p1, p2 = words[TANGENTIAL], words[TANGENTIAL + 1]
    s1, s2, s3, s4 = words[THIN_PRISM : THIN_PRISM + 4]
    x = u * g + 2 * p1 * u * v + p2 * (q + 2 * u * u) + s1 * q + s2 * q * q
    y = v * g + 2 * p2 * u * v + p1 * (q + 2 * v * v) + s3 * q + s4 * q * q
    return torch.stack([x, y], -1)


def distort_jacobian(words: Tensor, m: Tensor) -> Tensor:  # [..., 2] -> [..., 2, 2]
    """D'(m)."""
    u, v = m.unbind(-1)
    q = u * u + v * v
    g, dg = radial_factor(words, q)
    p1, p2 = words[TANGENTIAL], words[TANGENTIAL + 1]
    s1, s2, s3, s4 = words[THIN_PRISM : THIN_PRISM + 4]
    sx, sy = 2 * (s1 + 2 * s2 * q), 2 * (s3 + 2 * s4 * q)
    across = 2 * dg * u * v
    xx = g + 2 * dg * u * u + 2 * p1 * v + (6 * p2 + sx) * u
    xy = across + 2 * p1 * u + (2 * p2 + sx) * v
    yx = across + 2 * p2 * v + (2 * p1 + sy) * u
    yy = g + 2 * dg * v * v + 2 * p2 * u + (6 * p1 + sy) * v
    return torch.stack([xx, xy, yx, yy], -1).unflatten(-1, (2, 2))


def project_points(
    family: str,
    K: Tensor,  # [3, 3]
    words: Tensor,  # [LENS_WORDS]
    t: Tensor,  # [..., 3] camera space
) -> Tensor:  # [..., 2] pixels
    """Where points appear, for every direction; differentiable in `t`."""
    focal = torch.stack([K[0, 0], K[1, 1]])
    centre = torch.stack([K[0, 2], K[1, 2]])
    if family == "equirectangular":
        x, y, z = t.unbind(-1)
        flat = torch.stack([torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))], -1)
        return focal * flat + centre
    r0, theta0 = words[R0], words[THETA0]
    xy, z = t[..., :2], t[..., 2]
    rho2 = xy.square().sum(-1)
    floor = (AXIS**2 * t.detach().square().sum(-1)).clamp_min(1e-60)
    rho = torch.where(rho2 > floor, rho2, floor).sqrt()
    theta = torch.atan2(rho, z)
    e = xy / rho[..., None]
    if family == "fisheye":
        m = e * theta[..., None]
    else:
        inside = (z > 0) & (rho <= r0 * z)
        h = r0 + (1 + r0 * r0) * (theta - theta0)
        straight = xy / torch.where(inside, z, 1.0)[..., None]
        m = torch.where(inside[..., None], straight, e * h[..., None])
    return focal * _continued(words, m) + centre


def _continued(words: Tensor, m: Tensor) -> Tensor:
    """D(m), linear beyond r0."""
    r0 = words[R0]
    q = m.square().sum(-1)
    beyond = q > r0 * r0
    r = torch.where(beyond, q, 1.0).sqrt()
    near = torch.where(beyond[..., None], m * (r0 / r)[..., None], m)
    along = torch.where(beyond, words[SLOPE0] * (r - r0) / r, 0.0)
    return distort(words, near) + along[..., None] * m


def depths_of(family: str, t: Tensor) -> Tensor:  # [..., 3] -> [...]
    """Depth: z, or the distance where a lens may see more than half of all directions."""
    return t.norm(dim=-1) if family in ("fisheye", "equirectangular") else t[..., 2]


def angles_beyond(words: Tensor, t: Tensor) -> Tensor:  # [..., 3] -> [...]
    """How far a direction lies beyond the image's farthest, in radians."""
    return torch.atan2(t[..., :2].norm(dim=-1), t[..., 2]) - words[EDGE]


def invert(
    words: Tensor,  # [LENS_WORDS] float64
    x: Tensor,  # [..., 2] float64
    largest: float,
) -> tuple[Tensor, Tensor]:  # [..., 2] float64, [...] bool
    """m with D(m) = x and |m| <= largest, and where there is one.

    Bisection along the radius, then Newton's method for what is not radial.
    """
    length = x.norm(dim=-1)
    low = torch.zeros_like(length)
    high = torch.full_like(length, min(largest, FARTHEST))
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        short = middle * radial_factor(words, middle * middle)[0] < length
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    m = x * (low / length.clamp_min(1e-300))[..., None]
    for _ in range(STEPS):
        residual = distort(words, m) - x
        step = torch.linalg.solve_ex(distort_jacobian(words, m), residual[..., None])[0][..., 0]
        limit = (0.1 * m.norm(dim=-1, keepdim=True)).clamp_min(0.1)
        step = step * (limit / step.norm(dim=-1, keepdim=True).clamp_min(1e-300)).clamp_max(1.0)
        m = m - step.nan_to_num(0.0)
        if step.abs().max() < 1e-14:
            break
    error = (distort(words, m) - x).norm(dim=-1)
    return m, (error < 1e-9 * (1 + length)) & (m.norm(dim=-1) <= largest * (1 + 1e-9))


def unproject(
    family: str,
    K: Tensor,  # [3, 3]
    words: Tensor,  # [LENS_WORDS]
    pixels: Tensor,  # [..., 2]
    largest: float,
) -> tuple[Tensor, Tensor]:  # [..., 3] float64, [...] bool
    """Unit directions that pixels show, and which pixels show one.

    Args:
        family: Of the lens.
        K: Intrinsics.
        words: The lens.
        pixels: Places in the image.
        largest: Radius up to which the lens is valid (`monotone_radius`).
    """
    K, words, pixels = K.double().cpu(), words.double().cpu(), pixels.double().cpu()
    flat = (pixels - K[:2, 2]) / torch.stack([K[0, 0], K[1, 1]])
    if family == "equirectangular":
        longitude, latitude = flat.unbind(-1)
        across = torch.cos(latitude)
        x, z = across * torch.sin(longitude), across * torch.cos(longitude)
        return torch.stack([x, torch.sin(latitude), z], -1), latitude.abs() <= torch.pi / 2
    m, found = invert(words, flat, largest)
    r = m.norm(dim=-1, keepdim=True)
    if family == "fisheye":
        rays = torch.cat([m * torch.sinc(r / torch.pi), torch.cos(r)], -1)
        return rays, found & (r[..., 0] <= torch.pi)
    rays = torch.cat([m, torch.ones_like(r)], -1)
    return rays / rays.norm(dim=-1, keepdim=True), found
