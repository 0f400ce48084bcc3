r"""The vector of a lens that kernels read: its coefficients, and where it ends.

A radial lens is one to one up to r_mono, where d(r g(r^2))/dr first is 0. Its continuation
(mapping.py) begins at

    r0 = min(0.95 r_mono, 1.3 r_corner),  at most 3 where r is the angle

r_corner is the largest |m| that the image shows; `edge` is the angle of that direction, and of
PADDING pixels more, which the blur of a Gaussian may reach.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .kinds import (
    EDGE,
    LENS_WORDS,
    R0,
    RADIAL,
    RATIONAL,
    SLOPE0,
    TANGENTIAL,
    THETA0,
    THIN_PRISM,
    Distortion,
    LensKind,
    kind_of,
)
from .mapping import invert, radial_factor

SHARE_OF_MONOTONE, BEYOND_CORNER = 0.95, 1.3
WIDEST = 3.0  # radians
PADDING = 4.0  # pixels
BORDER = 64  # places along each side of an image at which its directions are found


class Lenses(NamedTuple):
    """The lenses of C cameras, as `rasterization` takes them."""

    kind: LensKind
    """What they have in common."""
    words: Tensor
    """A vector of LENS_WORDS floats each (`pack_lens`). [C, LENS_WORDS]"""


@lru_cache(maxsize=4096)
def monotone_radius(lens: Distortion) -> float:
    """The largest radius up to which a lens is one to one, tan theta or theta; may be infinite."""
    N, B = _polynomial(lens.radial), _polynomial(lens.rational)
    slope = [(1 + 2 * k) * a for k, a in enumerate(N)]
    bent = [2 * k * b for k, b in enumerate(B)]
    falling = [0.0] * (len(N) + len(B) - 1)
    for i in range(len(N)):
        for j in range(len(B)):
            falling[i + j] += slope[i] * B[j] - N[i] * bent[j]
    return min(_smallest_root(falling), _smallest_root(B)) ** 0.5


def _polynomial(coefficients: tuple[float, ...]) -> list[float]:
    return [1.0, *coefficients]


def _smallest_root(polynomial: list[float]) -> float:
    """Smallest positive real root of sum_k polynomial[k] q^k; infinite where there is none."""
    terms = list(polynomial)
    while len(terms) > 1 and terms[-1] == 0.0:
        terms.pop()
    if len(terms) == 1:
        return float("inf")
    companion = torch.zeros(len(terms) - 1, len(terms) - 1, dtype=torch.float64)
    companion[0] = -torch.tensor(terms[-2::-1], dtype=torch.float64) / terms[-1]
    companion[1:, :-1] = torch.eye(len(terms) - 2, dtype=torch.float64)
    roots = torch.linalg.eigvals(companion)
    real = roots.real[(roots.imag.abs() < 1e-9 * roots.abs()) & (roots.real > 0)]
    return float(real.min()) if len(real) else float("inf")


@lru_cache(maxsize=4096)
def pack_lens(
    lens: Distortion,
    intrinsics: tuple[float, float, float, float],
    width: float,
    height: float,
) -> Tensor:  # [LENS_WORDS] float64
    """The vector of a lens.

    Args:
        lens: Coefficients.
        intrinsics: fx, fy, cx, cy in pixels.
        width: Of the image, in pixels.
        height: Of the image, in pixels.
    """
    words = torch.zeros(LENS_WORDS, dtype=torch.float64)
    for place, values in (
        (RADIAL, lens.radial),
        (RATIONAL, lens.rational),
        (TANGENTIAL, lens.tangential),
        (THIN_PRISM, lens.thin_prism),
    ):
        words[place : place + len(values)] = torch.tensor(values, dtype=torch.float64)
    if lens.family == "equirectangular":
        words[EDGE] = torch.pi
        return words
    fx, fy, cx, cy = intrinsics
    along = torch.linspace(0, 1, BORDER + 1, dtype=torch.float64)
    low, high = torch.zeros_like(along), torch.ones_like(along)
    sides = [(along, low), (along, high), (low, along), (high, along)]
    border = torch.cat([torch.stack(side, -1) for side in sides])
    x = (border * torch.tensor([width, height]) - torch.tensor([cx, cy])).double()
    x = x / torch.tensor([fx, fy], dtype=torch.float64)
    monotone = monotone_radius(lens)
    m, found = invert(words, x, monotone)
    r = m.norm(dim=-1)
    corner = float(r.max()) if found.all() else monotone
    r0 = min(SHARE_OF_MONOTONE * monotone, BEYOND_CORNER * corner)
    if lens.family == "fisheye":
        r0 = min(r0, WIDEST)
    words[R0] = r0
    q = words[R0] ** 2
    g, dg = radial_factor(words, q)
    words[SLOPE0] = g + 2 * q * dg
    theta0 = words[R0] if lens.family == "fisheye" else torch.atan(words[R0])
    words[THETA0] = theta0
    farthest = torch.tensor(corner, dtype=torch.float64)
    angle = farthest if lens.family == "fisheye" else torch.atan(farthest)
    edge = angle if found.all() else theta0
    words[EDGE] = (edge + PADDING / min(fx, fy)).clamp_max(torch.pi)
    return words


def lenses_of(
    lenses: Sequence[Distortion],
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
) -> Lenses:
    """The lenses of C cameras, on the device and in the dtype of `Ks`, which the host reads.

    Raises:
        ValueError: they are not of one family.
    """
    rows = []
    for lens, K in zip(lenses, Ks.detach().double().cpu(), strict=True):
        intrinsics = (K[0, 0].item(), K[1, 1].item(), K[0, 2].item(), K[1, 2].item())
        rows.append(pack_lens(lens, intrinsics, width, height))
    return Lenses(kind_of(lenses), torch.stack(rows).to(Ks))


def lenses_from(
    camera_model: str,
    Ks: Tensor,  # [..., 3, 3]
    width: int,
    height: int,
    radial_coeffs: Tensor | None = None,
    tangential_coeffs: Tensor | None = None,
    thin_prism_coeffs: Tensor | None = None,
) -> Lenses:
    """Lenses as gsplat's keywords describe them; `kernels.rasterization` documents these.

    Raises:
        ValueError: a tensor has a wrong shape.
    """
    family = "distorted" if camera_model == "pinhole" else camera_model
    lead = tuple(Ks.shape[:-2])
    n_radial = {"distorted": 6, "fisheye": 4}.get(family, 0)
    given = {
        "radial_coeffs": (radial_coeffs, n_radial),
        "tangential_coeffs": (tangential_coeffs, 2),
        "thin_prism_coeffs": (thin_prism_coeffs, 4),
    }
    rows: dict[str, list[tuple[float, ...]]] = {}
    count = Ks[..., 0, 0].numel()
    for name, (values, size) in given.items():
        rows[name] = [()] * count
        if values is None:
            continue
        if family == "equirectangular":
            raise ValueError(f"{name}: expected none with camera_model='equirectangular'")
        if tuple(values.shape) != (*lead, size):
            raise ValueError(
                f"{name}: expected {[*lead, size]} with camera_model={camera_model!r},"
                f" got {list(values.shape)}"
            )
        if bool((values != 0).any()):
            rows[name] = [tuple(row) for row in values.detach().double().reshape(-1, size).tolist()]
    lenses = [
        Distortion(
            family,
            _trimmed(radial[:4] if n_radial == 4 else radial[:3]),
            radial[3:] if n_radial == 6 and any(radial[3:]) else (),
            tangential,
            prism,
        )
        for radial, tangential, prism in zip(*rows.values(), strict=True)
    ]
    found = lenses_of(lenses, Ks.reshape(-1, 3, 3), width, height)
    return Lenses(found.kind, found.words.reshape(*lead, LENS_WORDS))


def _trimmed(values: tuple[float, ...]) -> tuple[float, ...]:
    """Without zeros at the end."""
    while values and values[-1] == 0.0:
        values = values[:-1]
    return values
