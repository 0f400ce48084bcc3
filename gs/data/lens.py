"""A camera's lens: COLMAP's models by number, name and parameters.

Every model's parameters are one or two focal lengths, the principal point, and distortion.
https://colmap.github.io/cameras.html
"""

import dataclasses
import math
from dataclasses import dataclass

from kernels import Distortion

from ..errors import SplatrimError

# name, number of focal lengths, number of distortion parameters; by COLMAP's number
MODELS: dict[int, tuple[str, int, int]] = {
    0: ("SIMPLE_PINHOLE", 1, 0),
    1: ("PINHOLE", 2, 0),
    2: ("SIMPLE_RADIAL", 1, 1),
    3: ("RADIAL", 1, 2),
    4: ("OPENCV", 2, 4),
    5: ("OPENCV_FISHEYE", 2, 4),
    6: ("FULL_OPENCV", 2, 8),
    7: ("FOV", 2, 1),
    8: ("SIMPLE_RADIAL_FISHEYE", 1, 1),
    9: ("RADIAL_FISHEYE", 1, 2),
    10: ("THIN_PRISM_FISHEYE", 2, 8),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 2, 12),
    12: ("SIMPLE_DIVISION", 1, 1),
    13: ("DIVISION", 2, 1),
    14: ("SIMPLE_FISHEYE", 1, 0),
    15: ("FISHEYE", 2, 0),
    16: ("EUCM", 2, 2),
    17: ("EQUIRECTANGULAR", 0, 0),  # its two parameters are the size
}
BY_NAME = {name: (focal, extra) for name, focal, extra in MODELS.values()}
PANORAMA = "EQUIRECTANGULAR"
LARGEST = 1e9  # pixels, and parameters: beyond them a file is damaged
# without distortion these are pinhole cameras; fisheye models are not
_PERSPECTIVE = {
    "SIMPLE_PINHOLE",
    "PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "OPENCV",
    "FULL_OPENCV",
    "SIMPLE_DIVISION",
    "DIVISION",
}
# place of each coefficient among those after the principal point: radial, the three of the
# denominator, tangential, thin prism; https://github.com/colmap/colmap, sensor/models.h
_COEFFICIENTS: dict[str, tuple[str, list[int], list[int], list[int], list[int]]] = {
    "SIMPLE_RADIAL": ("distorted", [0], [], [], []),
    "RADIAL": ("distorted", [0, 1], [], [], []),
    "OPENCV": ("distorted", [0, 1], [], [2, 3], []),
    "FULL_OPENCV": ("distorted", [0, 1, 4], [5, 6, 7], [2, 3], []),
    "OPENCV_FISHEYE": ("fisheye", [0, 1, 2, 3], [], [], []),
    "SIMPLE_RADIAL_FISHEYE": ("fisheye", [0], [], [], []),
    "RADIAL_FISHEYE": ("fisheye", [0, 1], [], [], []),
    "THIN_PRISM_FISHEYE": ("fisheye", [0, 1, 4, 5], [], [2, 3], [6, 7]),
    "SIMPLE_FISHEYE": ("fisheye", [], [], [], []),
    "FISHEYE": ("fisheye", [], [], [], []),
    PANORAMA: ("equirectangular", [], [], [], []),
}


def colmap_model(bent: Distortion) -> tuple[str, list[float]]:
    """The model of COLMAP that holds all of a distortion, and what follows its principal point."""
    if bent.family == "equirectangular":
        return PANORAMA, []
    k1, k2, k3, k4 = (*bent.radial, 0.0, 0.0, 0.0, 0.0)[:4]
    p = [*(bent.tangential or (0.0, 0.0))]
    s1, _, s3, _ = bent.thin_prism or (0.0,) * 4
    if bent.family == "distorted":
        return "FULL_OPENCV", [k1, k2, *p, k3, *(*bent.rational, 0.0, 0.0, 0.0)[:3]]
    if any((*p, s1, s3)):
        return "THIN_PRISM_FISHEYE", [k1, k2, *p, k3, k4, s1, s3]
    return "OPENCV_FISHEYE", [k1, k2, k3, k4]


def parameter_count(model: str) -> int:
    """Number of parameters of a model in BY_NAME."""
    focal, extra = BY_NAME[model]
    return focal + 2 + extra if focal else 2


@dataclass(frozen=True)
class Lens:
    """Intrinsics of an image of a certain size. Pixel centres at +0.5."""

    model: str
    """COLMAP's name."""
    width: int
    height: int
    params: tuple[float, ...]
    """In COLMAP's order, pixels and plain numbers."""

    @property
    def focal(self) -> tuple[float, float]:
        """Focal lengths in x and y: pixels, of a panorama pixels per radian."""
        if self.model == PANORAMA:
            return self.width / (2 * math.pi), self.height / math.pi
        return self.params[0], self.params[BY_NAME[self.model][0] - 1]

    @property
    def principal_point(self) -> tuple[float, float]:
        """Where the optical axis meets the image."""
        if self.model == PANORAMA:
            return self.width / 2, self.height / 2
        n_focal = BY_NAME[self.model][0]
        return self.params[n_focal], self.params[n_focal + 1]

    @property
    def is_pinhole(self) -> bool:
        """Whether straight lines stay straight."""
        n_focal = BY_NAME[self.model][0]
        return self.model in _PERSPECTIVE and not any(self.params[n_focal + 2 :])

    @property
    def distortion(self) -> Distortion | None:
        """What bends straight lines; None: nothing.

        Raises:
            SplatrimError: nothing here draws through a lens of this model.
        """
        if self.is_pinhole:
            return None
        if self.model not in _COEFFICIENTS:
            raise SplatrimError(
                f"lenses of the model {self.model} are not drawn as they are: "
                "remove their distortion with --distortion undistort"
            )
        family, *places = _COEFFICIENTS[self.model]
        given = self.params[BY_NAME[self.model][0] + 2 :]
        radial, rational, tangential, prism = (tuple(given[k] for k in row) for row in places)
        if prism:
            prism = (prism[0], 0.0, prism[1], 0.0)
        return Distortion(family, radial, rational, tangential, prism)

    def check(self, name: str) -> None:
        """Raise SplatrimError, calling the camera `name`, unless the numbers can be a lens's."""
        fits = 0 < min(self.width, self.height) <= max(self.width, self.height) <= LARGEST
        fits = fits and all(math.isfinite(x) and abs(x) <= LARGEST for x in self.params)
        if not fits or min(self.focal) <= 0:
            raise SplatrimError(
                f"{name} is damaged: {self.width}x{self.height} pixels "
                f"with the parameters {list(self.params)}"
            )

    def scaled(self, width: int, height: int) -> "Lens":
        """The same lens for the image resized to width x height."""
        if (width, height) == (self.width, self.height):
            return self
        if self.model == PANORAMA:
            return dataclasses.replace(
                self, width=width, height=height, params=(float(width), float(height))
            )
        sx, sy = width / self.width, height / self.height
        n_focal = BY_NAME[self.model][0]
        fx, fy = self.focal
        focal = ((fx * sx + fy * sy) / 2,) if n_focal == 1 else (fx * sx, fy * sy)
        cx, cy = self.principal_point
        params = (*focal, cx * sx, cy * sy, *self.params[n_focal + 2 :])
        return dataclasses.replace(self, width=width, height=height, params=params)
