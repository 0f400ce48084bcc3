"""What spoils photographs: light that varies, and somebody who walks through them.

For the built-in scene, so that what trains in spite of it can be measured.
"""

import numpy as np
from numpy.typing import NDArray

STOPS = 1.5  # of exposure, between the darkest image and the one without change
WARMTH = 0.35  # the same of red and of blue, beside green
HEIGHT = 0.5  # of the figure, in heights of the image
MARGIN = 1  # pixels around the figure that the mask hides too

Pixels = NDArray[np.uint8]


def light_gains(views: int, seed: int) -> NDArray[np.float32]:  # [views, 3]
    """What the linear light of each image is multiplied by: random exposure and white balance.

    Nothing is brighter than it was, so that no image is cut at white.
    """
    rng = np.random.default_rng([seed, 1])
    stops = -STOPS * rng.random((views, 1)) - [WARMTH, 0.0, WARMTH] * rng.random((views, 3))
    return (2.0**stops).astype(np.float32)


def walks_through(view: int) -> bool:
    """Whether the figure is in an image: every second, and in none that tests."""
    return view % 2 == 1


def paint_figure(image: Pixels, view: int, seed: int) -> tuple[Pixels, Pixels]:
    """An image [H, W, 3] with a striped figure at a place of its own, and the mask [H, W]."""
    rng = np.random.default_rng([seed, 2, view])
    height, width, _ = image.shape
    size = HEIGHT * height
    x0, y0 = rng.uniform(0.15, 0.85) * width, rng.uniform(0.4, 0.7) * height
    y, x = np.mgrid[:height, :width] + 0.5
    x, y = (x - x0) / size, (y - y0) / size
    shirt, trousers = rng.integers(0, 256, (2, 3))

    def inside(margin: float) -> NDArray[np.bool_]:
        body = (x / (0.17 + margin)) ** 2 + (y / (0.38 + margin)) ** 2 < 1
        return body | (x**2 + (y + 0.42) ** 2 < (0.1 + margin) ** 2)

    stripes = np.where((y * 40).astype(int) % 2 == 0, 1.0, 0.6)[..., None]
    cloth = np.where((y < 0.05)[..., None], shirt, trousers) * stripes
    skin = np.broadcast_to([196.0, 142.0, 112.0], image.shape)
    figure = np.rint(np.where((y < -0.34)[..., None], skin, cloth)).astype(np.uint8)
    painted = np.where(inside(0.0)[..., None], figure, image)
    mask = np.where(inside(MARGIN / size), np.uint8(0), np.uint8(255))
    return painted, mask
