r"""Kinds of lenses, their coefficients, and the layout of the vector that kernels read.

Every lens but the spherical one is  pixel = f D(m) + c,  m = h(theta) e, with theta the angle to
the optical axis, e the unit vector of (t_x, t_y) and

    pinhole, distorted   h = tan theta
    fisheye              h = theta

    D(u, v), q = u^2 + v^2:
    u g + 2 p1 u v + p2 (q + 2 u^2) + s1 q + s2 q^2
    v g + 2 p2 u v + p1 (q + 2 v^2) + s3 q + s4 q^2
    g = (1 + a1 q + a2 q^2 + a3 q^3 + a4 q^4) / (1 + b1 q + b2 q^2 + b3 q^3)

These are the models of OpenCV (https://docs.opencv.org/4.x/d9/d0c/group__calib3d.html) and COLMAP
(https://colmap.github.io/cameras.html). In a panorama (equirectangular) longitude and latitude take
the place of D(m).
"""

from collections.abc import Iterable
from typing import NamedTuple

FAMILIES = ("pinhole", "distorted", "fisheye", "equirectangular")

# Words of a lens's vector: coefficients, and where the lens ends (packing.py).
RADIAL, RATIONAL, TANGENTIAL, THIN_PRISM = 0, 4, 7, 9
R0, THETA0, SLOPE0, EDGE = 13, 14, 15, 16
LENS_WORDS = 20  # 80 bytes


class LensKind(NamedTuple):
    """What kernels are compiled for: lenses of a kind differ in numbers alone."""

    family: str = "pinhole"
    """One of FAMILIES; "pinhole" projects by EWA, all others by the unscented transform."""
    n_radial: int = 0
    """How many of a1..a4 there are."""
    rational: bool = False
    """Whether there are b1..b3."""
    tangential: bool = False
    """Whether there are p1, p2."""
    thin_prism: bool = False
    """Whether there are s1..s4."""

    @property
    def code(self) -> int:
        """All of it in one number: 0 for pinholes."""
        flags = self.rational + 2 * self.tangential + 4 * self.thin_prism
        return FAMILIES.index(self.family) + 4 * self.n_radial + 32 * flags


PINHOLE = LensKind()


class Distortion(NamedTuple):
    """Coefficients of one lens."""

    family: str = "pinhole"
    """One of FAMILIES."""
    radial: tuple[float, ...] = ()
    """a1 and on, at most four."""
    rational: tuple[float, ...] = ()
    """b1 and on, at most three."""
    tangential: tuple[float, ...] = ()
    """p1, p2, or none."""
    thin_prism: tuple[float, ...] = ()
    """s1 to s4, or none."""


def kind_of(lenses: Iterable[Distortion]) -> LensKind:
    """The kind that all of some lenses of one family are of.

    Raises:
        ValueError: they are of several families.
    """
    lenses = list(lenses)
    families = sorted({lens.family for lens in lenses})
    if len(families) != 1:
        raise ValueError(f"lenses: expected one family, got {families}")
    return LensKind(
        families[0],
        max(len(lens.radial) for lens in lenses),
        any(lens.rational for lens in lenses),
        any(lens.tangential for lens in lenses),
        any(lens.thin_prism for lens in lenses),
    )
